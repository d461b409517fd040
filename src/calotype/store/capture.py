"""Ingest of what changed: only dirty blocks are read, everything else is the base's rows.

A dirty block splits the row that it lies in; rows that stay keep pointing into the base's chunks. Where
dirty bytes cover a whole chunk of the base and are still the same, its row stays too.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calotype.store.chunking import multiples
from calotype.store.digest import Bytes32, Ints, as_rows
from calotype.store.index import Leaf, Rows
from calotype.store.intake import Worker
from calotype.store.source import Runs, Source

BLOCK = 4096  # bytes; the granularity of what counts as changed
WINDOW = 4 << 20  # bytes; part of the format, since it decides which rows of a base may stay


class RegionCapture:
    """Turns a base's regions and what changed in them into leaves. One for each worker; not shared.

    ``dirty`` is what changed, in whole blocks; ``source`` reads what of it is not known to be zero.
    """

    def __init__(self, source: Source, dirty: Runs, grid: int, worker: Worker) -> None:
        self._source = source
        self._dirty = dirty
        self._grid = grid
        self._worker = worker
        self._view = memoryview(bytearray(WINDOW))
        self._buffer = np.frombuffer(self._view, dtype=np.uint8)

    def leaf(self, start: int, end: int, base: Leaf | None) -> Leaf | None:
        """The leaf of the region ``[start, end)``; None when it is all zero now."""
        old = Rows.of(base) if base is not None else Rows.none()
        firsts, lasts = self._dirty.within(start, end)
        parts = [old.without(firsts - start, lasts - start)]
        for windows in self._windows(start, end):
            self._read(start, windows)
            same = self._unchanged(windows, old)
            parts += [same, self._changed(windows, same)]
        return Rows.join(parts).leaf()

    def _windows(self, start: int, end: int) -> Iterator["_Windows"]:
        """What is to be read of a region, as much of it at once as the buffer holds."""
        firsts, lasts = self._source.runs.within(start, end)
        batch: list[tuple[int, int]] = []
        room = len(self._view)
        for first, last in zip((firsts - start).tolist(), (lasts - start).tolist(), strict=True):
            at = first
            while at < last:
                stop = min((at + WINDOW) // self._grid * self._grid, last)
                length = -(-(stop - at) // BLOCK) * BLOCK
                if length > room:
                    yield _Windows.of(batch)
                    batch, room = [], len(self._view)
                batch.append((at, stop))
                room -= length
                at = stop
        if batch:
            yield _Windows.of(batch)

    def _read(self, region: int, windows: "_Windows") -> None:
        for first, last, at in zip(*(column.tolist() for column in windows), strict=True):
            stop = at + last - first
            self._source.disk.read_into(region + first, self._view[at:stop])
            self._buffer[stop : at - (first - last) // BLOCK * BLOCK] = 0
            self._worker.counts.bytes_read += last - first

    def _unchanged(self, windows: "_Windows", old: Rows) -> Rows:
        """The base's rows that are whole chunks inside a window and still hold the same bytes."""
        last = old.offset + old.length
        whole = np.flatnonzero(windows.cover(old.offset, last) & (old.length == old.sizes))
        starts = windows.place(old.offset[whole])
        spans = zip(starts.tolist(), (starts + old.length[whole]).tolist(), strict=True)
        digests: Bytes32 = as_rows(self._worker.digests(self._view, spans))
        return old.take(whole[(digests == old.digests[whole]).all(axis=1)])

    def _changed(self, windows: "_Windows", same: Rows) -> Rows:
        """Store the blocks that are not zero, outside the rows that stay."""
        starts, ends = windows.full(self._buffer)
        starts, ends = subtract(starts, ends, same.offset, same.offset + same.length)
        cuts = multiples(np.zeros_like(starts), starts, ends, self._grid)
        starts, ends = np.sort(np.append(starts, cuts)), np.sort(np.append(ends, cuts))
        if not len(starts):
            return Rows.none()
        places = windows.place(starts)
        stops = places + (ends - starts)
        digests = self._worker.store(self._view, places.tolist(), stops.tolist())
        return Rows.whole(starts, ends - starts, digests)


class _Windows(NamedTuple):
    """Runs ``[start, end)`` of a region, ascending, and where each is in the buffer: on whole blocks."""

    start: Ints
    end: Ints
    at: Ints

    @classmethod
    def of(cls, runs: Sequence[tuple[int, int]]) -> "_Windows":
        start, end = np.array(runs, dtype=np.int64).T
        blocks = -(-(end - start) // BLOCK)
        return cls(start, end, (np.cumsum(blocks) - blocks) * BLOCK)

    def _of(self, offset: Ints) -> Ints:
        return np.maximum(np.searchsorted(self.start, offset, side="right") - 1, 0)

    def cover(self, start: Ints, end: Ints) -> npt.NDArray[np.bool_]:
        """Which of the spans lie inside one window."""
        window = self._of(start)
        inside: npt.NDArray[np.bool_] = (start >= self.start[window]) & (end <= self.end[window])
        return inside

    def place(self, offset: Ints) -> Ints:
        """Where bytes of the windows are in the buffer."""
        window = self._of(offset)
        return self.at[window] + offset - self.start[window]

    def full(self, buffer: npt.NDArray[np.uint8]) -> tuple[Ints, Ints]:
        """The runs of blocks of the windows that are not all zero."""
        count = -(-(self.end - self.start) // BLOCK)
        total = int(count.sum())
        blocks = buffer[: total * BLOCK].view(np.uint64).reshape(total, BLOCK // 8)
        nth = np.arange(total) - np.repeat(np.cumsum(count) - count, count)
        start = np.repeat(self.start, count) + nth * BLOCK
        end = np.minimum(start + BLOCK, np.repeat(self.end, count))
        some = np.bitwise_or.reduce(blocks, axis=1) != 0
        start, end = start[some], end[some]
        head, tail = np.ones(len(start), np.bool_), np.ones(len(start), np.bool_)
        head[1:] = tail[:-1] = start[1:] != end[:-1]
        return start[head], end[tail]


def subtract(starts: Ints, ends: Ints, from_: Ints, to: Ints) -> tuple[Ints, Ints]:
    """The runs ``[start, end)`` without the runs ``[from_, to)``; each ascending and apart."""
    points = np.unique(np.concatenate([starts, ends, from_, to]))
    first, last = points[:-1], points[1:]
    inside = np.searchsorted(starts, first, side="right") > np.searchsorted(
        ends, first, side="right"
    )
    taken = np.searchsorted(from_, first, side="right") > np.searchsorted(to, first, side="right")
    kept = inside & ~taken
    return first[kept], last[kept]
