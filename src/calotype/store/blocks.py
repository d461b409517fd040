"""The files of the cache: one for each block, none trusted, the least recently used removed first.

    <path>/blocks/<entry>/<number>    the block's bytes, u64 size of its object, 32-byte BLAKE3
    <path>/tmp/                       files being written
    <path>/usage                      u64: bytes of all blocks; locked while it is changed
    <path>/locks                      empty; what is being fetched, as locks on its ranges

Nothing here is synced: what a power cut leaves half-written does not match its checksum, and is dropped.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from calotype.store.directory import write_all
from calotype.store.objects import Bytes

log = logging.getLogger("calotype.store")

_SIZE = struct.Struct("<Q")
_TAIL = _SIZE.size + 32
_LOW = 0.9  # of the limit, that an eviction leaves
_STALE = 3600  # seconds after which a file being written has no writer any more


class Block(NamedTuple):
    """Some bytes of an object, and the size of the whole object."""

    data: Bytes
    size: int


class BlockFiles:
    """Blocks in a directory. Never fails for want of room or rights: then it keeps nothing."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = os.path.abspath(path)
        self._limit = limit
        self._warned = False
        for name in ("", "blocks", "tmp"):
            os.makedirs(os.path.join(self._path, name), mode=0o700, exist_ok=True)

    def _file(self, entry: str, number: int) -> str:
        return os.path.join(self._path, "blocks", entry, str(number))

    def read(self, entry: str, number: int) -> Block | None:
        """A block that is there and whole; it is now the most recently used."""
        path = self._file(entry, number)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            length = os.fstat(fd).st_size - _TAIL
            data, tail = bytearray(max(0, length)), bytearray(_TAIL)
            whole = os.preadv(fd, [data, tail], 0) == length + _TAIL
            os.utime(fd)
        except OSError:
            whole = False
        finally:
            os.close(fd)
        if not whole or tail[-32:] != _digest(entry, number, data, tail[:-32]):
            log.warning("the cache holds a damaged block; it is fetched again")
            self._remove(path)
            return None
        return Block(data, _SIZE.unpack(tail[:-32])[0])

    def write(self, entry: str, first: int, blocks: Sequence[Block]) -> None:
        """Keep consecutive blocks of an object, and remove old ones when there is no room."""
        written: list[str] = []
        try:
            for number, block in enumerate(blocks, first):
                written.append(self._temporary(entry, number, block))
            with self._usage() as usage:
                for number, path in enumerate(written, first):
                    usage.add(os.stat(path).st_size)
                    self._place(path, self._file(entry, number))
        except OSError as error:
            for path in written:
                self._remove(path)
            self._warn(error)

    def _temporary(self, entry: str, number: int, block: Block) -> str:
        size = _SIZE.pack(block.size)
        path = os.path.join(self._path, "tmp", f"{os.getpid()}-{secrets.token_hex(8)}")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, [block.data, size, _digest(entry, number, block.data, size)])
        except OSError:
            self._remove(path)
            raise
        finally:
            os.close(fd)
        return path

    @staticmethod
    def _place(temporary: str, path: str) -> None:
        try:
            os.rename(temporary, path)
        except FileNotFoundError:  # it is the first block of its object
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            os.rename(temporary, path)

    def drop(self, entry: str) -> None:
        """Remove all blocks of an object."""
        directory = os.path.join(self._path, "blocks", entry)
        if os.path.isdir(directory):
            shutil.rmtree(directory, ignore_errors=True)

    def _remove(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(path)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning("the store's cache cannot be written: %s", error.strerror or error)

    @contextlib.contextmanager
    def lock_file(self) -> Iterator[int | None]:
        """A file of one's own to lock; None where files cannot be opened."""
        try:
            fd = os.open(
                os.path.join(self._path, "locks"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            self._warn(error)
            yield None
            return
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _usage(self) -> Iterator["_Usage"]:
        fd = os.open(
            os.path.join(self._path, "usage"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            usage = _Usage(fd)
            yield usage
            if usage.bytes is None or usage.bytes > self._limit:
                usage.bytes = self._evict()
            os.pwrite(fd, _SIZE.pack(usage.bytes), 0)
        finally:
            os.close(fd)

    def _evict(self) -> int:
        """Remove the least recently used blocks until there is room; the bytes that stay."""
        found = sorted(self._scan())
        total = sum(size for _, size, _ in found)
        if total > self._limit:
            for _used, size, path in found:
                if total <= self._limit * _LOW:
                    break
                self._remove(path)
                with contextlib.suppress(OSError):
                    os.rmdir(os.path.dirname(path))
                total -= size
        return total

    def _scan(self) -> Iterator[tuple[int, int, str]]:
        """All blocks: when each was used last, its bytes and its path."""
        with contextlib.suppress(OSError), os.scandir(os.path.join(self._path, "tmp")) as entries:
            for file in entries:
                if file.stat(follow_symlinks=False).st_mtime < time.time() - _STALE:
                    self._remove(file.path)
        for directory, _names, files in os.walk(os.path.join(self._path, "blocks")):
            for name in files:
                path = os.path.join(directory, name)
                with contextlib.suppress(OSError):
                    status = os.lstat(path)
                    yield status.st_mtime_ns, status.st_size, path


class _Usage:
    """The bytes of all blocks, as all processes count them; None when nobody counted yet."""

    def __init__(self, fd: int) -> None:
        raw = os.pread(fd, _SIZE.size, 0)
        self.bytes: int | None = _SIZE.unpack(raw)[0] if len(raw) == _SIZE.size else None

    def add(self, count: int) -> None:
        if self.bytes is not None:
            self.bytes += count


def _digest(entry: str, number: int, data: Bytes, size: bytes | bytearray) -> bytes:
    return blake3(data).update(bytes(size) + f"{entry}/{number}".encode()).digest()
