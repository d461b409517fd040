"""A throw-away, writable view of a disk: one raw file (and its partitions), made by FUSE.

A storage daemon stacks an empty overlay on the source and exports the result as a plain file. No file
system of a guest is ever mounted. The daemon, and the FUSE mount with it, live in namespaces of their
own: nothing is mounted on the host, and nothing stays behind however the daemon ends. The file is
reached through ``/proc/PID/root``; a program in another sandbox gets it as an open descriptor.
"""

import contextlib
import json
import os
import selectors
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from calotype import run
from calotype.disk import overlay, raw
from calotype.disk.base import Disk, Extent
from calotype.disk.layout import MappedDisk
from calotype.disk.nbd import NbdDisk
from calotype.disk.overlay import LayeredDisk
from calotype.disk.window import Window
from calotype.errors import InvalidInput, TimedOut, ToolFailed

_LIMITS = run.Limits(wall=None, memory=4 << 30, open_files=1024)
_PATIENCE = 60.0  # seconds for any one answer of the daemon

#: Maps every user to itself, so that root in the daemon's namespace may open any file given to it.
_IDENTITY = "0 0 4294967295"


class Source(Protocol):
    """What a view can be stacked on; never written to."""

    def open(self) -> LayeredDisk:
        """The source as a disk, which the caller closes."""
        ...

    def nodes(self) -> list[dict[str, Any]]:
        """The daemon's block nodes; the last is named ``source``. Paths are as in :meth:`files`."""
        ...

    def files(self) -> Mapping[str, Path]:
        """The host's files that the nodes need: path inside the sandbox to path on the host."""
        ...


class _RawDisk(MappedDisk):
    """A raw file: it has no base, so all that it holds was written."""

    def changed(self) -> list[Extent]:
        """The runs that are not known to be zero."""
        return [extent for extent in self.extents() if not extent.zero]


@dataclass(frozen=True, slots=True)
class RawSource:
    """A raw file."""

    path: Path

    def open(self) -> LayeredDisk:
        """The file as a disk."""
        window = Window.open(self.path)
        try:
            return _RawDisk(raw.parse(window), window)
        except BaseException:
            window.close()
            raise

    def nodes(self) -> list[dict[str, Any]]:
        """One raw node."""
        return _raw("source", "/source")

    def files(self) -> Mapping[str, Path]:
        """The file."""
        return {"/source": self.path}


@dataclass(frozen=True, slots=True)
class OverlaySource:
    """A disk of a stopped VM: an overlay file on a base, raw or served (``None``: on nothing)."""

    path: Path
    base: "Path | NbdSource | None"

    def open(self) -> overlay.OverlayDisk:
        """The overlay over its base."""
        beneath = RawSource(self.base) if isinstance(self.base, Path) else self.base
        base = beneath.open() if beneath is not None else None
        try:
            return overlay.OverlayDisk(self.path, base)
        except BaseException:
            if base is not None:
                base.close()
            raise

    def nodes(self) -> list[dict[str, Any]]:
        """The base, if any, and the overlay on it."""
        beneath: list[dict[str, Any]] = []
        if isinstance(self.base, NbdSource):
            beneath = [_nbd("base", "/base", self.base.export)]
        elif self.base is not None:
            beneath = _raw("base", "/base")
        top = {"driver": "qcow2", "node-name": "source", "file": "source-file", "read-only": True}
        backing = {"backing": "base" if self.base is not None else None}
        return [*beneath, _file("source-file", "/source"), top | backing]

    def files(self) -> Mapping[str, Path]:
        """The overlay and its base."""
        base = self.base.socket if isinstance(self.base, NbdSource) else self.base
        return {"/source": self.path} | ({"/base": base} if base is not None else {})


@dataclass(frozen=True, slots=True)
class NbdSource:
    """An export of an NBD server on a unix socket: a running VM's view, or a base that is not whole."""

    socket: Path
    export: str

    def open(self) -> NbdDisk:
        """A client of the server."""
        return NbdDisk(self.socket, self.export)

    def nodes(self) -> list[dict[str, Any]]:
        """One NBD node."""
        return [_nbd("source", "/source", self.export)]

    def files(self) -> Mapping[str, Path]:
        """The socket."""
        return {"/source": self.socket}


