"""A throw-away machine of ours that looks at a stranger's disks: its kernel mounts them, never the host's.

It has no network, starts nothing of the guest's, and sees nothing of the host: its disks are sockets that
it is given. Scripts go in over one virtual serial port, and what they print comes out. It ends with the
process that started it, and at its time limit, whatever happens inside.
"""

import contextlib
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from calotype import run
from calotype.errors import GuestError, TimedOut
from calotype.machine.agent import Completed
from calotype.machine.cmdline import SECCOMP, TCG_CPU
from calotype.machine.probe import kvm_groups

#: Bytes of the machine's memory; a check of a large file system needs most of it.
MEMORY = 1 << 30
_START = 120.0  # seconds until the first answer, on a busy host
_LONGEST = 256 << 20  # bytes of one answer
_INPUT = 16 << 20  # bytes of one request; the other side holds it in memory
_NOBODY = 65534
#: What a throw-away overlay may grow to: a replayed journal, and little more.
_OVERLAY = 4 << 30

_KERNEL = (
    "quiet loglevel=0 panic=-1 audit=0 mitigations=off nokaslr no_timer_check tsc=reliable"
    " random.trust_cpu=on rcupdate.rcu_expedited=1 cryptomgr.notests"
)


class Drive(NamedTuple):
    """A disk of the appliance: the socket of an NBD server, and which export of it.

    With ``overlay`` (a descriptor of an empty overlay, open for writing) nothing is written to the server.
    """

    socket: Path
    export: str
    overlay: int | None = None


class ApplianceMachine:
    """One that runs; use :func:`appliance`. After a failure it answers no more."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        channel: socket.socket,
        deadline: float,
        errors: IO[bytes],
    ) -> None:
        self._process = process
        self._errors = errors
        self._channel = channel
        self._deadline = deadline
        self._requests = 0
        self._buffer = bytearray()

    def run(self, script: bytes, stdin: bytes = b"", *, timeout: float = 60.0) -> Completed:
        """Run a shell script in the appliance to its end, as its root.

        Args:
            script: for busybox's shell.
            stdin: its standard input, at most 16 MiB.
            timeout: seconds; the appliance ends when it takes longer.

        Raises:
            TimedOut: it took longer.
            GuestError: the appliance has ended, or answers nonsense.
        """
        if not script or max(len(script), len(stdin)) > _INPUT:
            raise GuestError("the request to the appliance is too long")
        deadline = min(
            time.monotonic() + timeout + (0 if self._requests else _START), self._deadline
        )
        self._requests += 1
        try:
            head = b"%d %d %d\n" % (self._requests, len(script), len(stdin))
            self._send(head + script + stdin, deadline)
            number, status, output, errors = self._head(deadline)
            if number != self._requests or output + errors > _LONGEST:
                raise ValueError("another answer")  # noqa: TRY301 - one end for all that is wrong
            return Completed(status, self._take(output, deadline), self._take(errors, deadline))
        except TimeoutError:
            self.kill()
            raise TimedOut(f"the appliance did not answer within {timeout:g} s") from None
        except (OSError, ValueError) as error:
            self.kill()
            raise GuestError(f"the appliance failed: {self._last_words()}") from error
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End it at once; harmless when repeated."""
        run.kill_group(self._process)
        self._process.wait()
        self._channel.close()

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it ended without a word, or makes no sense"

    def _head(self, deadline: float) -> tuple[int, int, int, int]:
        while (end := self._buffer.find(b"\n", 0, 200)) < 0:
            if len(self._buffer) >= 200:
                raise ValueError("no line")
            self._fill(deadline)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        number, status, output, errors = (int(word) for word in line.split())
        if min(number, status, output, errors) < 0:
            raise ValueError("negative")
        return number, status, output, errors

    def _take(self, length: int, deadline: float) -> bytes:
        while len(self._buffer) < length:
            self._fill(deadline)
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken

    def _fill(self, deadline: float) -> None:
        self._channel.settimeout(max(0.001, deadline - time.monotonic()))
        data = self._channel.recv(1 << 18)
        if not data:
            raise OSError("closed")
        self._buffer += data

    def _send(self, data: bytes, deadline: float) -> None:
        self._channel.settimeout(max(0.001, deadline - time.monotonic()))
        self._channel.sendall(data)


