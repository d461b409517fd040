"""What the readers of file systems read: a disk under a budget, and ranges of it put together."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from calotype.store.digest import Ints
from calotype.store.files.numbers import Table

BUDGET = 2 << 30  # bytes
SLICE = 4 << 20  # bytes of metadata in memory at once
_CALL = 16 << 10  # what a read costs besides its bytes


class Enough(Exception):
    """The budget is spent, or a reader went astray: what was found until now is the map."""


class Reader(Protocol):
    """Bytes at offsets."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``, which lie inside."""


class Segment(NamedTuple):
    """``length`` bytes of a volume, which stand at ``start`` of what is below."""

    start: int
    length: int


class Metered:
    """A disk of which only so much is read.

    The budget bounds what hostile metadata costs. It counts bytes and calls, never time: the cuts are a
    function of the disk's bytes.
    """

    def __init__(self, disk: Reader, budget: int = BUDGET) -> None:
        self.size = disk.size
        self._disk = disk
        self._left = budget

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``.

        Raises:
            Enough: the budget is spent, or the range is not inside.
        """
        self._left -= length + _CALL
        if self._left < 0 or not 0 <= offset <= offset + length <= self.size:
            raise Enough
        return self._disk.read(offset, length)


class Volume:
    """Ranges of a reader, one after the other: a partition, a logical volume, a fragmented file."""

    def __init__(self, below: Reader, segments: Sequence[Segment]) -> None:
        self._below = below
        self.segments = segments
        self.offsets: list[int] = []  # of each segment in the volume
        self.size = 0
        for segment in segments:
            self.offsets.append(self.size)
            self.size += segment.length

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``.

        Raises:
            Enough: the budget is spent, or the range is not inside.
        """
        if not 0 <= offset <= offset + length <= self.size:
            raise Enough
        parts = []
        number = bisect_right(self.offsets, offset) - 1
        while length > 0:
            start, size = self.segments[number]
            skip = offset - self.offsets[number]
            part = self._below.read(start + skip, min(length, size - skip))
            parts.append(part)
            offset += len(part)
            length -= len(part)
            number += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)


def read_rows(volume: Reader, offsets: Ints, size: int) -> Table:
    """``size`` bytes at each of the offsets, which ascend and lie inside; shape (n, size)."""
    rows = np.empty((len(offsets), size), dtype=np.uint8)
    heads = np.flatnonzero(np.diff(offsets, prepend=-size - 1) != size)
    for head, tail in zip(heads, [*heads[1:], len(offsets)], strict=True):
        raw = volume.read(int(offsets[head]), int(tail - head) * size)
        rows[head:tail] = np.frombuffer(raw, dtype=np.uint8).reshape(-1, size)
    return rows
