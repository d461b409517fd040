"""The NBD server: what QEMU and our own client read, and what hostile clients get."""

import os
import socket
import struct
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import pytest

from calotype.disk import nbd_protocol as nbd
from calotype.disk.base import Extent
from calotype.disk.nbd import NbdDisk
from calotype.disk.nbd_server import NbdServer
from calotype.errors import NotFound, StoreDamaged, ToolFailed

MIB = 1 << 20
SIZE = 5 * MIB + 512


class Bytes:
    """A disk of random bytes between holes; ``broken`` bytes cannot be read."""

    def __init__(self):
        self.data = bytearray(SIZE)
        self.data[MIB : 2 * MIB] = os.urandom(MIB)
        self.data[-100:] = os.urandom(100)
        self.broken = range(0)
        self.gate = threading.Event()
        self.gate.set()
        self.slow = range(0)

    size = SIZE

    def extents(self):
        end = SIZE - 512
        yield Extent(0, MIB, zero=True)
        yield Extent(MIB, MIB, zero=False)
        yield Extent(2 * MIB, end - 2 * MIB, zero=True)
        yield Extent(end, 512, zero=False)

    def ready(self, offset, _length):
        return not self.slow or offset not in self.slow

    def read_into(self, offset, buffer):
        if offset in self.slow:
            assert self.gate.wait(30)
        if offset < self.broken.stop and offset + len(buffer) > self.broken.start:
            raise StoreDamaged("gone")
        buffer[:] = self.data[offset : offset + len(buffer)]

    def close(self):
        pass


@pytest.fixture
def disk():
    return Bytes()


@pytest.fixture
def path(tmp_path, disk):
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(64)
        server = NbdServer(listener, "disk", disk, ready=disk.ready)
        server.start()
        yield tmp_path / "s"
        server.close()


def qemu(*arguments):
    return subprocess.run(arguments, capture_output=True, timeout=60, check=False, text=True)


def url(path, export="disk"):
    return f"nbd+unix:///{export}?socket={path}"


def test_qemu_reads_all_of_it(path, disk, tmp_path):
    done = qemu("qemu-img", "convert", "-f", "raw", "-O", "raw", url(path), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_bytes() == disk.data


def test_qemu_sees_the_holes(path):
    done = qemu("qemu-img", "map", "-f", "raw", "--output=json", url(path))
    assert done.returncode == 0, done.stderr
    assert (
        '"start": 1048576, "length": 1048576, "depth": 0, "present": true, "zero": false'
        in done.stdout
    )
    assert '"start": 2097152, "length": 3145728' in done.stdout


def test_qemu_cannot_write(path):
    done = qemu("qemu-io", "-f", "raw", "-c", "write 0 512", url(path))
    assert done.returncode
    assert "Permission denied" in done.stderr


def test_our_client(path, disk):
    with closing(NbdDisk(path, "disk")) as client:
        assert client.size == SIZE
        assert list(client.extents()) == list(disk.extents())
        buffer = bytearray(SIZE)
        client.read_into(0, memoryview(buffer))
        assert buffer == disk.data
    with pytest.raises(NotFound):
        NbdDisk(path, "other")


def test_an_error_is_one_requests(path, disk):
    disk.broken = range(MIB, MIB + 1)
    with closing(NbdDisk(path, "disk")) as client:
        with pytest.raises(ToolFailed, match="error 5"):
            client.read_into(0, memoryview(bytearray(2 * MIB)))
        buffer = bytearray(100)
        client.read_into(SIZE - 100, memoryview(buffer))
        assert buffer == disk.data[-100:]


def test_a_read_that_waits_holds_up_no_other(path, disk):
    disk.gate.clear()
    disk.slow = range(MIB, MIB + 4096)
    with Raw(path) as client:
        client.go()
        client.request(nbd.CMD_READ, 1, MIB, 512)
        client.request(nbd.CMD_READ, 2, SIZE - 512, 512)
        assert client.answer() == (2, nbd.REPLY_DATA, disk.data[-512:])
        disk.gate.set()
        assert client.answer() == (1, nbd.REPLY_DATA, disk.data[MIB : MIB + 512])


class Raw:
    """A client that sends what it is told to."""

    def __init__(self, path: Path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(path))
        self.receive(18)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def receive(self, count):
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def flags(self, flags=3):
        self.socket.sendall(struct.pack(">I", flags))

    def option(self, option, data=b"", length=None):
        length = len(data) if length is None else length
        self.socket.sendall(nbd.OPTION_MAGIC + struct.pack(">II", option, length) + data)

    def reply(self):
        magic, _option, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == nbd.OPTION_REPLY_MAGIC
        return kind, self.receive(length)

    def go(self):
        self.flags()
        self.option(nbd.OPT_STRUCTURED_REPLY)
        assert self.reply()[0] == nbd.REP_ACK
        self.option(nbd.OPT_GO, struct.pack(">I4sH", 4, b"disk", 0))
        while self.reply()[0] != nbd.REP_ACK:
            pass

    def request(self, command, handle, offset, length, magic=nbd.REQUEST_MAGIC):
        self.socket.sendall(struct.pack(">IHHQQI", magic, 0, command, handle, offset, length))

    def answer(self):
        magic, _flags, kind, handle, length = struct.unpack(">IHHQI", self.receive(20))
        assert magic == nbd.STRUCTURED_MAGIC
        payload = self.receive(length)
        return handle, kind, payload[8:] if kind == nbd.REPLY_DATA else payload

    def gone(self):
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (SIZE, 1),
        (0, SIZE + 1),
        (SIZE - 1, 2),
        (2**64 - 1, 1),
        (2**63, 2**32 - 1),
        (0, 0),
        (0, 2**32 - 1),
    ],
)
def test_reads_beyond_the_disk_are_refused(path, disk, offset, length):
    with Raw(path) as client:
        client.go()
        client.request(nbd.CMD_READ, 7, offset, length)
        handle, kind, payload = client.answer()
        assert (handle, kind, payload[:4]) == (7, nbd.REPLY_ERROR, struct.pack(">I", 22))
        client.request(nbd.CMD_READ, 8, MIB, 10)
        assert client.answer()[2] == disk.data[MIB : MIB + 10]


