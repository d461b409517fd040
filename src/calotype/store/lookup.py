"""Lookup tables: sorted 64-bit prefixes of digests, and where each chunk is.

A table covers whole packs of one kind and domain. A small one is in memory, at 16 bytes a chunk; a large one
is a file of the lookup directory, of which memory holds one prefix in 64. A file is a cache: it can be made
again from the packs, and nothing in it is believed. Its head is under a checksum; a place that it names
counts only after the full digest was compared with the pack's own footer; what it does not find, a reader
looks up again without it.
"""

import contextlib
import fcntl
import os
import secrets
import struct
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from calotype.errors import InvalidInput
from calotype.store.digest import DIGEST, Bytes32, Ints, pack_name, unpack_name
from calotype.store.pack import PREFIX, Kind, Pack

SHIFT = 32  # a place is a pack's number, then the chunk's number in that pack
LOW = (1 << SHIFT) - 1

_HEAD = struct.Struct("<8sHHIQ64s")  # magic, version, kind, packs, rows, domain
_MAGIC = b"CALOLOOK"
_VERSION = 1
_SEAL = 32  # bytes of the BLAKE3 of what precedes it
_ROW = 16  # bytes: prefix, place
_BLOCK = 64  # rows of a file that are read at once; the first prefix of each block is in memory
_SMALL = 1 << 19  # rows of a file that are read into memory as a whole
_SLICE = 1 << 18  # rows merged at once
_SUFFIX, _PART = ".table", ".part"

Prefixes = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]
Rows = tuple[Prefixes, Ints]  # prefixes and places, of one length


class Group(NamedTuple):
    """Which chunks a table holds."""

    kind: Kind
    domain: str


class Listed(NamedTuple):
    """A pack that a table covers; ``size`` in bytes."""

    key: str
    size: int
    chunks: int


class Table(Protocol):
    """Rows in the order of their prefixes; places name packs by their number in ``packs``.

    Safe to use from several threads at once.
    """

    group: Group
    packs: Sequence[Listed]
    path: Path | None  # where it is also found by other processes

    def __len__(self) -> int:
        """The number of rows."""
        ...

    def candidates(self, wanted: Prefixes) -> tuple[Ints, Ints]:
        """All rows that have one of the wanted prefixes: which of ``wanted`` it is, and the place."""
        ...

    def search(self, wanted: Prefixes) -> Ints:
        """The first row that is not below each wanted prefix."""
        ...

    def rows(self, first: int, last: int) -> Rows:
        """The rows ``[first, last)``."""
        ...


class MemoryTable:
    """A table in memory."""

    def __init__(
        self, group: Group, packs: Sequence[Listed], rows: Rows, path: Path | None = None
    ) -> None:
        self.group = group
        self.packs = packs
        self.path = path
        self._prefix, self._place = rows

    def __len__(self) -> int:
        return len(self._prefix)

    def candidates(self, wanted: Prefixes) -> tuple[Ints, Ints]:
        """All rows that have one of the wanted prefixes: which of ``wanted`` it is, and the place."""
        which, at = np.arange(len(wanted)), self.search(wanted)
        found: list[tuple[Ints, Ints]] = []
        while len(which) or not found:  # equal prefixes stand side by side
            inside = at < len(self._prefix)
            inside[inside] = self._prefix[at[inside]] == wanted[which[inside]]
            which, at = which[inside], at[inside]
            found.append((which, self._place[at]))
            at = at + 1
        return _joined(found)

    def search(self, wanted: Prefixes) -> Ints:
        """The first row that is not below each wanted prefix."""
        return np.searchsorted(self._prefix, wanted).astype(np.int64, copy=False)

    def rows(self, first: int, last: int) -> Rows:
        """The rows ``[first, last)``."""
        return self._prefix[first:last], self._place[first:last]


