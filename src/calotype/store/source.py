"""Reading a disk for ingest: its data runs as arrays, and windows with the holes filled by zeros."""

from array import array
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np

from calotype.disk.base import Disk, Extent
from calotype.errors import InvalidInput
from calotype.store.digest import Ints


@runtime_checkable
class Followed(Protocol):
    """A disk that is told when its data is read: once, and about from its beginning to its end."""

    def begin(self) -> None:
        """Only the data is read from now on."""
        ...


_NEAR = 64 << 10  # holes shorter than this are read as data


class Runs:
    """Sorted runs ``[start, end)``, apart from each other; all in bytes."""

    def __init__(self, start: Ints, end: Ints) -> None:
        self.start = start
        self.end = end

    @property
    def total(self) -> int:
        """Bytes in all runs."""
        return int((self.end - self.start).sum())

    def within(self, first: int, last: int) -> tuple[Ints, Ints]:
        """The parts of the runs inside ``[first, last)``: starts and ends."""
        low = int(np.searchsorted(self.end, first, side="right"))
        high = int(np.searchsorted(self.start, last, side="left"))
        starts, ends = self.start[low:high], self.end[low:high]
        return np.maximum(starts, first), np.minimum(ends, last)

    def touch(self, starts: Ints, ends: Ints) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which of the (ascending) spans hold any byte of a run."""
        before = np.searchsorted(self.end, starts, side="right")
        touched: np.ndarray[tuple[int], np.dtype[np.bool_]] = before < np.searchsorted(
            self.start, ends, side="left"
        )
        return touched

    def spans(self, width: int) -> list[int]:
        """The numbers of the ``width``-byte spans of the disk that hold any byte of a run."""
        if not len(self.start):
            return []
        first, last = self.start // width, (self.end - 1) // width
        count = last - first + 1
        nth = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        spans: list[int] = np.unique(np.repeat(first, count) + nth).tolist()
        return spans


def data_runs(disk: Disk) -> Runs:
    """The runs of a disk that are not known to be zero; short holes between them are bridged."""
    starts, ends = array("q"), array("q")
    for extent in disk.extents():
        if extent.zero or not extent.length:
            continue
        if ends and extent.offset - ends[-1] < _NEAR:
            ends[-1] = extent.end
        else:
            starts.append(extent.offset)
            ends.append(extent.end)
    return _runs(starts, ends)


def block_runs(changed: Iterable[Extent], size: int, block: int) -> tuple[Runs, Runs]:
    """The whole blocks that hold changed bytes, and those among them that need to be read.

    A block inside an extent that is known to be zero does not. ``size`` is the disk's.

    Raises:
        InvalidInput: an extent lies outside the disk.
    """
    dirty, data = _Joiner(block, size), _Joiner(block, size)
    for extent in sorted(changed):
        if extent.offset < 0 or extent.length < 0 or extent.end > size:
            raise InvalidInput("a changed extent lies outside the disk")
        dirty.add(extent.offset, extent.end)
        if extent.zero:
            first = -(-extent.offset // block) * block
            last = extent.end if extent.end == size else extent.end // block * block
            if first < last:
                data.add(extent.offset, first)
                data.add(last, extent.end)
                continue
        data.add(extent.offset, extent.end)
    return dirty.runs(), data.runs()


class _Joiner:
    """Joins spans that come in ascending order into runs of whole blocks."""

    def __init__(self, block: int, size: int) -> None:
        self._block = block
        self._size = size
        self._starts, self._ends = array("q"), array("q")

    def add(self, first: int, last: int) -> None:
        if first >= last:
            return
        start = first // self._block * self._block
        end = min(-(-last // self._block) * self._block, self._size)
        if self._ends and start <= self._ends[-1]:
            self._ends[-1] = max(self._ends[-1], end)
        else:
            self._starts.append(start)
            self._ends.append(end)

    def runs(self) -> Runs:
        return _runs(self._starts, self._ends)


class Source:
    """A disk and the runs of it that are worth reading; everything else counts as zero."""

    def __init__(self, disk: Disk, runs: Runs) -> None:
        self.disk = disk
        self.runs = runs
        self.size = disk.size

    def begin(self) -> None:
        """Tell the disk, if it wants to know, that its data is read now."""
        if isinstance(self.disk, Followed):
            self.disk.begin()

    def fill(self, offset: int, view: memoryview) -> int:
        """Fill ``view`` with the bytes at ``offset``; how many of them were read."""
        done, read = offset, 0
        end = offset + len(view)
        target = np.frombuffer(view, dtype=np.uint8)
        starts, ends = self.runs.within(offset, end)
        for first, last in zip(starts.tolist(), ends.tolist(), strict=True):
            target[done - offset : first - offset] = 0
            self.disk.read_into(first, view[first - offset : last - offset])
            done = last
            read += last - first
        target[done - offset :] = 0
        return read

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``, which lie inside the disk."""
        buffer = bytearray(length)
        self.fill(offset, memoryview(buffer))
        return bytes(buffer)


def _runs(starts: "array[int]", ends: "array[int]") -> Runs:
    return Runs(np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64))
