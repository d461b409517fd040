"""A local cache of packs, in front of a store that is far away.

Only packs are kept: they never change, their names are their content, and nobody asks by reading one whether
it is still there. Indexes and all the rest are asked for each time, as an old answer might be wrong.

Packs are kept in blocks; each is one file, written whole and renamed, with a checksum over what it is. A
block that is damaged is dropped and fetched again. Ranges of blocks are locked while they are fetched (by
the kernel, between threads and processes alike), so that many readers of one pack fetch it once.
"""

import contextlib
import fcntl
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from calotype.store.blocks import Block, BlockFiles
from calotype.store.objects import (
    Bytes,
    ObjectStore,
    ObjectWriter,
    Stored,
    check_key,
    truncated,
)
from calotype.store.pack import PREFIX

BLOCK = 256 << 10  # bytes; what is read around a frame that nobody has asked for

_FLOCK = struct.Struct("hhqqi4x")
_NAME_BITS, _NUMBER_BITS = 37, 25  # of a lock's place: the object's name, the block's number


def uncached(objects: ObjectStore) -> ObjectStore:
    """The store itself, for those who want to know what it holds now."""
    return objects.inner if isinstance(objects, CacheStore) else objects


class CacheStore:
    """Another store, whose packs are kept in a directory. For several threads and processes at once."""

    def __init__(
        self, inner: ObjectStore, path: Path, limit: int, *, name: str = "", block: int = BLOCK
    ) -> None:
        """Keep at most ``limit`` bytes in ``path``; stores of different ``name`` may share it."""
        self.inner = inner
        self._name = name
        self._block = block
        self._files = BlockFiles(path, limit)
        self._sizes: dict[str, int] = {}  # of packs that a listing showed

    def get(self, key: str) -> bytes:
        """The whole object."""
        if not _kept(key):
            return self.inner.get(key)
        if (size := self._size(key)) is not None:
            return self._read(key, 0, size, size)
        with self._locked(key, 0, 1 << _NUMBER_BITS):
            if (size := self._size(key)) is None:
                data = self.inner.get(key)
                self._keep(key, 0, data, len(data))
                return data
        return self._read(key, 0, size, size)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes of an object."""
        if not _kept(key):
            return self.inner.get_range(key, offset, length)
        size = self._size(key)
        if size is None:
            size = self._sizes[key] = self.inner.size(key)
        if offset < 0 or length < 0 or offset + length > size:
            raise truncated(key, offset + length)
        return self._read(key, offset, length, size) if length else b""

    def _size(self, key: str) -> int | None:
        """The size of an object of which something is kept or was listed."""
        if (size := self._sizes.get(key)) is not None:
            return size
        first = self._files.read(self._entry(key), 0)
        if first is not None:
            self._sizes[key] = first.size
            return first.size
        return None

    def _read(self, key: str, offset: int, length: int, size: int) -> bytes:
        first, last = offset // self._block, max(0, offset + length - 1) // self._block
        entry = self._entry(key)
        found = {n: self._files.read(entry, n) for n in range(first, last + 1)}
        for start, end in _runs(
            [n for n, block in found.items() if not self._fits(block, n, size)]
        ):
            with self._locked(key, start, end - start):
                self._fetch(key, start, end, size, found)
        pieces: list[memoryview] = []
        for n in range(first, last + 1):
            block, base = found[n], n * self._block
            if block is not None:
                pieces.append(
                    memoryview(block.data)[max(0, offset - base) : offset + length - base]
                )
        return b"".join(pieces)

    def _fetch(
        self, key: str, first: int, end: int, size: int, found: dict[int, Block | None]
    ) -> None:
        """Find what another reader has fetched meanwhile; fetch and keep the rest."""
        entry = self._entry(key)
        for n in range(first, end):
            found[n] = self._files.read(entry, n)
        for start, stop in _runs(
            [n for n in range(first, end) if not self._fits(found[n], n, size)]
        ):
            at = start * self._block
            data = self.inner.get_range(key, at, min(stop * self._block, size) - at)
            found.update(self._keep(key, start, data, size))

    def _fits(self, block: Block | None, number: int, size: int) -> bool:
        """Whether this is a whole block of an object of this size."""
        return (
            block is not None
            and block.size == size
            and len(block.data) == min(self._block, size - number * self._block)
        )

    def _keep(self, key: str, first: int, data: bytes, size: int) -> dict[int, Block]:
        """Keep ``data``, which starts at block ``first``, as blocks."""
        view = memoryview(data)
        blocks = [
            Block(view[at : at + self._block], size)
            for at in range(0, max(1, len(data)), self._block)
        ]
        self._files.write(self._entry(key), first, blocks)
        self._sizes[key] = size
        return dict(enumerate(blocks, first))

    def _entry(self, key: str) -> str:
        """The name of an object in the cache."""
        return blake3(f"{self._name}\n{check_key(key)}\n{self._block}".encode()).hexdigest(32)

    @contextlib.contextmanager
    def _locked(self, key: str, first: int, count: int) -> Iterator[None]:
        """Hold these blocks of an object; whoever wants one of them waits."""
        # A lock belongs to an open file, so one file serves threads and processes, and ends with them.
        name = int(self._entry(key)[:16], 16) >> (64 - _NAME_BITS)
        start = (name << _NUMBER_BITS) + first
        with self._files.lock_file() as fd:
            if fd is not None:
                wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, count, 0)
                with contextlib.suppress(
                    OSError
                ):  # a directory without locks: fetched twice, at worst
                    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, wanted)
            yield

    def _forget(self, key: str) -> None:
        if _kept(key):
            self._sizes.pop(key, None)
            self._files.drop(self._entry(key))

    def fresh(self, key: str) -> ObjectStore:
        """The store itself; what was kept of ``key`` is forgotten."""
        self._forget(key)
        return self.inner

    def size(self, key: str) -> int:
        """The object's size in bytes, as the store itself says."""
        return self.inner.size(key)

    def list(self, prefix: str = "") -> Iterator[Stored]:
        """The objects whose keys start with ``prefix``, sorted by key, as the store itself says."""
        for stored in self.inner.list(prefix):
            if _kept(stored.key):
                self._sizes[stored.key] = stored.size
            yield stored

    def put(self, key: str, data: Bytes | Iterable[Bytes], *, if_absent: bool = False) -> bool:
        """Keep ``data`` as ``key``."""
        try:
            return self.inner.put(key, data, if_absent=if_absent)
        finally:
            self._forget(key)

    def writer(self) -> ObjectWriter:
        """Start an object whose key is known only at its end."""
        return _CacheWriter(self.inner.writer(), self._forget)

    def delete(self, key: str) -> None:
        """Remove an object."""
        self._forget(key)
        self.inner.delete(key)
        self._forget(key)

    def persist(self, prefix: str) -> None:
        """Return when what a listing of ``prefix`` shows survives a power cut."""
        self.inner.persist(prefix)

    def leftovers(self) -> Sequence[str]:
        """Names of unfinished objects whose writers are gone."""
        return self.inner.leftovers()

    def sweep(self) -> Sequence[str]:
        """Remove the leftovers, and return their names."""
        return self.inner.sweep()

    def close(self) -> None:
        """Release what it holds; the cache stays."""
        self.inner.close()


class _CacheWriter:
    """An object that is being written; nothing is kept under its key from before."""

    def __init__(self, inner: ObjectWriter, forget: Callable[[str], None]) -> None:
        self._inner = inner
        self._forget = forget

    def write(self, buffers: Sequence[Bytes]) -> None:
        """Append the buffers."""
        self._inner.write(buffers)

    def commit(self, key: str) -> None:
        """Make the object durable and visible as ``key``."""
        try:
            self._inner.commit(key)
        finally:
            self._forget(key)

    def abort(self) -> None:
        """Drop what was written."""
        self._inner.abort()


def _kept(key: str) -> bool:
    return key.startswith(PREFIX)


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as runs ``[first, end)``."""
    first = end = -1
    for n in numbers:
        if n != end:
            if end > first:
                yield first, end
            first = n
        end = n + 1
    if end > first:
        yield first, end
