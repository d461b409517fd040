"""Ingest: cut each region, hash, look up, store what is new, and write its leaf.

A worker takes a region from end to end, one window of it at a time, so memory does not grow with the disk;
which worker does what has no influence on the Index.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pyfastcdc import FastCDC

from calotype.store.chunking import Chunking, Cutter, Piece
from calotype.store.digest import Bytes32, Ints
from calotype.store.index import Leaf, Rows
from calotype.store.intake import Worker
from calotype.store.source import Source

WINDOW = 4 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingested:
    """What an ingest did; all but ``index``, ``chunks`` and ``new_chunks`` in bytes."""

    index: str
    size: int
    bytes_read: int
    chunks: int
    new_chunks: int
    new_bytes: int  # of the new chunks, raw
    stored_bytes: int  # what they and the new leaves took in packs


class RegionIngest:
    """Turns regions of a disk into leaves. One for each worker; not shared."""

    def __init__(self, source: Source, cutter: Cutter, chunking: Chunking, worker: Worker) -> None:
        self._source = source
        self._runs = source.runs
        self._cutter = cutter
        self._chunking = chunking
        self._worker = worker
        self._buffer = bytearray(WINDOW)
        self._view = memoryview(self._buffer)
        self._words = np.frombuffer(self._buffer, dtype=np.uint64)
        self._cdc = FastCDC(chunking.content)
        self._rows: list[tuple[Ints, Ints, Bytes32]] = []

    def leaf(self, start: int, end: int) -> Leaf | None:
        """The leaf of the region ``[start, end)``; None when it is all zero."""
        self._rows = []
        for piece in self._cutter.pieces(start, end):
            if piece.cuts is None:
                self._by_content(piece)
            else:
                self._by_cuts(piece.cuts)
        if not self._rows:
            return None
        starts, ends, digests = (np.concatenate(column) for column in zip(*self._rows, strict=True))
        return Rows.whole(starts - start, ends - starts, digests).leaf()

    def _read(self, start: int, end: int) -> memoryview:
        view = self._view[: end - start]
        self._worker.counts.bytes_read += self._source.fill(start, view)
        return view

    def _store(self, base: int, view: memoryview, starts: Ints, ends: Ints) -> None:
        if len(starts):
            digests = self._worker.store(view, (starts - base).tolist(), (ends - base).tolist())
            self._rows.append((starts, ends, digests))

    def _by_cuts(self, cuts: Ints) -> None:
        starts, ends = cuts[:-1], cuts[1:]
        data = self._runs.touch(starts, ends)
        starts, ends = starts[data], ends[data]
        first = 0
        while first < len(starts):
            base = int(starts[first])
            last = int(np.searchsorted(ends, base + WINDOW, side="right"))
            # A window holds chunks that touch, so that it is not mostly hole.
            gaps = np.flatnonzero(starts[first + 1 : last] != ends[first : last - 1])
            if len(gaps):
                last = first + 1 + int(gaps[0])
            some, others = starts[first:last], ends[first:last]
            view = self._read(base, int(others[-1]))
            full = self._not_zero(view, some - base, others - base)
            self._store(base, view, some[full], others[full])
            first = last

    def _not_zero(self, view: memoryview, starts: Ints, ends: Ints) -> npt.NDArray[np.bool_]:
        """Which of the spans, which touch and cover ``view``, hold a byte other than zero."""
        words = -(-len(view) // 8)
        np.frombuffer(self._buffer, dtype=np.uint8)[len(view) : words * 8] = 0
        if not ((starts % 8).any() or (ends[:-1] % 8).any()):
            some: npt.NDArray[np.bool_] = (
                np.bitwise_or.reduceat(self._words[:words], starts // 8) != 0
            )
            return some
        raw = np.frombuffer(view, dtype=np.uint8)
        odd: npt.NDArray[np.bool_] = np.bitwise_or.reduceat(raw, starts) != 0
        return odd

    def _by_content(self, piece: Piece) -> None:
        """FastCDC over each run of grid blocks that are not all zero."""
        grid = self._chunking.grid
        at = piece.start  # inside a run, everything before it is stored; else on the grid
        inside = False
        while at < piece.end:
            if not inside:
                starts, _ = self._runs.within(at, piece.end)
                if not len(starts):
                    return
                at = piece.start + (int(starts[0]) - piece.start) // grid * grid
            limit = piece.start + (at + WINDOW - piece.start) // grid * grid
            end = min(limit, piece.end)
            view = self._read(at, end)
            marks = np.arange(at - (at - piece.start) % grid, end, grid, dtype=np.int64)
            marks[0] = at
            full = self._not_zero(view, marks - at, np.append(marks[1:], end) - at)
            full[0] |= inside
            at, inside = self._runs_of(view, at, end, marks, full, last=end == piece.end)

    def _runs_of(
        self,
        view: memoryview,
        base: int,
        end: int,
        marks: Ints,
        full: npt.NDArray[np.bool_],
        *,
        last: bool,
    ) -> tuple[int, bool]:
        """Store the runs of this window; where the next one starts, and whether inside a run."""
        edges = np.flatnonzero(np.diff(full, prepend=False, append=False))
        bounds = np.append(marks, end)
        starts: list[int] = []
        ends: list[int] = []
        carry: int | None = None
        for first, after in zip(bounds[edges[::2]], bounds[edges[1::2]], strict=True):
            lengths = [c.length for c in self._cdc.cut_buf(view[first - base : after - base])]
            cuts = np.cumsum([first, *lengths]).tolist()
            if after == end and not last:
                # The run may go on: its last chunk is cut again with what follows.
                carry = cuts[-2]
                cuts.pop()
            starts += cuts[:-1]
            ends += cuts[1:]
        found, stops = np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64)
        some = self._any(view, base, starts, ends)
        self._store(base, view, found[some], stops[some])
        return (end, False) if carry is None else (carry, True)

    @staticmethod
    def _any(
        view: memoryview, base: int, starts: list[int], ends: list[int]
    ) -> npt.NDArray[np.bool_]:
        raw = np.frombuffer(view, dtype=np.uint8)
        return np.fromiter(
            (
                bool(view[s - base]) or bool(raw[s - base : e - base].any())
                for s, e in zip(starts, ends, strict=True)
            ),
            dtype=bool,
            count=len(starts),
        )