@pytest.mark.parametrize("command", [1, 3, 4, 5, 6, 8, 99])
def test_what_is_no_read_ends_the_connection(path, command):
    with Raw(path) as client:
        client.go()
        client.request(command, 1, 0, 2**32 - 1)
        assert client.answer()[1] == nbd.REPLY_ERROR
        assert client.gone()


def test_block_status_needs_its_context(path):
    with Raw(path) as client:
        client.go()
        client.request(nbd.CMD_BLOCK_STATUS, 1, 0, 512)
        assert client.answer()[1] == nbd.REPLY_ERROR


@pytest.mark.parametrize(
    "talk",
    [
        lambda c: c.socket.sendall(b"\xff" * 4),
        lambda c: c.flags(0),
        lambda c: c.flags(7),
        lambda c: (c.flags(), c.socket.sendall(b"GARBAGE!" * 2)),
        lambda c: (c.flags(), c.option(nbd.OPT_GO, length=2**32 - 1)),
        lambda c: (c.flags(), [c.option(nbd.OPT_LIST, b"x") for _ in range(100)]),
        lambda c: (c.go(), c.socket.sendall(b"\0" * 28)),
        lambda c: (c.go(), c.request(nbd.CMD_DISC, 0, 0, 0)),
    ],
    ids=["flags", "old", "unknown", "magic", "huge", "endless", "request", "leaves"],
)
def test_garbage_ends_the_connection_and_nothing_else(path, disk, talk):
    with Raw(path) as client:
        try:
            talk(client)
            while not client.gone():
                pass
        except BrokenPipeError:
            pass
    with closing(NbdDisk(path, "disk")) as other:
        buffer = bytearray(512)
        other.read_into(SIZE - 512, memoryview(buffer))
        assert buffer == disk.data[-512:]


@pytest.mark.parametrize(
    ("option", "data", "kind"),
    [
        (nbd.OPT_GO, b"", nbd.REP_ERROR_INVALID),
        (nbd.OPT_GO, struct.pack(">I", 2**32 - 1), nbd.REP_ERROR_INVALID),
        (nbd.OPT_GO, struct.pack(">I4sH", 4, b"disk", 9), nbd.REP_ERROR_INVALID),
        (nbd.OPT_GO, struct.pack(">I4sH", 4, b"disc", 0), nbd.REP_ERROR_UNKNOWN),
        (nbd.OPT_GO, struct.pack(">I4sH", 4, b"disk", 0), nbd.REP_ERROR_POLICY),  # no structure
        (nbd.OPT_SET_META_CONTEXT, struct.pack(">I4sI", 4, b"disk", 1), nbd.REP_ERROR_INVALID),
        (
            nbd.OPT_SET_META_CONTEXT,
            struct.pack(">I4sII", 4, b"disk", 2**32 - 1, 2**31),
            nbd.REP_ERROR_INVALID,
        ),
        (5, b"", nbd.REP_ERROR_UNSUPPORTED),
        (1, b"disk", nbd.REP_ERROR_UNSUPPORTED),
    ],
)
def test_options_that_make_no_sense(path, option, data, kind):
    with Raw(path) as client:
        client.flags()
        client.option(option, data)
        assert client.reply()[0] == kind
        client.option(nbd.OPT_LIST)
        assert client.reply() == (nbd.REP_SERVER, struct.pack(">I", 4) + b"disk")


def test_who_does_not_read_stalls_nobody(path, disk):
    with Raw(path) as lazy:
        lazy.go()
        for handle in range(30):
            lazy.request(nbd.CMD_READ, handle, 0, 4 * MIB)
        with closing(NbdDisk(path, "disk")) as other:
            buffer = bytearray(MIB)
            other.read_into(MIB, memoryview(buffer))
            assert buffer == disk.data[MIB : 2 * MIB]


def test_many_clients_at_once(path, disk):
    def work():
        with closing(NbdDisk(path, "disk", connections=1)) as client:
            for _ in range(20):
                buffer = bytearray(70_000)
                client.read_into(MIB + 1000, memoryview(buffer))
                assert buffer == disk.data[MIB + 1000 : MIB + 71_000]

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