class FileTable:
    """A table in a file, of which only the first prefix of each block is in memory."""

    def __init__(
        self,
        group: Group,
        packs: Sequence[Listed],
        *,
        path: Path,
        fd: int,
        start: int,
        rows: int,
        fences: Prefixes,
    ) -> None:
        self.group = group
        self.packs = packs
        self.path: Path | None = path
        self._fd = fd
        self._start = start
        self._rows = rows
        self._fences = fences
        weakref.finalize(self, os.close, fd)

    def __len__(self) -> int:
        return self._rows

    def candidates(self, wanted: Prefixes) -> tuple[Ints, Ints]:
        """All rows that have one of the wanted prefixes: which of ``wanted`` it is, and the place."""
        which, block = np.arange(len(wanted)), self._block(wanted)
        found: list[tuple[Ints, Ints]] = []
        while len(which) or not found:  # equal prefixes may go on in the next block
            rows = self._blocks(block)
            hit, row = np.nonzero(rows[:, :, 0] == wanted[which][:, None])
            found.append((which[hit], rows[hit, row, 1].view(np.int64)))
            block = block + 1
            more = block < len(self._fences)
            more[more] = self._fences[block[more]] == wanted[which[more]]
            which, block = which[more], block[more]
        return _joined(found)

    def search(self, wanted: Prefixes) -> Ints:
        """The first row that is not below each wanted prefix."""
        block = self._block(wanted)
        below = (self._blocks(block)[:, :, 0] < wanted[:, None]).sum(axis=1)
        row: Ints = np.minimum(block * _BLOCK + below, self._rows)
        return row

    def rows(self, first: int, last: int) -> Rows:
        """The rows ``[first, last)``."""
        rows = self._read(self._start + first * _ROW, (last - first) * _ROW).reshape(-1, 2)
        return np.ascontiguousarray(rows[:, 0]), np.ascontiguousarray(rows[:, 1]).view(np.int64)

    def _block(self, wanted: Prefixes) -> Ints:
        """The last block whose first prefix is below the wanted one, or the first block."""
        return np.maximum(np.searchsorted(self._fences, wanted) - 1, 0).astype(np.int64)

    def _blocks(self, blocks: Ints) -> npt.NDArray[np.uint64]:
        """The rows of these blocks, shape (n, 64, 2); the last one ends in rows without a place."""
        size = _BLOCK * _ROW
        start, fd = self._start, self._fd
        data = b"".join([os.pread(fd, size, start + b * size) for b in blocks.tolist()])
        if len(data) != len(blocks) * size:
            raise ValueError("a lookup table was cut off")
        return np.frombuffer(data, dtype="<u8").reshape(-1, _BLOCK, 2)

    def _read(self, offset: int, length: int) -> npt.NDArray[np.uint64]:
        data = os.pread(self._fd, length, offset)
        if len(data) != length:
            raise ValueError("a lookup table was cut off")
        return np.frombuffer(data, dtype="<u8")


def prefixes(digests: Bytes32) -> Prefixes:
    """The first 64 bits of each digest."""
    found = np.ascontiguousarray(digests[:, :8]).view("<u8").reshape(-1)
    return found.astype(np.uint64, copy=False)


def table_of(group: Group, packs: Sequence[Pack]) -> Table:
    """A table, in memory, of these packs."""
    prefix = np.concatenate([prefixes(p.digests) for p in packs])
    places = [np.arange(len(p.lengths), dtype=np.int64) | n << SHIFT for n, p in enumerate(packs)]
    order = np.argsort(prefix, kind="stable")
    names = [Listed(p.key, p.size, len(p.lengths)) for p in packs]
    return MemoryTable(group, names, (prefix[order], np.concatenate(places)[order]))


def merge(tables: Sequence[Table], live: Sequence[Flags], directory: Path | None) -> Table:
    """One table of the ``live`` packs of these tables (all of one group).

    It becomes a file of ``directory``, or stays in memory when that is None.

    Raises:
        ValueError: a table's file is damaged.
        OSError: the file cannot be written.
    """
    group = tables[0].group
    packs: list[Listed] = []
    renumber: list[Ints] = []
    for table, alive in zip(tables, live, strict=True):
        numbers = np.full(len(alive), -1, dtype=np.int64)
        numbers[alive] = np.arange(int(alive.sum())) + len(packs)
        packs += [table.packs[i] for i in np.flatnonzero(alive).tolist()]
        renumber.append(numbers)
    rows = sum(p.chunks for p in packs)
    slices = _slices(tables, renumber)
    if directory is not None:
        return _write(directory, group, packs, rows, slices)
    prefix, place = np.empty(rows, dtype=np.uint64), np.empty(rows, dtype=np.int64)
    for at, (some, places) in _counted(slices, rows):
        prefix[at : at + len(some)] = some
        place[at : at + len(some)] = places
    return MemoryTable(group, packs, (prefix, place))


