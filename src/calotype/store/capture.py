"""Ingest of what changed: only dirty blocks are read, everything else is the base's rows.

A dirty block splits the row that it lies in; rows that stay keep pointing into the base's chunks. Where
dirty bytes cover a whole chunk of the base and are still the same, its row stays too.
"""

from collections.abc import Iterator

import numpy as np

from calotype.store.chunking import multiples
from calotype.store.digest import Bytes32, Ints, as_rows
from calotype.store.index import Leaf, Rows
from calotype.store.ingest import WINDOW
from calotype.store.intake import Worker
from calotype.store.source import Runs, Source

BLOCK = 4096  # bytes; the granularity of what counts as changed


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

    def leaf(self, start: int, end: int, base: Leaf | None) -> Leaf | None:
        """The leaf of the region ``[start, end)``; None when it is all zero now."""
        old = Rows.of(base) if base is not None else Rows.none()
        firsts, lasts = self._dirty.within(start, end)
        parts = [old.without(firsts - start, lasts - start)]
        firsts, lasts = self._source.runs.within(start, end)
        for first, last in zip((firsts - start).tolist(), (lasts - start).tolist(), strict=True):
            at = first
            while at < last:
                end = min((at + WINDOW) // self._grid * self._grid, last)
                parts += self._window(start, at, end, old)
                at = end
        return Rows.join(parts).leaf()

    def _window(self, region: int, start: int, end: int, old: Rows) -> Iterator[Rows]:
        """Read the dirty ``[start, end)`` of a region: what stays, then what is new."""
        view = self._view[: end - start]
        self._worker.counts.bytes_read += self._source.fill(region + start, view)
        same = self._unchanged(view, start, end, old)
        yield same
        starts, ends = self._spans(view, start, end, same)
        if len(starts):
            digests = self._worker.store(view, (starts - start).tolist(), (ends - start).tolist())
            yield Rows.whole(starts, ends - starts, digests)

    def _unchanged(self, view: memoryview, start: int, end: int, old: Rows) -> Rows:
        """The base's rows that are whole chunks inside the window and still hold the same bytes."""
        last = old.offset + old.length
        whole = np.flatnonzero((old.offset >= start) & (last <= end) & (old.length == old.sizes))
        spans = zip(
            (old.offset[whole] - start).tolist(), (last[whole] - start).tolist(), strict=True
        )
        digests: Bytes32 = as_rows(self._worker.digests(view, spans))
        return old.take(whole[(digests == old.digests[whole]).all(axis=1)])

    def _spans(self, view: memoryview, start: int, end: int, same: Rows) -> tuple[Ints, Ints]:
        """Runs of blocks that are not zero, outside the rows that stay, cut on the grid."""
        marks = np.arange(0, end - start, BLOCK)
        raw = np.frombuffer(view, dtype=np.uint8)
        full = np.bitwise_or.reduceat(raw, marks) != 0
        edges = np.flatnonzero(np.diff(full, prepend=False, append=False))
        bounds = np.append(marks + start, end)
        starts, ends = bounds[edges[::2]], bounds[edges[1::2]]
        starts, ends = subtract(starts, ends, same.offset, same.offset + same.length)
        cuts = multiples(np.zeros_like(starts), starts, ends, self._grid)
        return np.sort(np.concatenate([starts, cuts])), np.sort(np.concatenate([ends, cuts]))


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