def _file(name: str, path: str) -> dict[str, Any]:
    return {"driver": "file", "node-name": name, "filename": path, "read-only": True}


def _nbd(name: str, path: str, export: str) -> dict[str, Any]:
    server = {"type": "unix", "path": path}
    nbd = {"driver": "nbd", "server": server, "export": export, "read-only": True}
    return nbd | {"node-name": name}


def _raw(name: str, path: str) -> list[dict[str, Any]]:
    node = {"driver": "raw", "node-name": name, "file": f"{name}-file", "read-only": True}
    return [_file(f"{name}-file", path), node]


@contextlib.contextmanager
def writable(source: Source, overlay_path: Path, scratch: Path) -> Iterator["WritableView"]:
    """A writable view of ``source``; what is written goes to a new overlay at ``overlay_path``.

    Inside the block the view can be written to (until its ``finish``). After the block its
    ``changed`` and ``disk`` tell what came of it, as long as the overlay file is there: it is the
    caller's, except that it is removed when the block ends with an exception.

    Args:
        source: what lies beneath; not written to.
        overlay_path: the overlay to create (in a directory with room for what will be written).
        scratch: an existing directory for sockets and mount points.

    Raises:
        ToolMissing: QEMU's storage daemon or bubblewrap is not installed.
        ToolFailed: the daemon could not open the source, or FUSE is not to be had.
    """
    with contextlib.closing(source.open()) as disk:
        size = disk.size
    overlay.create(overlay_path, size)
    try:
        with tempfile.TemporaryDirectory(prefix="view-", dir=scratch) as room:
            view = WritableView(source, overlay_path, size, Path(room))
            with view:
                yield view
                view.finish()
    except BaseException:
        overlay_path.unlink(missing_ok=True)
        raise


class WritableView:
    """The view that :func:`writable` makes."""

    def __init__(self, source: Source, overlay_path: Path, size: int, room: Path) -> None:
        self.source = source
        self.overlay_path = overlay_path
        self.size = size
        self._room = room
        self._daemon: _Daemon | None = None
        self._part_open = False

    def __enter__(self) -> Self:
        self._daemon = _Daemon(self.source, self.overlay_path, self._room)
        return self

    def __exit__(self, *_: object) -> None:
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon = None

    @property
    def path(self) -> Path:
        """The whole disk as a raw file that this process can open for reading.

        Open it again to see what was written through a partition since: the kernel caches each file.
        """
        return self._running.path("disk")

    @contextlib.contextmanager
    def partition(self, offset: int, size: int) -> Iterator[Path]:
        """``size`` bytes at ``offset`` as a writable file of their own, one such part at a time.

        Its bytes are right, its holes are not: what the overlay lacks is told as a hole (QEMU looks
        through one node only). Ask ``path`` for holes.

        Raises:
            InvalidInput: it reaches past the end of the disk, or another part is open.
        """
        if offset < 0 or size <= 0 or offset + size > self.size:
            raise InvalidInput(f"the partition at {offset} reaches past the end of the disk")
        if self._part_open:
            raise InvalidInput("another partition of this view is open")
        daemon = self._running
        daemon.export("part", {"offset": offset, "size": size})
        self._part_open = True
        try:
            yield daemon.path("part")
        finally:
            self._part_open = False
        daemon.withdraw("part")

    @contextlib.contextmanager
    def served(self) -> Iterator["NbdSource"]:
        """The whole disk, writable, by NBD; only the user who runs this process can connect.

        What clients wrote shows in ``path`` when it is opened again.

        Raises:
            InvalidInput: a part of the view is open, or it is served already.
        """
        if self._part_open:
            raise InvalidInput("a part of this view is open")
        daemon = self._running
        self._part_open = True
        try:
            daemon.serve("disk")
            yield NbdSource(self._room / "nbd", "disk")
        finally:
            self._part_open = False
        daemon.unserve("disk")

    def finish(self) -> None:
        """End the daemon; everything written is in the overlay file then."""
        if self._daemon is not None:
            daemon, self._daemon = self._daemon, None
            daemon.finish()

    def changed(self) -> list[Extent]:
        """The runs that were written through the view (not those that the source changed)."""
        with contextlib.closing(overlay.OverlayDisk(self._finished, None)) as disk:
            return disk.changed()

    def disk(self) -> Disk:
        """The result: the overlay over the source, as a disk that the caller closes."""
        path = self._finished
        base = self.source.open()
        try:
            return overlay.OverlayDisk(path, base)
        except BaseException:
            base.close()
            raise

    @property
    def _running(self) -> "_Daemon":
        if self._daemon is None:
            raise InvalidInput("the view is closed")
        return self._daemon

    @property
    def _finished(self) -> Path:
        if self._daemon is not None:
            raise InvalidInput("the view is still open")
        return self.overlay_path


