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
from calotype.store.index import Leaf, Root, Rows
from calotype.store.reader import LeafReader

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, slots=True)
class Pieces:
    """Pieces of chunks that runs of a disk are made of; what is zero has none.

    Arrays with one element for each piece, by ``file`` (the caller's number of the run's file) and then by
    ``logical`` (where in the file it starts): its ``length``, and where it starts (``skip``) in the chunk of
    ``size`` bytes with this ``digest`` (four 64-bit words each).
    """

    file: Ints
    logical: Ints
    length: Ints
    skip: Ints
    size: Ints
    digest: NDArray[np.uint64]

    def take(self, which: Ints | Bools) -> "Pieces":
        """Some of them."""
        return Pieces(
            self.file[which],
            self.logical[which],
            self.length[which],
            self.skip[which],
            self.size[which],
            self.digest[which],
        )


class DiskRows:
    """Every row of an Index, by place on the disk; 64 bytes for each."""

    def __init__(self, leaves: LeafReader, root: Root) -> None:
        parts: list[tuple[int, Leaf]] = []
        for number in sorted(root.leaves):
            leaf = leaves.leaf(number)
            if leaf is not None:
                parts.append((number * root.region, leaf))
        rows = [Rows.of(leaf) for _, leaf in parts] or [Rows.none()]
        bases = [base for base, _ in parts] or [0]
        self.domain = root.domain
        self._start: Ints = np.concatenate(
            [base + row.offset for base, row in zip(bases, rows, strict=True)]
        )
        self._end: Ints = self._start + np.concatenate([row.length for row in rows])
        self._skip: Ints = np.concatenate([row.skip for row in rows])
        self._size: Ints = np.concatenate([row.sizes for row in rows])
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
                self._size[row],
                self._digest[row],
            )
        )

    def whole(self) -> Pieces:
        """The whole disk as one file."""
        zero = np.zeros_like(self._start)
        length = self._end - self._start
        return _joined(Pieces(zero, self._start, length, self._skip, self._size, self._digest))


@dataclass(frozen=True, eq=False, slots=True)
class Doubts:
    """What the chunks leave open of some files that are in two disks.

    ``unequal`` (one element for each file) is known. Of the others only the bytes from ``start`` to ``end``
    of ``file`` (an element for each such run, in order) may differ; a file without any is equal.
    """

    unequal: Bools
    file: Ints
    start: Ints
    end: Ints


def doubts(a: Pieces, b: Pieces, files: int, *, one_domain: bool) -> Doubts:
    """Compare what ``files`` files of one size are made of in two disks.

    Two whole chunks at one place with other digests hold other bytes, unless they are of two dedup domains:
    another domain's key gives equal bytes another digest.
    """
    file, logical, length, skip, size = (
        np.concatenate([getattr(side, name) for side in (a, b)])
        for name in ("file", "logical", "length", "skip", "size")
    )
    digest = np.concatenate([a.digest, b.digest])
    order = np.lexsort((logical, file))
    here, there = order[:-1], order[1:]  # no side has two pieces at one place
    met = (file[here] == file[there]) & (logical[here] == logical[there])
    met &= length[here] == length[there]
    here, there = here[met], there[met]
    alike = (digest[here] == digest[there]).all(axis=1)
    whole = (length == size)[here] & (length == size)[there]
    unequal = np.zeros(files, dtype=np.bool_)
    if one_domain:
        unequal[file[here[whole & ~alike]]] = True
    alike &= skip[here] == skip[there]
    matched = np.zeros(len(file), dtype=np.bool_)
    matched[here[alike]] = matched[there[alike]] = True
    left = order[~matched[order] & ~unequal[file[order]]]
    spans = list(_merged(file[left], logical[left], logical[left] + length[left]))
    columns = np.array(spans, dtype=np.int64).reshape(-1, 3)
    return Doubts(unequal, columns[:, 0], columns[:, 1], columns[:, 2])


def _merged(file: Ints, start: Ints, end: Ints) -> Iterator[tuple[int, int, int]]:
    """The union of runs that are ascending by file and start."""
    rows = zip(file.tolist(), start.tolist(), end.tolist(), strict=True)
    now = next(rows, None)
    for row in rows:
        if now is not None and row[0] == now[0] and row[1] <= now[2]:
            now = (now[0], now[1], max(now[2], row[2]))
            continue
        if now is not None:
            yield now
        now = row
    if now is not None:
        yield now


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
        pieces.size[heads],
        pieces.digest[heads],
    )
