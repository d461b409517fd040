"""Raw disks: the file is the disk; holes of the file are zeros."""

import itertools

import numpy as np

from calotype.disk.layout import MAX_RUNS, Kind, Layout, Mapper
from calotype.disk.window import Window
from calotype.errors import DiskRefused


def parse(window: Window) -> Layout:
    """The map of a raw disk.

    Raises:
        DiskRefused: the size is 0 or not a whole number of sectors.
    """
    if window.size == 0 or window.size % 512:
        raise DiskRefused(
            f"{window.size} bytes are not a whole number of 512-byte sectors: this is no raw disk",
            hint="if it is one, fill it up: truncate -s %512 FILE",
        )
    return plain(window, window.size, "raw", "flat")


def plain(window: Window, size: int, name: str, variant: str) -> Layout:
    """A layout whose disk is the file's first ``size`` bytes as they stand."""
    # A file in more pieces than a map may have is read as data from there on: only zeros are missed.
    found = list(itertools.islice(window.data_runs(size), MAX_RUNS // 2))
    if len(found) == MAX_RUNS // 2:
        found[-1] = (found[-1][0], size - found[-1][0])
    held = np.array(found, dtype=np.int64).reshape(-1, 2)
    mapper = Mapper(size)
    mapper.add(held[:, 0], held[:, 1], Kind.DATA, held[:, 0])
    return Layout(format=name, variant=variant, size=size, runs=mapper.runs(window.size))