def _slices(tables: Sequence[Table], renumber: Sequence[Ints]) -> Iterator[Rows]:
    """Rows of all tables in order of their prefixes, a bounded number at a time."""
    steps = max(1, -(-sum(len(t) for t in tables) // _SLICE))
    # Prefixes of digests are spread evenly, so equal steps hold about equally many.
    bounds = np.array([(n << 64) // steps for n in range(1, steps)], dtype=np.uint64)
    cuts = [[0, *(t.search(bounds).tolist() if steps > 1 else ()), len(t)] for t in tables]
    for step in range(steps):
        parts = []
        for table, numbers, cut in zip(tables, renumber, cuts, strict=True):
            prefix, place = table.rows(cut[step], cut[step + 1])
            if ((place < 0) | (place >> SHIFT >= len(numbers))).any():
                raise ValueError("a lookup table names packs that it does not list")
            pack = numbers[place >> SHIFT]
            kept = pack >= 0
            parts.append((prefix[kept], (place[kept] & LOW) | pack[kept] << SHIFT))
        prefix, places = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(prefix, kind="stable")
        yield prefix[order], places[order]


def _counted(slices: Iterator[Rows], rows: int) -> Iterator[tuple[int, Rows]]:
    """The slices, each with the number of its first row; there are ``rows`` in all."""
    at = 0
    for some in slices:
        if at + len(some[0]) > rows:
            break
        yield at, some
        at += len(some[0])
    if at != rows:
        raise ValueError("a lookup table does not hold what its packs do")


def _joined(found: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    which, place = (np.concatenate(column) for column in zip(*found, strict=True))
    return which, place


# -- files: head, packs, fences, seal; then the rows, filled up to a whole block


def load(directory: Path) -> list[Table]:
    """The tables of a lookup directory, the largest first; what is none is removed."""
    tables = []
    for path in sorted(directory.iterdir()):
        # Another process may have merged it meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if path.suffix == _PART:
                _remove_abandoned(path)
            elif path.suffix == _SUFFIX:
                if (table := _open(path)) is not None:
                    tables.append(table)
                else:
                    path.unlink()
    return sorted(tables, key=len, reverse=True)


def _remove_abandoned(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except BlockingIOError:
        pass  # its writer lives
    finally:
        os.close(fd)


def _write(
    directory: Path, group: Group, packs: Sequence[Listed], rows: int, slices: Iterator[Rows]
) -> Table:
    """Write a table, whole or not at all."""
    head = _encode(group, packs, rows)
    start = len(head) + _blocks(rows) * 8 + _SEAL
    part = directory / (secrets.token_hex(8) + _PART)
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        fences = []
        for at, (prefix, place) in _counted(slices, rows):
            both = np.stack([prefix.astype("<u8"), place.astype("<u8")], axis=1)
            _pwrite(fd, both.tobytes(), start + at * _ROW)
            fences.append(prefix[-at % _BLOCK :: _BLOCK].astype("<u8").tobytes())
        _pwrite(fd, b"\xff" * (-rows % _BLOCK * _ROW), start + rows * _ROW)
        sealed = head + b"".join(fences)
        _pwrite(fd, sealed + blake3(sealed).digest(), 0)
        os.fsync(fd)
        path = directory / (blake3(head).hexdigest()[:32] + _SUFFIX)
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    table = _open(path)
    if table is None:
        raise ValueError("a lookup table does not read back")
    return table


def _blocks(rows: int) -> int:
    return -(-rows // _BLOCK)


def _encode(group: Group, packs: Sequence[Listed], rows: int) -> bytes:
    start = _HEAD.pack(_MAGIC, _VERSION, group.kind, len(packs), rows, pack_name(group.domain))
    ids = b"".join(bytes.fromhex(p.key.removeprefix(PREFIX)) for p in packs)
    return start + ids + np.array([p[1:] for p in packs], dtype="<u8").tobytes()


def _open(path: Path) -> Table | None:
    """The table of a file; None when it is damaged or of another version.

    Raises:
        FileNotFoundError: it is gone.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    table = None
    try:
        table = _parse(path, fd)
    finally:
        if not isinstance(table, FileTable):
            os.close(fd)
    return table


def _parse(path: Path, fd: int) -> Table | None:
    head = os.pread(fd, _HEAD.size, 0)
    size = os.fstat(fd).st_size
    if len(head) < _HEAD.size:
        return None
    magic, version, kind, count, rows, padded = _HEAD.unpack(head)
    numbers = _HEAD.size + count * DIGEST
    fences = numbers + count * 16
    seal = fences + _blocks(rows) * 8
    start = seal + _SEAL
    whole = start + _blocks(rows) * _BLOCK * _ROW
    if (magic, version) != (_MAGIC, _VERSION) or size != whole:
        return None
    sealed = os.pread(fd, start, 0)
    if len(sealed) != start or blake3(sealed[:seal]).digest() != sealed[seal:]:
        return None
    try:
        group = Group(Kind(kind), unpack_name(padded))
    except (ValueError, InvalidInput):
        return None
    names = [PREFIX + sealed[i : i + DIGEST].hex() for i in range(_HEAD.size, numbers, DIGEST)]
    sizes = np.frombuffer(sealed, dtype="<u8", count=count * 2, offset=numbers).reshape(-1, 2)
    packs = [Listed(name, *row) for name, row in zip(names, sizes.tolist(), strict=True)]
    firsts = np.frombuffer(sealed, dtype="<u8", count=_blocks(rows), offset=fences).copy()
    if rows > _SMALL:
        return FileTable(group, packs, path=path, fd=fd, start=start, rows=rows, fences=firsts)
    data = np.frombuffer(os.pread(fd, rows * _ROW, start), dtype="<u8").reshape(-1, 2)
    columns = np.ascontiguousarray(data.T)
    return MemoryTable(group, packs, (columns[0], columns[1].view(np.int64)), path)


def _pwrite(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
