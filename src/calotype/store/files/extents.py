"""Extents of files, and the map that they make: in the order of the disk, apart, joined where they go on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from calotype.store.digest import Ints
from calotype.store.files.volume import Enough

MAX_EXTENTS = 1 << 20  # of one disk
_MAX_LOGICAL = 1 << 40  # blocks; no file is longer


class Extents(NamedTuple):
    """Runs of file data in blocks: where in the file, where in the file system, how many."""

    logical: Ints
    physical: Ints
    length: Ints

    def take(self, which: npt.NDArray[np.intp] | npt.NDArray[np.bool_] | slice) -> "Extents":
        """Some of them."""
        return Extents(*(column[which] for column in self))


@dataclass(frozen=True, eq=False, slots=True)
class FileMap:
    """Runs of file data, ascending and apart; all in bytes of the volume."""

    size: int  # of the file system
    start: Ints
    end: Ints
    logical: Ints  # where each run starts in its file

    def first(self, count: int) -> Self:
        """The map with its first ``count`` runs alone."""
        return type(self)(self.size, self.start[:count], self.end[:count], self.logical[:count])


def file_map(size: int, block: int, found: Iterator[Extents]) -> FileMap:
    """The map of a file system of ``size`` bytes with blocks of ``block`` bytes.

    Extents that make no sense are left out, and those that overlap one that starts earlier (of equal
    starts the lower in its file counts).
    """
    extents = _apart(_gather(size // block, found))
    return FileMap(
        size=size,
        start=extents.physical * block,
        end=(extents.physical + extents.length) * block,
        logical=extents.logical * block,
    )


def _gather(blocks: int, found: Iterator[Extents]) -> Extents:
    none = np.zeros(0, dtype=np.int64)
    parts = [Extents(none, none, none)]
    left = MAX_EXTENTS
    try:
        for part in found:
            logical, physical, length = part
            sane = (length > 0) & (length <= blocks) & (physical > 0)
            sane &= (physical <= blocks - length) & (logical >= 0) & (logical < _MAX_LOGICAL)
            parts.append(part.take(np.flatnonzero(sane)[:left]))
            left -= len(parts[-1].logical)
            if left <= 0:
                break
    except Enough:
        pass
    return Extents(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _apart(extents: Extents) -> Extents:
    logical, physical, length = extents
    extents = extents.take(np.lexsort((length, logical, physical)))
    ends = np.maximum.accumulate(extents.physical + extents.length)
    free = np.ones(len(ends), dtype=bool)
    free[1:] = extents.physical[1:] >= ends[:-1]
    return joined(extents.take(free))


def joined(extents: Extents) -> Extents:
    """Neighbours that continue each other, in the file and on the disk, as one."""
    logical, physical, length = extents
    fresh = np.ones(len(logical), dtype=bool)
    fresh[1:] = (physical[1:] != physical[:-1] + length[:-1]) | (
        logical[1:] != logical[:-1] + length[:-1]
    )
    heads = np.flatnonzero(fresh)
    if len(heads):
        length = np.add.reduceat(length, heads)
    return Extents(logical[heads], physical[heads], length)