def _export(name: str, node: str, *, writable: bool) -> dict[str, Any]:
    return {
        "type": "fuse",
        "id": name,
        "node-name": node,
        "mountpoint": f"/view/{name}",
        "writable": writable,
        "growable": False,
        "allow-other": "off",
    }


class _Daemon:
    """A storage daemon in its sandbox, and the control connection that it opened to us."""

    def __init__(self, source: Source, overlay_path: Path, room: Path) -> None:
        self._room = room
        (room / "disk").touch()
        self._errors = room / "errors"
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            # A socket's name is at most 107 bytes long; the directory's descriptor makes it short.
            directory = os.open(room, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            undo.callback(os.close, directory)
            listener.bind(f"/proc/self/fd/{directory}/control")
            listener.listen(1)
            with self._errors.open("wb") as errors:
                self._process = _spawn(_command(source, overlay_path, room), errors.fileno())
            try:
                self._connect(listener)
            except BaseException:
                self.kill()
                raise

    def path(self, name: str) -> Path:
        """A file of the daemon's room, as this process sees it."""
        return Path(f"/proc/{self._pid}/root/view/{name}")

    def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, event: str | None = None
    ) -> None:
        """Run a QMP command; wait for its end, and for ``event`` if it is named."""
        request = {"execute": command, "arguments": dict(arguments or {})}
        try:
            self._control.sendall(json.dumps(request).encode() + b"\n")
            answered, happened = False, event is None
            while not (answered and happened):
                message = self._message()
                if "error" in message:
                    reason = message["error"].get("desc")
                    raise ToolFailed(f"the storage daemon refused {command}: {reason}")
                happened |= message.get("event") == event
                answered |= "return" in message
        except TimeoutError:
            raise TimedOut(f"the storage daemon does not answer {command}") from None
        except OSError:
            raise self._failed() from None

    def export(self, name: str, part: Mapping[str, int]) -> None:
        """Offer a part of the view (``offset`` and ``size``) as the writable file ``name``."""
        (self._room / name).touch()
        node = {"driver": "raw", "node-name": name, "file": "view"}
        self.execute("blockdev-add", {**node, **part})
        self.execute("block-export-add", _export(name, name, writable=True))

    def serve(self, name: str) -> None:
        """Serve the view, writable, as the export ``name`` of an NBD server in the room."""
        (self._room / "nbd").unlink(missing_ok=True)
        address = {"type": "unix", "data": {"path": "/view/nbd"}}
        self.execute("nbd-server-start", {"addr": address})
        export = {"type": "nbd", "id": f"nbd-{name}", "node-name": "view", "name": name}
        self.execute("block-export-add", {**export, "writable": True})

    def unserve(self, name: str) -> None:
        """End the NBD server; what its clients wrote stays."""
        arguments = {"id": f"nbd-{name}", "mode": "hard"}
        self.execute("block-export-del", arguments, event="BLOCK_EXPORT_DELETED")
        self.execute("nbd-server-stop")

    def withdraw(self, name: str) -> None:
        """Write out what was written to a file of :meth:`export`, and close it."""
        self._flush(name)
        self.execute("block-export-del", {"id": name, "mode": "hard"}, event="BLOCK_EXPORT_DELETED")
        self.execute("blockdev-del", {"node-name": name})

    def finish(self) -> None:
        """Have everything written out, then end the daemon."""
        try:
            self._flush("disk")
            self.execute("quit")
            if self._process.wait(_PATIENCE) != 0:
                raise self._failed()
        except subprocess.TimeoutExpired:
            raise TimedOut("the storage daemon does not end") from None
        finally:
            self.kill()

    def _flush(self, name: str) -> None:
        """A write that found no room shows here, not in the daemon's silent end."""
        try:
            fd = os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise ToolFailed(f"the view could not be written out: {error.strerror}") from error

    def kill(self) -> None:
        """End the daemon at once; harmless when repeated."""
        run.kill_group(self._process)
        self._process.wait()
        if hasattr(self, "_control"):
            self._control.close()

    def _connect(self, listener: socket.socket) -> None:
        """Await the daemon's connection (or its end); its peer credentials name its process."""
        ended = os.pidfd_open(self._process.pid)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(listener, selectors.EVENT_READ)
                selector.register(ended, selectors.EVENT_READ)
                ready = [key.fileobj for key, _ in selector.select(_PATIENCE)]
        finally:
            os.close(ended)
        if listener not in ready:
            raise self._failed() if ready else TimedOut("the storage daemon does not start")
        self._control, _ = listener.accept()
        self._control.settimeout(_PATIENCE)
        self._lines = self._control.makefile("rb")
        peer = self._control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self._pid: int = struct.unpack("iII", peer)[0]
        self._lines.readline()  # the greeting
        self.execute("qmp_capabilities")

    def _message(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise self._failed()
        message: dict[str, Any] = json.loads(line)
        return message

    def _failed(self) -> ToolFailed:
        text = self._errors.read_text("utf-8", "replace").strip().splitlines()
        return ToolFailed(
            f"the storage daemon ended: {text[-1] if text else 'without a word'}",
            hint="it needs /dev/fuse and user namespaces; calotype doctor tells what is missing",
        )


def _command(source: Source, overlay_path: Path, room: Path) -> list[str]:
    """The daemon's whole command: sandbox, block nodes from the source up, export, control."""
    files = {inside: str(host) for inside, host in source.files().items()}
    sandbox = run.Sandbox(
        read_only=files,
        read_write={"/view": str(room), "/overlay": str(overlay_path)},
        devices=("/dev/fuse",),
        # Inside a user namespace: enough to make the FUSE mount, and to open files of any owner.
        capabilities=("CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"),
    )
    unmap = {"discard": "unmap", "cache": {"no-flush": True}}
    nodes = [
        *source.nodes(),
        {"driver": "file", "node-name": "overlay", "filename": "/overlay"} | unmap,
        # Zeros cost nothing: they are found as they are written.
        {"driver": "qcow2", "node-name": "view", "file": "overlay", "backing": "source"}
        | {"detect-zeroes": "unmap"}
        | unmap,
    ]
    argv = ["qemu-storage-daemon"]
    for node in nodes:
        argv += ["--blockdev", json.dumps(node)]
    argv += ["--export", json.dumps(_export("disk", "view", writable=False))]
    argv += ["--chardev", "socket,id=control,path=/view/control", "--monitor", "chardev=control"]
    return run.command(argv, sandbox=sandbox, limits=_LIMITS)


def _spawn(command: list[str], errors: int) -> subprocess.Popen[bytes]:
    """Start the daemon inside a user namespace: an ordinary user's sandbox makes it, root's is made here."""
    if os.geteuid() != 0:
        return run.spawn(command, stderr=errors)
    # The namespace's maps can only be written from outside, between unshare and exec.
    wait = ["unshare", "--user", "--", "/bin/sh", "-c", 'echo; read -r go && exec "$@"', "sh"]
    process = run.spawn(
        [*wait, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
    )
    try:
        assert process.stdin is not None  # noqa: S101 - for the type checker: both are pipes
        assert process.stdout is not None  # noqa: S101
        with process.stdin, process.stdout:
            if process.stdout.readline():
                for map_name in ("uid_map", "gid_map"):
                    Path(f"/proc/{process.pid}/{map_name}").write_text(_IDENTITY, "ascii")
                process.stdin.write(b"go\n")
    except BaseException:
        run.kill_group(process)
        process.wait()
        raise
    return process
