"""What two Indexes say about where their disks can differ, without reading either disk.

Rows that name the same piece of the same chunk hold the same bytes. The other direction does not hold: equal
bytes may have been cut differently, so rows that differ say only that somebody has to look.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calotype.disk.base import Extent
from calotype.store.digest import Ints
from calotype.store.index import Leaf, Rows
from calotype.store.reader import LeafReader

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, slots=True)
class Pieces:
    """Pieces of chunks that runs of a disk are made of; what is zero has none.

    Arrays with one element for each piece, by ``file`` (the caller's number of the run's file) and then by
    ``logical`` (where in the file it starts): its ``length``, and where it starts (``skip``) in the chunk
    with this ``digest`` (four 64-bit words each).
    """

    file: Ints
    logical: Ints
    length: Ints
    skip: Ints
    digest: NDArray[np.uint64]


class DiskRows:
    """Every row of an Index, by place on the disk; about 56 bytes for each."""

    def __init__(self, leaves: LeafReader, region: int, size: int, regions: list[int]) -> None:
        parts: list[tuple[int, Leaf]] = []
        for number in regions:
            leaf = leaves.leaf(number)
            if leaf is not None:
                parts.append((number * region, leaf))
        rows = [Rows.of(leaf) for _, leaf in parts] or [Rows.none()]
        bases = [base for base, _ in parts] or [0]
        self.size = size
        self._start: Ints = np.concatenate(
            [base + row.offset for base, row in zip(bases, rows, strict=True)]
        )
        self._end: Ints = self._start + np.concatenate([row.length for row in rows])
        self._skip: Ints = np.concatenate([row.skip for row in rows])
        digests = np.concatenate([row.digests for row in rows])
        self._digest: NDArray[np.uint64] = np.ascontiguousarray(digests).view("<u8")

    def pieces(self, file: Ints, logical: Ints, start: Ints, length: Ints) -> Pieces:
        """What runs of the disk (ascending by file and logical place) are made of; all in bytes."""
        end = start + length
        first = np.searchsorted(self._end, start, side="right")
        last = np.searchsorted(self._start, end, side="left")
        count = np.maximum(last - first, 0)
        run = np.repeat(np.arange(len(start)), count)
        row = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        row += np.repeat(first, count)
        low = np.maximum(self._start[row], start[run])
        high = np.minimum(self._end[row], end[run])
        return _joined(
            Pieces(
                file[run],
                logical[run] + low - start[run],
                high - low,
                self._skip[row] + low - self._start[row],
                self._digest[row],
            )
        )

    def whole(self) -> Pieces:
        """The whole disk as one file."""
        zero = np.zeros_like(self._start)
        length = self._end - self._start
        return _joined(Pieces(zero, self._start, length, self._skip, self._digest))


def same(a: Pieces, b: Pieces, files: int) -> Bools:
    """Of ``files`` files, which are made of the same pieces in ``a`` and in ``b``: those are equal."""
    count_a, count_b = (np.bincount(p.file, minlength=files) for p in (a, b))
    alike: Bools = count_a == count_b
    left, right = (np.flatnonzero(alike[p.file]) for p in (a, b))
    equal = (
        (a.logical[left] == b.logical[right])
        & (a.length[left] == b.length[right])
        & (a.skip[left] == b.skip[right])
        & (a.digest[left] == b.digest[right]).all(axis=1)
    )
    alike[a.file[left][~equal]] = False
    return alike


def differing(a: DiskRows, b: DiskRows) -> Iterator[Extent]:
    """The runs where two disks can differ, in order; both are known to be equal everywhere else.

    What only the longer disk has is among them, unless it is zero.
    """
    one, two = a.whole(), b.whole()
    cuts = np.unique(
        np.concatenate([p.logical for p in (one, two)] + [p.logical + p.length for p in (one, two)])
    )
    if len(cuts) < 2:
        return
    low, high = cuts[:-1], cuts[1:]
    unequal = _unequal(one, two, low)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], unequal, [False]]).astype(np.int8)))
    for first, last in edges.reshape(-1, 2).tolist():
        yield Extent(int(low[first]), int(high[last - 1] - low[first]), zero=False)


def _unequal(a: Pieces, b: Pieces, at: Ints) -> Bools:
    """Whether the bytes from each place on, up to the next cut, can differ."""
    (row_a, has_a), (row_b, has_b) = _covering(a, at), _covering(b, at)
    unequal: Bools = has_a != has_b
    both = np.flatnonzero(has_a & has_b)
    left, right = row_a[both], row_b[both]
    unequal[both] = (a.skip[left] - a.logical[left] != b.skip[right] - b.logical[right]) | (
        a.digest[left] != b.digest[right]
    ).any(axis=1)
    return unequal


def _covering(pieces: Pieces, at: Ints) -> tuple[Ints, Bools]:
    """The piece over each place; and whether there is one."""
    if not len(pieces.logical):
        return np.zeros_like(at), np.zeros(len(at), dtype=np.bool_)
    row = np.searchsorted(pieces.logical, at, side="right") - 1
    has: Bools = (row >= 0) & (at < (pieces.logical + pieces.length)[row])
    return row, has


def _joined(pieces: Pieces) -> Pieces:
    """The same, with neighbours in a file that are neighbours in their chunk as one piece."""
    if not len(pieces.file):
        return pieces
    apart = np.ones(len(pieces.file), dtype=np.bool_)
    apart[1:] = (
        (pieces.file[1:] != pieces.file[:-1])
        | (pieces.logical[1:] != pieces.logical[:-1] + pieces.length[:-1])
        | (pieces.skip[1:] != pieces.skip[:-1] + pieces.length[:-1])
        | (pieces.digest[1:] != pieces.digest[:-1]).any(axis=1)
    )
    heads = np.flatnonzero(apart)
    return Pieces(
        pieces.file[heads],
        pieces.logical[heads],
        np.add.reduceat(pieces.length, heads),
        pieces.skip[heads],
        pieces.digest[heads],
    )
