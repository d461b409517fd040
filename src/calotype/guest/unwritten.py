"""Blocks that belong to a file and were never written through it: they read as zeros and hold something else.

``fallocate`` promises blocks to a file as they are, with what a deleted file left in them. A swap file made
so (the usual way) is written past the file system, which goes on to call its blocks unwritten.
"""

import stat
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from calotype.errors import GuestError
from calotype.guest.ext4 import Ext4

_EXTENTS = 0x80000
_LONGEST = 32768  # blocks of a written extent; a greater length marks an unwritten one
_MOST_TABLES = 4 << 30  # bytes of tables that are read


def unwritten(fs: Ext4) -> Iterator[tuple[int, int]]:
    """(offset, length) in the file system of the unwritten extents of all regular files.

    Raises:
        GuestError: the file system's account of itself makes no sense.
    """
    fields = np.dtype(
        {
            "names": ["mode", "links", "flags", "depth", "extents"],
            "formats": ["<u2", "<u2", "<u4", "<u2", ("<u2", (4, 6))],
            "offsets": [0, 26, 32, 46, 52],
            "itemsize": fs.inode_size,
        }
    )
    room = _MOST_TABLES
    for first, offset, count in fs.tables():
        size = count * fs.inode_size
        room -= size
        if room < 0 or offset + size > fs.blocks * fs.block:
            raise GuestError("a table of inodes makes no sense")
        table = np.frombuffer(fs.read_at(offset, size), dtype=fields)
        for row in np.flatnonzero(_likely(table)).tolist():
            for run in fs.runs(fs.inode(first + row)):
                if not run.written:
                    yield run.physical * fs.block, run.blocks * fs.block


def _likely(table: NDArray[np.void]) -> NDArray[np.bool_]:
    """The regular files with an unwritten extent in the inode, or with extents outside of it."""
    regular = (table["mode"] & 0o170000 == stat.S_IFREG) & (table["links"] > 0)
    mapped = table["flags"] & _EXTENTS > 0
    marked = (table["extents"][:, :, 2] > _LONGEST).any(axis=1)
    found: NDArray[np.bool_] = regular & mapped & ((table["depth"] > 0) | marked)
    return found
