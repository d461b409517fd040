"""The Index of a disk image: a root that names one leaf for each region that is not all zero.

A leaf's rows say which piece of which chunk each run of bytes is; what no row covers is zero. Both are
deterministic bytes, so equal rows give equal leaves, and equal leaves give an equal Index.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from calotype.errors import InvalidInput, StoreDamaged
from calotype.store.digest import DIGEST, U32, Bytes32, Ints, pack_name, unpack_name
from calotype.store.pack import MAX_CHUNK

PREFIX = "indexes/"
_LEAF = struct.Struct("<8sII")
_LEAF_MAGIC = b"CALOLEA\x01"
_ROOT = struct.Struct("<8sQII64s")
_ROOT_MAGIC = b"CALOROO\x01"
_MAX_ROWS = 1 << 17
_MAX_REGIONS = 1 << 22
_MAX_REGION = 1 << 30  # bytes
MAX_SIZE = 1 << 56  # bytes of a disk


@dataclass(frozen=True, eq=False, slots=True)
class Leaf:
    """One region: rows in ascending order without overlap, and the chunks that they point into.

    Arrays ``offset`` (in the region), ``length``, ``chunk`` (a number into ``digests``) and ``skip`` (where
    the row starts in its chunk) have one element for each row; ``digests`` and ``sizes`` one for each chunk,
    in the order in which the rows first use them.
    """

    offset: Ints
    length: Ints
    chunk: Ints
    skip: Ints
    digests: Bytes32
    sizes: Ints

    @property
    def end(self) -> Ints:
        """The first byte after each row."""
        return self.offset + self.length

    def encode(self) -> bytes:
        """The leaf's bytes."""
        if len(self.offset) > _MAX_ROWS:
            raise InvalidInput("a region is cut into too many rows")
        columns = (self.offset, self.length, self.chunk, self.skip, self.sizes)
        head = _LEAF.pack(_LEAF_MAGIC, len(self.offset), len(self.sizes))
        return b"".join(
            [head, *(c.astype("<u4").tobytes() for c in columns), self.digests.tobytes()]
        )

    @classmethod
    def decode(cls, data: bytes, span: int) -> "Leaf":
        """Parse a leaf of a region of ``span`` bytes.

        Raises:
            StoreDamaged: these are not the bytes of such a leaf.
        """
        if len(data) < _LEAF.size:
            raise StoreDamaged("a leaf is too short")
        magic, rows, chunks = _LEAF.unpack_from(data)
        if magic != _LEAF_MAGIC or not 0 < chunks <= rows <= _MAX_ROWS:
            raise StoreDamaged("a leaf has no valid header")
        if len(data) != _LEAF.size + rows * 16 + chunks * (4 + DIGEST):
            raise StoreDamaged("a leaf has the wrong length")
        numbers: U32 = np.frombuffer(data, dtype="<u4", count=rows * 4 + chunks, offset=_LEAF.size)
        digests = np.frombuffer(data, dtype=np.uint8, offset=_LEAF.size + len(numbers) * 4)
        offset, length, chunk, skip = numbers[: rows * 4].reshape(4, rows).astype(np.int64)
        sizes = numbers[rows * 4 :].astype(np.int64)
        leaf = cls(offset, length, chunk, skip, digests.reshape(-1, DIGEST), sizes)
        leaf._check(span)
        return leaf

    def _check(self, span: int) -> None:
        if (
            not self.length.all()
            or not self.sizes.all()
            or int(self.sizes.max()) > MAX_CHUNK
            or int(self.chunk.max()) >= len(self.sizes)
            or int(self.end[-1]) > span
            or bool((self.offset[1:] < self.end[:-1]).any())
            or bool((self.skip + self.length > self.sizes[self.chunk]).any())
        ):
            raise StoreDamaged("a leaf has an impossible row")


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """Rows of one region that name their chunks by digest: what leaves are made from."""

    offset: Ints
    length: Ints
    skip: Ints
    digests: Bytes32  # of each row's chunk
    sizes: Ints  # of each row's chunk

    @classmethod
    def of(cls, leaf: Leaf) -> "Rows":
        """The rows of a leaf."""
        return cls(
            leaf.offset, leaf.length, leaf.skip, leaf.digests[leaf.chunk], leaf.sizes[leaf.chunk]
        )

    @classmethod
    def none(cls) -> "Rows":
        """No rows: the region is all zero."""
        empty = np.zeros(0, dtype=np.int64)
        return cls(empty, empty, empty, np.zeros((0, DIGEST), dtype=np.uint8), empty)

    @classmethod
    def whole(cls, offset: Ints, length: Ints, digests: Bytes32) -> "Rows":
        """Rows that are whole chunks."""
        return cls(offset, length, np.zeros_like(offset), digests, length)

    def take(self, which: Ints) -> "Rows":
        """The rows at these places."""
        return Rows(
            self.offset[which],
            self.length[which],
            self.skip[which],
            self.digests[which],
            self.sizes[which],
        )

    @classmethod
    def join(cls, parts: Sequence["Rows"]) -> "Rows":
        """All rows of the parts, in ascending order."""
        merged = cls(
            np.concatenate([p.offset for p in parts]),
            np.concatenate([p.length for p in parts]),
            np.concatenate([p.skip for p in parts]),
            np.concatenate([p.digests for p in parts]),
            np.concatenate([p.sizes for p in parts]),
        )
        return merged.take(np.argsort(merged.offset, kind="stable"))

    def without(self, starts: Ints, ends: Ints) -> "Rows":
        """What is left of the rows outside the given runs (ascending, apart)."""
        points = np.sort(np.concatenate([starts, ends]))
        last = self.offset + self.length
        first_point = np.searchsorted(points, self.offset, side="right")
        count = np.searchsorted(points, last, side="left") - first_point
        pieces = np.repeat(np.arange(len(self.offset)), count + 1)
        nth = np.arange(len(pieces)) - np.repeat(np.cumsum(count + 1) - count - 1, count + 1)
        padded = np.append(points, 0)
        start = np.where(nth == 0, self.offset[pieces], padded[first_point[pieces] + nth - 1])
        at_end = nth == count[pieces]
        end = np.where(
            at_end, last[pieces], padded[np.minimum(first_point[pieces] + nth, len(points))]
        )
        inside = np.searchsorted(starts, start, side="right") - np.searchsorted(
            ends, start, side="right"
        )
        keep = np.flatnonzero((inside == 0) & (end > start))
        kept = self.take(pieces[keep])
        skip = kept.skip + start[keep] - kept.offset
        return Rows(start[keep], end[keep] - start[keep], skip, kept.digests, kept.sizes)

    def leaf(self) -> Leaf | None:
        """The leaf of these rows; None when there are none."""
        if not len(self.offset):
            return None
        names = np.ascontiguousarray(self.digests).view(f"V{DIGEST}").reshape(-1)
        _, first, which = np.unique(names, return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        chunk = rank[which.reshape(-1)]
        first = first[order]
        joined = np.zeros(len(chunk), dtype=bool)
        joined[1:] = (
            (self.offset[1:] == self.offset[:-1] + self.length[:-1])
            & (chunk[1:] == chunk[:-1])
            & (self.skip[1:] == self.skip[:-1] + self.length[:-1])
        )
        heads = np.flatnonzero(~joined)
        length = np.add.reduceat(self.length, heads)
        return Leaf(
            self.offset[heads],
            length,
            chunk[heads],
            self.skip[heads],
            np.ascontiguousarray(self.digests[first]),
            self.sizes[first],
        )


@dataclass(frozen=True, eq=False, slots=True)
class Root:
    """The top of an Index: the disk's size, and the leaf of each region that is not all zero."""

    domain: str
    size: int  # of the disk, bytes
    region: int  # bytes of each region
    leaves: Mapping[int, bytes]  # region number -> leaf digest

    def encode(self) -> bytes:
        """The root's bytes."""
        regions = sorted(self.leaves)
        head = _ROOT.pack(_ROOT_MAGIC, self.size, self.region, len(regions), pack_name(self.domain))
        numbers = np.array(regions, dtype="<u4").tobytes()
        return b"".join([head, numbers, *(self.leaves[r] for r in regions)])

    @classmethod
    def decode(cls, data: bytes) -> "Root":
        """Parse a root.

        Raises:
            StoreDamaged: these are not the bytes of a root.
        """
        if len(data) < _ROOT.size:
            raise StoreDamaged("an Index is too short")
        magic, size, region, count, name = _ROOT.unpack_from(data)
        if (
            magic != _ROOT_MAGIC
            or not 4096 <= region <= _MAX_REGION
            or count > _MAX_REGIONS
            or size > MAX_SIZE
        ):
            raise StoreDamaged("an Index has no valid header")
        if len(data) != _ROOT.size + count * (4 + DIGEST):
            raise StoreDamaged("an Index has the wrong length")
        numbers = np.frombuffer(data, dtype="<u4", count=count, offset=_ROOT.size).astype(np.int64)
        if count and (bool((np.diff(numbers) <= 0).any()) or int(numbers[-1]) * region >= size):
            raise StoreDamaged("an Index has impossible regions")
        try:
            domain = unpack_name(name)
        except InvalidInput:
            raise StoreDamaged("an Index names no domain") from None
        at = _ROOT.size + count * 4
        leaves = {
            int(n): data[at + i * DIGEST : at + (i + 1) * DIGEST] for i, n in enumerate(numbers)
        }
        return cls(domain, size, region, leaves)


def root_id(data: bytes) -> str:
    """The id of the Index with these root bytes."""
    return blake3(data).hexdigest()
