"""Where NTFS keeps its files: the run lists of all $DATA attributes in the master file table.

A file whose attributes do not fit in one record has more of them in other records of the same table, each
with the place in the file where its runs start. As all records are read, attribute lists need not be.
The runs of a compressed or encrypted file count as they lie; what is resident, sparse or exceeds a bound
is no run.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from calotype.store.digest import Ints
from calotype.store.files.extents import Extents, FileMap, file_map
from calotype.store.files.numbers import Table, column, power_of_two, table
from calotype.store.files.volume import Reader, Segment, Volume

_SLICE = 2 << 20  # bytes of the table in memory at once
_WORK = 1 << 24  # runs that are decoded, holes too, and more for each step
_STEP = 64
_STRIDE = 512  # bytes of a record that one fixup protects
_ATTRIBUTE, _NOT_RESIDENT = 24, 64  # bytes of their heads
_DATA = 0x80
_IN_USE = 1
_NUMBER = (1 << 48) - 1  # of a reference to a record: its number
_MAX_CLUSTERS = 1 << 40
_OWN = 16  # the first records describe the file system itself
_MAX_TABLE_RUNS = 1 << 16


class _Boot(NamedTuple):
    size: int  # of the file system
    cluster: int
    record: int
    table: int  # the first cluster of the table

    @property
    def clusters(self) -> int:
        return self.size // self.cluster


class _Lists(NamedTuple):
    """Run lists of $DATA attributes, and where their bytes are."""

    file: Ints  # the number of the file's first record
    logical: Ints  # the first cluster of the file that the list describes
    start: Ints
    end: Ints
    size: Ints  # of the file, in bytes; right in its first list


def read_map(volume: Reader) -> FileMap | None:
    """The files of an NTFS file system; None where there is none, or a mad one."""
    if volume.size < 4096:
        return None
    boot = _boot(volume.read(0, 512), volume.size)
    if boot is None:
        return None
    return file_map(boot.size, boot.cluster, _extents(volume, boot))


def _boot(raw: bytes, length: int) -> _Boot | None:
    oem, sector, per_cluster = struct.unpack_from("<8sHB", raw, 3)
    sectors, first = struct.unpack_from("<qq", raw, 40)
    per_record = struct.unpack_from("<b", raw, 64)[0]
    if oem != b"NTFS    " or not power_of_two(sector, 512, 4096):
        return None
    # More than 128 sectors are written as a negative power of two.
    cluster = sector * (per_cluster if per_cluster <= 128 else 1 << min(256 - per_cluster, 32))
    record = cluster * per_record if per_record > 0 else 1 << min(-per_record, 32)
    sane = (
        power_of_two(cluster, 512, 2 << 20)
        and power_of_two(record, 512, 4096)
        and 0 < sectors <= length // sector
        and 0 < first < sectors * sector // cluster
    )
    return _Boot(sectors * sector, cluster, record, first) if sane else None


def _extents(volume: Reader, boot: _Boot) -> Iterator[Extents]:
    """The extents of all files; the table is read along its own runs, which its records name."""
    raw = volume.read(boot.table * boot.cluster, boot.record)
    flat, lists = _run_lists(_repaired(table(raw, boot.record)), 0)
    left = int(lists.size[:1].sum()) // boot.record * boot.record
    own = _Own(boot)
    own.add(_decode(flat, lists, boot.clusters)[1])
    done, work = 0, _WORK
    while left > 0 and (segments := own.following()):
        part = Volume(volume, segments)
        at = -done % boot.record
        while at + boot.record <= min(part.size, left):
            raw = part.read(at, min(_SLICE, part.size - at, left - at))
            flat, lists = _run_lists(_repaired(table(raw, boot.record)), (done + at) // boot.record)
            which, extents, cost = _decode(flat, lists, boot.clusters)
            work -= cost
            if work < 0:
                return
            files = lists.file[which]
            own.add(extents.take(np.flatnonzero(files == 0)[:_MAX_TABLE_RUNS]))
            yield extents.take(files >= _OWN)
            at += len(raw) // boot.record * boot.record
        done += part.size
        left -= part.size


class _Own:
    """The runs of the table itself, as they become known."""

    def __init__(self, boot: _Boot) -> None:
        self._boot = boot
        self._known: dict[int, tuple[int, int]] = {}  # by the place in the table; in clusters
        self._next = 0

    def add(self, extents: Extents) -> None:
        for logical, physical, length in zip(*(c.tolist() for c in extents), strict=True):
            if logical >= self._next and len(self._known) < _MAX_TABLE_RUNS:
                self._known.setdefault(logical, (physical, length))

    def following(self) -> list[Segment]:
        """What is known to go on where the last answer ended, in bytes; empty at the end."""
        segments = []
        while run := self._known.pop(self._next, None):
            physical, length = run
            segments.append(Segment(physical * self._boot.cluster, length * self._boot.cluster))
            self._next += length
        return segments


def _repaired(records: Table) -> Table:
    """Undo the fixups: the last two bytes of each 512, which stand in the head. Torn records are zeroed."""
    strides = records.shape[1] // _STRIDE
    at, count = column(records, 4, "<u2"), column(records, 6, "<u2")
    good = (records[:, :4] == np.frombuffer(b"FILE", dtype=np.uint8)).all(axis=1)
    good &= (count == strides + 1) & (at + 2 * (strides + 1) <= _STRIDE - 2)
    rows = np.where(good[:, None], records, 0)
    number = np.arange(len(rows))[:, None]
    fixups = rows[number, np.where(good, at, 0)[:, None] + np.arange(2 * (strides + 1))]
    ends = (np.arange(1, strides + 1) * _STRIDE)[:, None] + [-2, -1]
    whole = (rows[:, ends] == fixups[:, None, :2]).all(axis=(1, 2))
    rows[:, ends] = fixups[:, 2:].reshape(-1, strides, 2)
    rows[~whole] = 0
    return rows


def _run_lists(records: Table, first: int) -> tuple[Table, _Lists]:
    """The bytes of the records, one after the other, and the run lists among them.

    ``first`` is the number of the first record.
    """
    size = records.shape[1]
    flat = records.reshape(-1)
    number, base = np.arange(len(records)), column(records, 32, "<i8")
    file = np.where(base != 0, base & _NUMBER, number + first)
    at = number * size + column(records, 20, "<u2")
    end = number * size + np.minimum(column(records, 24, "<u4"), size)
    used = (column(records, 22, "<u2") & _IN_USE) != 0
    file, at, end = file[used], at[used], end[used]
    found = [_Lists(*(file[:0] for _ in _Lists._fields))]
    while len(at):
        inside = at <= end - _ATTRIBUTE
        file, at, end = file[inside], at[inside], end[inside]
        kind, length = _gather(flat, at, "<u4"), _gather(flat, at + 4, "<u4")
        # Attributes stand in the order of their kinds.
        good = (kind <= _DATA) & (length >= _ATTRIBUTE) & (length <= end - at)
        file, at, end, kind, length = (c[good] for c in (file, at, end, kind, length))
        found.append(_lists(flat, *(c[kind == _DATA] for c in (file, at, length))))
        at = at + length
    return flat, _Lists(*(np.concatenate(columns) for columns in zip(*found, strict=True)))


def _lists(flat: Table, file: Ints, at: Ints, length: Ints) -> _Lists:
    """The run lists of these attributes, as far as they are not resident."""
    runs = (length >= _NOT_RESIDENT) & (flat[at + 8] == 1)
    file, at, length = file[runs], at[runs], length[runs]
    logical, offset = _gather(flat, at + 16, "<i8"), _gather(flat, at + 32, "<u2")
    good = (logical >= 0) & (logical < _MAX_CLUSTERS)
    good &= (offset >= _NOT_RESIDENT) & (offset < length)
    at, logical, length = at[good], logical[good], length[good]
    size = _gather(flat, at + 48, "<i8")
    return _Lists(file[good], logical, at + offset[good], at + length, size)


def _decode(flat: Table, lists: _Lists, clusters: int) -> tuple[Ints, Extents, int]:
    """The runs of all lists, one of each in a step: of which list they are, the extents, and the work.

    A run is a byte with the sizes of two numbers, its length and how far it is from the run before.
    """
    which = np.arange(len(lists.start))
    at, end, logical = lists.start, lists.end, lists.logical
    physical = np.zeros_like(at)
    found: list[tuple[Ints, ...]] = [(which[:0],) * 4]
    work = 0
    while len(at):
        work += len(at) + _STEP
        head = flat[at].astype(np.int64)
        wide, far = head & 15, head >> 4
        good = (wide > 0) & (wide <= 8) & (far <= 8) & (at + wide + far < end)
        which, at, end, logical, physical, wide, far = (
            c[good] for c in (which, at, end, logical, physical, wide, far)
        )
        length, physical = _number(flat, at + 1, wide), physical + _number(flat, at + 1 + wide, far)
        good = (length > 0) & (length < _MAX_CLUSTERS) & (logical < _MAX_CLUSTERS)
        good &= (physical >= 0) & (physical < clusters)
        which, at, end, logical, physical, wide, far, length = (
            c[good] for c in (which, at, end, logical, physical, wide, far, length)
        )
        there = far > 0  # others are holes
        found.append((which[there], logical[there], physical[there], length[there]))
        logical = logical + length
        at = at + 1 + wide + far
        left = at < end
        which, at, end, logical, physical = (c[left] for c in (which, at, end, logical, physical))
    which, *columns = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return which, Extents(*columns), work


def _gather(flat: Table, at: Ints, dtype: str) -> Ints:
    """The integers at these places of the bytes, as int64."""
    width = np.dtype(dtype).itemsize
    return column(flat[at[:, None] + np.arange(width)], 0, dtype)


def _number(flat: Table, at: Ints, width: Ints) -> Ints:
    """The signed integers of 0 to 8 bytes at these places."""
    places = np.arange(8)
    raw = flat[np.minimum(at[:, None] + places, len(flat) - 1)]
    raw[places >= width[:, None]] = 0
    unused = np.minimum(64 - 8 * width, 63)
    return column(raw, 0, "<i8") << unused >> unused
