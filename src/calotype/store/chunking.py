"""Where a disk is cut: along its files where we can read its file system, by content elsewhere.

The cuts are a pure function of the disk's bytes and of :class:`Chunking`; a wrong or hostile file map may
cost ratio, never correctness.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from calotype.store.digest import Ints
from calotype.store.files import Runs, areas
from calotype.store.source import Source

VERSIONS = (1, 2)  # of the ways to cut that a repository may have been made with


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunking:
    """How this repository cuts; sizes in bytes. Part of its config, never changed.

    ``version`` is the newest way to cut when it was made. Disks are cut in the newest way that the program
    knows, whatever it says: what is stored does not depend on it.
    """

    version: int = VERSIONS[-1]
    region: int = 64 << 20  # one leaf; always a cut
    file: int = 256 << 10  # the longest chunk of a file
    grid: int = 64 << 10  # free space, journal and other metadata
    content: int = 16 << 10  # FastCDC's average where no file system is known


class Piece(NamedTuple):
    """A run of a region: ``cuts`` (ascending, with both ends), or None: cut by content."""

    start: int
    end: int
    cuts: Ints | None


class Cutter:
    """The areas of one disk, and where each is cut."""

    def __init__(self, disk: Source, chunking: Chunking) -> None:
        self._chunking = chunking
        self._areas = areas(disk)

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        """The runs that cover the region ``[start, end)``."""
        number = bisect_right(self._areas, start, key=lambda area: area.end)
        while start < end:
            area = self._areas[number]
            last = min(end, area.end)
            cuts = None
            if area.files is not None:
                cuts = self._file_cuts(area.files, start, last)
            yield Piece(start, last, cuts)
            start = last
            number += 1

    def _file_cuts(self, files: Runs, first: int, last: int) -> Ints:
        near = slice(
            int(np.searchsorted(files.end, first, side="right")),
            int(np.searchsorted(files.start, last, side="left")),
        )
        starts, ends = files.start[near], files.end[near]
        grid = self._chunking.grid
        from_grid = files.origin - (files.origin - first) // grid * grid
        marks = np.arange(from_grid, last, grid, dtype=np.int64)
        inside = np.searchsorted(starts, marks, side="right") > np.searchsorted(
            ends, marks, side="right"
        )
        limits = multiples(starts - files.logical[near], starts, ends, self._chunking.file)
        cuts = np.unique(
            np.concatenate([marks[~inside], starts, ends, limits, np.array([first, last])])
        )
        return cuts[(cuts >= first) & (cuts <= last)]


def multiples(origins: Ints, starts: Ints, ends: Ints, step: int) -> Ints:
    """All ``origin + k * step`` that lie strictly inside their run ``(start, end)``."""
    first = (starts - origins) // step + 1
    count = np.maximum((ends - 1 - origins) // step - first + 1, 0)
    nth = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    found: Ints = np.repeat(origins + first * step, count) + nth * step
    return found
