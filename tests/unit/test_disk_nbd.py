"""The NBD client against QEMU's own server, and against servers that lie."""

import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from calotype import run
from calotype.disk import overlay
from calotype.disk.base import Disk, Extent, read
from calotype.disk.nbd import NbdDisk
from calotype.errors import InvalidInput, NotFound, TimedOut, ToolFailed

MIB = 1 << 20
KIB4 = 4096


def pattern(tag: int, length: int) -> bytes:
    return bytes([tag]) * length


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Path]:
    """A fleecing chain (target, overlay, base) behind a server: the socket of its exports."""
    base, middle, top = (tmp_path / name for name in ("base.raw", "middle.qcow2", "top.qcow2"))
    with base.open("wb") as file:
        file.truncate(8 * MIB)
        file.seek(MIB)
        file.write(pattern(1, MIB))
    for path in (middle, top):
        overlay.create(path, 8 * MIB)
    options = [
        f"driver=file,node-name=base-file,filename={base},read-only=on",
        "driver=raw,node-name=base,file=base-file,read-only=on",
        f"driver=file,node-name=middle-file,filename={middle}",
        "driver=qcow2,node-name=middle,file=middle-file,backing=base,discard=unmap",
        f"driver=file,node-name=top-file,filename={top}",
        "driver=qcow2,node-name=top,file=top-file,backing=middle,discard=unmap",
    ]
    _qemu_io(options[:4], "middle", "write -P 2 1048576 4096", "write -z -u 1310720 131072")
    _qemu_io(options, "top", "write -P 3 1052672 4096")
    path = tmp_path / "nbd"
    argv = ["qemu-storage-daemon", *(a for o in options for a in ("--blockdev", o))]
    argv += ["--nbd-server", f"addr.type=unix,addr.path={path}"]
    argv += ["--export", "nbd,id=a,node-name=top,name=deep,allocation-depth=on"]
    argv += ["--export", "nbd,id=b,node-name=middle,name=plain"]
    pid = tmp_path / "pid"
    run.run([*argv, "--daemonize", "--pidfile", str(pid)])
    try:
        yield path
    finally:
        subprocess.run(["kill", pid.read_text().strip()], check=True)


def _qemu_io(options: list[str], node: str, *commands: str) -> None:
    """Write through a chain of nodes, with the storage daemon and QEMU's own client."""
    socket_path = Path(options[-2].partition("filename=")[2]).parent / f"w-{node}"
    argv = ["qemu-storage-daemon", *(a for o in options for a in ("--blockdev", o))]
    argv += ["--nbd-server", f"addr.type=unix,addr.path={socket_path}"]
    argv += ["--export", f"nbd,id=w,node-name={node},name=w,writable=on"]
    pid = socket_path.with_suffix(".pid")
    run.run([*argv, "--daemonize", "--pidfile", str(pid)])
    try:
        flags = [f for c in commands for f in ("-c", c)]
        run.run(
            ["qemu-io", "-f", "raw", "-d", "unmap", *flags, f"nbd+unix:///w?socket={socket_path}"]
        )
    finally:
        process = pid.read_text().strip()
        ended = os.pidfd_open(int(process))
        subprocess.run(["kill", process], check=True)
        select.select([ended], [], [], 10)
        os.close(ended)


def test_bytes_extents_and_changes(chain: Path) -> None:
    with closing(NbdDisk(chain, "deep")) as disk:
        assert isinstance(disk, Disk)
        assert disk.size == 8 * MIB
        assert read(disk, MIB - 2, 4) == b"\0\0\2\2"
        assert read(disk, MIB + KIB4 - 1, 2) == b"\2\3"
        assert read(disk, MIB + 2 * KIB4 - 1, 2) == b"\3\1"
        assert read(disk, 1310720, 131072) == bytes(131072)
        assert read(disk, 0, 8 * MIB).count(1) == MIB - 2 * KIB4 - 131072
        assert disk.changed() == [
            Extent(MIB, 2 * KIB4, zero=False),
            Extent(1310720, 131072, zero=True),
        ]
        extents = list(disk.extents())
        assert extents[0] == Extent(0, MIB, zero=True)
        assert [e.offset for e in extents[1:]] == [e.end for e in extents[:-1]]
        assert extents[-1].end == disk.size
        assert all(not any(read(disk, e.offset, e.length)) for e in extents if e.zero)


def test_all_above_a_deeper_base(chain: Path) -> None:
    with closing(NbdDisk(chain, "deep", base_depth=2)) as disk:
        assert disk.changed() == [Extent(MIB + KIB4, KIB4, zero=False)]


def test_an_export_without_depths_cannot_tell_changes(chain: Path) -> None:
    with closing(NbdDisk(chain, "plain")) as disk:
        assert read(disk, MIB, 1) == b"\2"
        with pytest.raises(InvalidInput, match="depth"):
            disk.changed()


def test_threads_share_the_disk(chain: Path) -> None:
    with closing(NbdDisk(chain, "deep", connections=3)) as disk, ThreadPoolExecutor(8) as pool:
        whole = read(disk, 0, 8 * MIB)
        places = [n * 77_777 % (8 * MIB - 5000) for n in range(200)]
        parts = pool.map(lambda at: read(disk, at, 5000), places)
        assert [bytes(p) for p in parts] == [whole[at : at + 5000] for at in places]


