"""A disk whose every write is recorded, and the disk again as a power cut at any moment would leave it.

``qemu-storage-daemon`` exports a file through FUSE and logs each write and flush (``blklogwrites``); a loop
device makes a disk of it, and a file system on that holds a Calotype home. What a workload acknowledged is
written into the same log, as marks behind the file system, so that the order of everything is one.

Needs root, loop devices and FUSE. This is a test's tool on data of its own; the product mounts nothing.
"""

import ctypes
import fcntl
import gc
import json
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

SECTOR = 512
BLOCK = 4096  # what a disk writes whole
MARKS = 1 << 20  # bytes behind the file system, for marks
_ENTRY = struct.Struct("<4Q")  # sector, sectors, flags, length of data
_SUPER = struct.Struct("<3QI")  # magic, version, entries, bytes in a sector
_MAGIC = 0x6A736677736872
_FLUSH, _FUA, _DISCARD = 1, 2, 4
_BLKFLSBUF = 0x1261

libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A kind of file system: how it is made, and mounted."""

    name: str
    size: int
    make: tuple[str, ...]
    options: str = ""


FILE_SYSTEMS = {
    kind.name: kind
    for kind in (
        FileSystem(
            "ext4",
            128 << 20,
            ("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0"),
        ),
        FileSystem("xfs", 320 << 20, ("mkfs.xfs", "-q", "-f"), "nouuid"),
        FileSystem("btrfs", 256 << 20, ("mkfs.btrfs", "-q", "-f"), "nodiscard"),
    )
}


def mount(device: str, target: Path, kind: FileSystem) -> None:
    """Mount a device.

    Raises:
        OSError: the kernel refuses.
    """
    data = kind.options.encode() or None
    done = libc.mount(device.encode(), os.fsencode(target), kind.name.encode(), 0, data)
    if done:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))


def unmount(target: Path) -> None:
    """Unmount; what was just closed, or forgotten open, may keep it busy for a moment."""
    for _ in range(500):
        if not libc.umount2(os.fsencode(target), 0):
            return
        code = ctypes.get_errno()
        gc.collect()
        time.sleep(0.01)  # the kernel tells nobody when a mount is no longer busy
    raise OSError(code, os.strerror(code), str(target))


@contextmanager
def loop_device(file: Path, size: int) -> Iterator[str]:
    """A loop device over the first ``size`` bytes of a file."""
    made = subprocess.run(
        ["losetup", "--find", "--show", "--sizelimit", str(size), file],
        check=True,
        capture_output=True,
        text=True,
    )
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


class Recorder:
    """A mounted file system, empty at first, that is being recorded. A context manager.

    ``room`` gets ``start.raw`` (the fresh file system), ``log``, and ``end.raw`` (the disk at the end).
    """

    def __init__(self, room: Path, mountpoint: Path, kind: FileSystem) -> None:
        self._room = room
        self._mountpoint = mountpoint
        self._kind = kind
        self._stack = ExitStack()
        self._marks = -1

    def __enter__(self) -> Self:
        room, size = self._room, self._kind.size
        start, disk, log, export = (room / n for n in ("start.raw", "disk.raw", "log", "export"))
        for path in (start, disk, log, export):
            path.unlink(missing_ok=True)
            path.touch()
        os.truncate(start, size)
        subprocess.run([*self._kind.make, start], check=True, capture_output=True)
        subprocess.run(["cp", "--sparse=always", start, disk], check=True)
        os.truncate(disk, size + MARKS)
        os.truncate(log, 16 << 30)
        with ExitStack() as stack:
            stack.callback(disk.rename, room / "end.raw")
            stack.enter_context(_storage_daemon(disk, log, export))
            self._marks = os.open(export, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, self._marks)
            device = stack.enter_context(loop_device(export, size))
            self._mountpoint.mkdir(parents=True, exist_ok=True)
            mount(device, self._mountpoint, self._kind)
            stack.callback(unmount, self._mountpoint)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def mark(self, event: Mapping[str, Any]) -> None:
        """Write an event into the log, after everything that was written until now."""
        data = json.dumps(event).encode()
        data = data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\0")
        os.pwrite(self._marks, data, self._kind.size)


@contextmanager
def _storage_daemon(disk: Path, log: Path, export: Path) -> Iterator[None]:
    process = subprocess.Popen(
        [
            "qemu-storage-daemon",
            *("--blockdev", f"driver=file,node-name=disk,filename={disk}"),
            *("--blockdev", f"driver=file,node-name=log,filename={log}"),
            "--blockdev",
            f"driver=blklogwrites,node-name=recorded,file=disk,log=log,log-sector-size={SECTOR}",
            "--export",
            f"type=fuse,id=export,node-name=recorded,mountpoint={export},writable=on",
        ]
    )
    try:
        for _ in range(1000):
            if os.path.ismount(export) or export.stat().st_size:
                break
            if process.poll() is not None:
                raise RuntimeError("qemu-storage-daemon did not start")
            time.sleep(0.01)  # it tells nobody when its export is there
        yield
    finally:
        process.terminate()
        process.wait()


@dataclass(frozen=True, slots=True)
class Mark:
    """An event and where in the log it stands."""

    entry: int
    event: dict[str, Any]


class Log:
    """A recorded log: arrays with one element for each entry."""

    def __init__(self, path: Path, size: int) -> None:
        """Read the log at ``path`` of a file system of ``size`` bytes.

        Raises:
            ValueError: it holds what nothing here writes (discards, forced writes).
        """
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        magic, _version, entries, sector = _SUPER.unpack(os.pread(self._fd, _SUPER.size, 0))
        if magic != _MAGIC or sector != SECTOR:
            raise ValueError(f"{path} is no log of blklogwrites")
        offset, length, data, flush = [], [], [], []
        at = SECTOR
        for _ in range(entries):
            first, count, flags, _ = _ENTRY.unpack(os.pread(self._fd, _ENTRY.size, at))
            if flags & (_FUA | _DISCARD):
                raise ValueError(f"{path}: entry with flags {flags:#x}")
            at += SECTOR
            offset.append(first * SECTOR)
            length.append(count * SECTOR)
            data.append(at)
            flush.append(bool(flags & _FLUSH))
            at += count * SECTOR
        self.offset: npt.NDArray[np.int64] = np.array(offset, dtype=np.int64)
        self.length: npt.NDArray[np.int64] = np.array(length, dtype=np.int64)
        self.flush: npt.NDArray[np.bool_] = np.array(flush, dtype=bool)
        self.is_mark: npt.NDArray[np.bool_] = (self.offset >= size) & ~self.flush
        self.is_write: npt.NDArray[np.bool_] = ~self.flush & ~self.is_mark & (self.length > 0)
        self._data = data

    def __len__(self) -> int:
        return len(self.offset)

    def data(self, entry: int) -> bytes:
        """What a write wrote."""
        return os.pread(self._fd, int(self.length[entry]), self._data[entry])

    @cached_property
    def marks(self) -> list[Mark]:
        """All marks, in order."""
        return [
            Mark(int(entry), json.loads(self.data(int(entry)).rstrip(b"\0")))
            for entry in np.flatnonzero(self.is_mark)
        ]

    def flushed(self, entry: int) -> int:
        """The first entry that no flush before (or at) ``entry`` made durable."""
        flushes = np.flatnonzero(self.flush[: entry + 1])
        return int(flushes[-1]) + 1 if len(flushes) else 0

    def unflushed(self, entry: int) -> list[int]:
        """The writes up to ``entry`` (inclusive) that a power cut after it may lose."""
        start = self.flushed(entry)
        return (np.flatnonzero(self.is_write[start : entry + 1]) + start).tolist()


class Rebuilder:
    """The recorded disk as of any entry, in a file that is filled anew each time.

    Ask for entries in ascending order: what is durable is only ever added to.
    """

    def __init__(self, log: Log, start: Path, scratch: Path) -> None:
        self._log = log
        self._size = start.stat().st_size
        self._disk = np.fromfile(start, dtype=np.uint8)
        blocks = self._disk.reshape(-1, BLOCK).view(np.uint64)
        self._used: npt.NDArray[np.bool_] = np.asarray(blocks.any(axis=1))
        self._applied = 0
        self._fd = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.truncate(scratch, self._size)

    def rebuild(self, entry: int, blocks: Mapping[int, npt.NDArray[np.bool_]] | None) -> None:
        """Fill the file with what a power cut after ``entry`` leaves.

        Args:
            entry: the last entry that the disk was given.
            blocks: for each unflushed write, which of its 4 KiB blocks reached the disk; None: all did.
        """
        durable = self._log.flushed(entry)
        for number in range(self._applied, durable):
            if self._log.is_write[number]:
                self._apply(number)
        self._applied = max(self._applied, durable)
        os.ftruncate(self._fd, 0)
        os.ftruncate(self._fd, self._size)
        edges = np.flatnonzero(np.diff(np.concatenate(([False], self._used, [False]))))
        for first, last in (edges.reshape(-1, 2) * BLOCK).tolist():
            os.pwrite(self._fd, self._disk[first:last].data, first)
        for number in self._log.unflushed(entry):
            self._partly(number, None if blocks is None else blocks[number])

    def _apply(self, number: int) -> None:
        at, length = int(self._log.offset[number]), int(self._log.length[number])
        self._disk[at : at + length] = np.frombuffer(self._log.data(number), dtype=np.uint8)
        self._used[at // BLOCK : -(-(at + length) // BLOCK)] = True

    def _partly(self, number: int, wanted: npt.NDArray[np.bool_] | None) -> None:
        at, data = int(self._log.offset[number]), self._log.data(number)
        if wanted is None:
            os.pwrite(self._fd, data, at)
            return
        for piece in np.flatnonzero(wanted).tolist():
            part = data[piece * BLOCK : (piece + 1) * BLOCK]
            os.pwrite(self._fd, part, at + piece * BLOCK)


def leads_to(log: Log, start: Path, end: Path) -> bool:
    """Whether all writes of a log together make of one disk the other one."""
    disk = np.fromfile(start, dtype=np.uint8)
    for number in np.flatnonzero(log.is_write).tolist():
        at, length = int(log.offset[number]), int(log.length[number])
        disk[at : at + length] = np.frombuffer(log.data(number), dtype=np.uint8)
    return bool(np.array_equal(disk, np.fromfile(end, np.uint8, len(disk))))


class Bench:
    """A scratch disk that is mounted again and again. A context manager."""

    def __init__(self, scratch: Path, mountpoint: Path, kind: FileSystem) -> None:
        self.scratch = scratch
        self._mountpoint = mountpoint
        self._kind = kind
        self._stack = ExitStack()
        self._device = ""

    def __enter__(self) -> Self:
        self.scratch.touch()
        os.truncate(self.scratch, self._kind.size)
        self._device = self._stack.enter_context(loop_device(self.scratch, self._kind.size))
        subprocess.run(["blockdev", "--setra", "8192", self._device], check=True)  # 4 MiB at once
        self._mountpoint.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.scratch.unlink()

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Bring the file system up, whatever state it is in.

        Raises:
            OSError: it does not come up.
        """
        fd = os.open(self._device, os.O_RDONLY)
        fcntl.ioctl(fd, _BLKFLSBUF)  # the file beneath was filled anew
        os.close(fd)
        mount(self._device, self._mountpoint, self._kind)
        try:
            yield
        finally:
            unmount(self._mountpoint)


def private_mounts() -> None:
    """Let this process mount for itself alone."""
    if libc.unshare(0x00020000) or libc.mount(b"none", b"/", None, 0x44000, None):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def possible() -> bool:
    """Whether this machine can do it at all."""
    tools = all(map(shutil.which, ("qemu-storage-daemon", "losetup", "mkfs.ext4")))
    return tools and os.geteuid() == 0 and os.path.exists("/dev/loop-control")