@contextlib.contextmanager
def appliance(
    kernel: Path,
    initrd: Path,
    drives: Sequence[Drive],
    *,
    accel: Literal["kvm", "tcg"],
    wall: float = 1800.0,
) -> Iterator[ApplianceMachine]:
    """Start an appliance; it is gone at the end of the block.

    Args:
        kernel: its kernel.
        initrd: its initial RAM disk.
        drives: its disks, ``/dev/vda`` and on.
        accel: as :meth:`~calotype.machine.QemuDriver.acceleration` says.
        wall: seconds that it may live.

    Raises:
        ToolMissing: QEMU or the sandbox is not installed.
    """
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as stack:
        stack.enter_context(ours)
        stack.enter_context(theirs)
        fds = [theirs.fileno()]
        fds += [drive.overlay for drive in drives if drive.overlay is not None]
        files = {"/kernel": str(kernel), "/initrd": str(initrd)}
        for number, drive in enumerate(drives):
            drive.socket.chmod(0o666)  # of a directory that is its owner's alone
            files[f"/nbd{number}"] = str(drive.socket)
        sandbox = run.Sandbox(
            read_only=files,
            devices=["/dev/kvm"] if accel == "kvm" else [],
            uid=_NOBODY,
            groups=kvm_groups() if accel == "kvm" else (),
        )
        limits = run.Limits(
            wall=None,
            cpu=int(wall) * 4,
            memory=MEMORY + (4 << 30),
            file_size=_OVERLAY,
            open_files=256,
        )
        errors = stack.enter_context(tempfile.TemporaryFile())
        process = run.spawn(
            _command(theirs.fileno(), drives, accel),
            sandbox=sandbox,
            limits=limits,
            stderr=errors,
            pass_fds=fds,
        )
        theirs.close()
        machine = ApplianceMachine(process, ours, time.monotonic() + wall, errors)
        stack.callback(machine.kill)
        yield machine


def _command(channel: int, drives: Sequence[Drive], accel: Literal["kvm", "tcg"]) -> list[str]:
    cpu = "host" if accel == "kvm" else f"{TCG_CPU},+aes,+pclmulqdq"
    engine = "kvm" if accel == "kvm" else "tcg,tb-size=256"
    args = [
        "qemu-system-x86_64",
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-sandbox", SECCOMP, "-accel", engine, "-cpu", cpu, "-smp", "1"),
        *("-machine", "q35,sata=off,smbus=off,vmport=off,usb=off,hpet=off"),
        *("-m", f"{MEMORY >> 20}M", "-kernel", "/kernel", "-initrd", "/initrd", "-append", _KERNEL),
        *("-chardev", f"socket,id=port,fd={channel}", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=port,name=calotype"),
    ]
    for number, drive in enumerate(drives):
        for node in _nodes(number, drive):
            args += ["-blockdev", json.dumps(node)]
        args += _file_set(number, drive)
        # As fine as a file system's blocks may be: what is finer than this is never discarded.
        sizes = "discard_granularity=512,logical_block_size=512,physical_block_size=512"
        args += ["-device", f"virtio-blk-pci,drive=disk{number},discard=on,write-zeroes=on,{sizes}"]
    return args


def _file_set(number: int, drive: Drive) -> list[str]:
    return ["-add-fd", f"fd={drive.overlay},set={number}"] if drive.overlay is not None else []


def _nodes(number: int, drive: Drive) -> list[dict[str, Any]]:
    layered = drive.overlay is not None
    name, below = f"disk{number}", f"below{number}"
    how = {"discard": "unmap", "cache": {"no-flush": True}}
    server = {
        "driver": "nbd",
        "node-name": below if layered else name,
        "server": {"type": "unix", "path": f"/nbd{number}"},
        "export": drive.export,
        "read-only": layered,
    }
    if not layered:
        return [server | how | {"detect-zeroes": "unmap"}]
    file = {
        "driver": "file",
        "node-name": f"file{number}",
        "filename": f"/dev/fdset/{number}",
        "locking": "off",
    }
    top = {"driver": "qcow2", "node-name": name, "file": f"file{number}", "backing": below}
    return [server, file | how, top | how]