def test_what_is_not_there(chain: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no export named other"):
        NbdDisk(chain, "other")
    with pytest.raises(NotFound, match="no NBD server"):
        NbdDisk(tmp_path / "nothing", "x")
    with pytest.raises(NotFound, match="no NBD server"):
        NbdDisk(tmp_path / "no" / "directory", "x")
    (tmp_path / "link").symlink_to(chain)
    with pytest.raises(NotFound, match="no socket"):
        NbdDisk(tmp_path / "link", "deep")


def test_a_socket_whose_name_is_longer_than_an_address(chain: Path, tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 40)
    directory.mkdir()
    chain.rename(directory / "nbd")
    with closing(NbdDisk(directory / "nbd", "deep")) as disk:
        assert read(disk, MIB, 1) == b"\2"


def test_bounds_and_closing(chain: Path) -> None:
    disk = NbdDisk(chain, "deep")
    for offset, length in ((-1, 1), (8 * MIB, 1), (8 * MIB - 1, 2)):
        with pytest.raises(InvalidInput, match="past the end"):
            read(disk, offset, length)
    disk.close()
    disk.close()
    with pytest.raises(InvalidInput, match="closed"):
        read(disk, 0, 1)


# A server of our own, to say what QEMU never would.

REPLY = 0x0003E889045565A9
Script = Callable[[socket.socket], None]


def _exactly(peer: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = peer.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _handshake(peer: socket.socket) -> None:
    peer.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
    _exactly(peer, 4)
    for _ in range(3):
        _magic, option, length = struct.unpack(">8sII", _exactly(peer, 16))
        _exactly(peer, length)
        if option == 10:
            context = struct.pack(">I", 7) + b"base:allocation"
            peer.sendall(struct.pack(">QIII", REPLY, option, 4, len(context)) + context)
        if option == 7:
            info = struct.pack(">HQH", 0, MIB, 1)
            peer.sendall(struct.pack(">QIII", REPLY, option, 3, len(info)) + info)
        peer.sendall(struct.pack(">QIII", REPLY, option, 1, 0))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Script], Path]]:
    threads: list[threading.Thread] = []

    def start(script: Script) -> Path:
        path = tmp_path / "own"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()

        def work() -> None:
            with listener:
                peer, _ = listener.accept()
            with peer:
                try:
                    script(peer)
                    peer.recv(1 << 16)
                except (EOFError, ConnectionError):
                    pass

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        return path

    yield start
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def _chunk(handle: int, kind: int, payload: bytes, flags: int = 1) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, flags, kind, handle, len(payload)) + payload


LIES = {
    "another handle": lambda h: _chunk(h + 1, 1, struct.pack(">Q", 0) + b"x" * 512),
    "bytes elsewhere": lambda h: _chunk(h, 1, struct.pack(">Q", 4096) + b"x" * 512),
    "bytes before": lambda h: _chunk(h, 2, struct.pack(">QI", 0, 512)),
    "too few bytes": lambda h: _chunk(h, 1, struct.pack(">Q", 512) + b"x" * 511),
    "too many bytes": lambda h: _chunk(h, 2, struct.pack(">QI", 512, 1 << 31)),
    "the same bytes twice": lambda h: (
        _chunk(h, 2, struct.pack(">QI", 512, 512), 0) + _chunk(h, 2, struct.pack(">QI", 512, 512))
    ),
    "no bytes": lambda h: _chunk(h, 0, b""),
    "another type": lambda h: _chunk(h, 5, struct.pack(">III", 7, 512, 0)),
    "an old reply": lambda h: struct.pack(">IIQ", 0x67446698, 0, h) + b"x" * 512,
    "a short end": lambda h: _chunk(h, 1, struct.pack(">Q", 512) + b"x" * 512)[:100],
    "an error": lambda h: _chunk(h, 0x8001, struct.pack(">IH", 5, 3) + b"bad"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_about_a_read(lie: str, serve: Callable[[Script], Path]) -> None:
    def script(peer: socket.socket) -> None:
        _handshake(peer)
        (handle,) = struct.unpack(">Q", _exactly(peer, 28)[8:16])
        peer.sendall(LIES[lie](handle))
        peer.shutdown(socket.SHUT_WR)

    with closing(NbdDisk(serve(script), "x", timeout=5)) as disk, pytest.raises(ToolFailed):
        read(disk, 512, 512)


STATUS_LIES = {
    "another context": struct.pack(">III", 8, 512, 0),
    "an empty run": struct.pack(">III", 7, 0, 0),
    "half a run": struct.pack(">II", 7, 512),
}


@pytest.mark.parametrize("lie", STATUS_LIES)
def test_a_server_that_lies_about_its_blocks(lie: str, serve: Callable[[Script], Path]) -> None:
    def script(peer: socket.socket) -> None:
        _handshake(peer)
        (handle,) = struct.unpack(">Q", _exactly(peer, 28)[8:16])
        peer.sendall(_chunk(handle, 5, STATUS_LIES[lie]))

    with closing(NbdDisk(serve(script), "x", timeout=5)) as disk, pytest.raises(ToolFailed):
        list(disk.extents())


def test_a_server_that_says_no_more(serve: Callable[[Script], Path]) -> None:
    def script(peer: socket.socket) -> None:
        _handshake(peer)
        while peer.recv(1 << 16):
            pass

    with closing(NbdDisk(serve(script), "x", timeout=0.2)) as disk, pytest.raises(TimedOut):
        read(disk, 0, 512)


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-OpenSSH_9.2p1", b"NBDMAGIC" + b"\0" * 10])
def test_another_protocol(greeting: bytes, serve: Callable[[Script], Path]) -> None:
    def script(peer: socket.socket) -> None:
        peer.sendall(greeting)
        peer.shutdown(socket.SHUT_WR)

    with pytest.raises(ToolFailed):
        NbdDisk(serve(script), "x", timeout=5)
