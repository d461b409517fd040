"""Where a disk is cut: along its files where we can read its file system, by content elsewhere.

The cuts are a pure function of the disk's bytes and of :class:`Chunking`; a wrong or hostile file map may
cost ratio, never correctness.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from calotype.store.digest import Ints
from calotype.store.ext4 import FileMap, file_map
from calotype.store.partitions import partitions
from calotype.store.source import Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunking:
    """How this repository cuts; sizes in bytes. Part of its config, never changed."""

    version: int = 1
    region: int = 64 << 20  # one leaf; always a cut
    file: int = 256 << 10  # the longest chunk of a file
    grid: int = 64 << 10  # free space, journal and other metadata
    content: int = 16 << 10  # FastCDC's average where no file system is known


class Piece(NamedTuple):
    """A run of a region: ``cuts`` (ascending, with both ends), or None: cut by content."""

    start: int
    end: int
    cuts: Ints | None


class _Area(NamedTuple):
    start: int
    end: int
    files: FileMap | None


class Cutter:
    """The areas of one disk, and where each is cut."""

    def __init__(self, disk: Source, chunking: Chunking) -> None:
        self._chunking = chunking
        self._areas = list(_areas(disk))

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        """The runs that cover the region ``[start, end)``."""
        for area in self._areas:
            first, last = max(start, area.start), min(end, area.end)
            if first >= last:
                continue
            cuts = None
            if area.files is not None:
                cuts = self._file_cuts(area.files, area.start, first, last)
            yield Piece(first, last, cuts)

    def _file_cuts(self, files: FileMap, origin: int, first: int, last: int) -> Ints:
        near = slice(
            int(np.searchsorted(files.end, first, side="right")),
            int(np.searchsorted(files.start, last, side="left")),
        )
        starts, ends = files.start[near], files.end[near]
        grid = self._chunking.grid
        marks = np.arange(origin + -(-(first - origin) // grid) * grid, last, grid, dtype=np.int64)
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


def _areas(disk: Source) -> Iterator[_Area]:
    """The file systems that we can read, and what lies between, in order; they cover the disk."""
    done = 0
    whole = file_map(disk, 0, disk.size)
    candidates = partitions(disk) if whole is None else [(0, disk.size)]
    for start, length in candidates:
        files = whole or file_map(disk, start, length)
        if files is None:
            continue
        if start > done:
            yield _Area(done, start, None)
        done = start + files.size
        yield _Area(start, done, files)
    if done < disk.size:
        yield _Area(done, disk.size, None)
