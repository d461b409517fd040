"""The areas of a disk: what its file systems cover, with their files, and what lies between.

A file system is looked for on the disk itself, then in its partitions, and in the linear volumes of an LVM
physical volume that is one of these.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from calotype.store.digest import Ints
from calotype.store.files import ext4, lvm, ntfs, xfs
from calotype.store.files.extents import MAX_EXTENTS, FileMap
from calotype.store.files.partitions import partitions
from calotype.store.files.volume import Enough, Metered, Reader, Segment, Volume

_READERS = (ext4.read_map, xfs.read_map, ntfs.read_map)


@dataclass(frozen=True, eq=False, slots=True)
class Runs:
    """Runs of file data on the disk, ascending and apart; all in bytes."""

    start: Ints
    end: Ints
    logical: Ints  # where each starts in its file
    origin: int  # where the file system starts, or would, were it in one piece


@dataclass(frozen=True, eq=False, slots=True)
class Area:
    """``[start, end)`` of a disk, and the files in it; None where no file system is known."""

    start: int
    end: int
    files: Runs | None


def areas(disk: Reader) -> list[Area]:
    """The areas of a disk, in order; they cover it."""
    found: list[Area] = []
    room = MAX_EXTENTS
    with suppress(Enough):
        for volume in _volumes(Metered(disk)):
            files = read_map(volume)
            if files is not None:
                files = files.first(room)
                room -= len(files.start)
                found += _placed(volume, files)
    return list(_covering(found, disk.size))


def read_map(volume: Reader) -> FileMap | None:
    """The map of the file system in a volume; None where no reader knows it.

    Raises:
        Enough: the budget was spent before a file system was found.
    """
    return next((m for reader in _READERS if (m := reader(volume)) is not None), None)


def _volumes(disk: Reader) -> Iterator[Volume]:
    """Where a file system may be."""
    for place in [Segment(0, disk.size), *partitions(disk)]:
        whole = Volume(disk, [place])
        yield whole
        for segments in lvm.linear_volumes(whole):
            yield Volume(disk, [Segment(place.start + at, length) for at, length in segments])


def _placed(volume: Volume, files: FileMap) -> Iterator[Area]:
    """The areas that a file system takes on the disk, one for each segment of its volume."""
    for offset, (start, length) in zip(volume.offsets, volume.segments, strict=True):
        end = min(offset + length, files.size)
        if offset >= end:
            return
        near = slice(
            int(np.searchsorted(files.end, offset, side="right")),
            int(np.searchsorted(files.start, end, side="left")),
        )
        first: Ints = np.maximum(files.start[near], offset)
        last: Ints = np.minimum(files.end[near], end)
        logical = files.logical[near] + (first - files.start[near])
        move = start - offset
        yield Area(start, end + move, Runs(first + move, last + move, logical, move))


def _covering(found: list[Area], size: int) -> Iterator[Area]:
    """The areas that start where no other goes on, and what lies between them."""
    done = 0
    for area in sorted(found, key=lambda area: area.start):
        if area.start < done:
            continue
        if area.start > done:
            yield Area(done, area.start, None)
        yield area
        done = area.end
    if done < size:
        yield Area(done, size, None)
