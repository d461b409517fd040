"""Overwrites what a file system has forgotten but not erased.

Deleted files live on in free blocks, deleted names and short links in free inodes, and copies of all
metadata in the journal; what a deleted file left may stand in blocks that another one was promised and never
wrote. (Names in the slack of directories go when e2fsck writes those anew.)
"""

import errno
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from calotype.errors import GuestError
from calotype.guest.ext4 import Ext4
from calotype.guest.offline import zero
from calotype.guest.tools import on_file
from calotype.guest.unwritten import unwritten

_GROUP = re.compile(rb"^Group (\d+):")
_TABLE = re.compile(rb"Inode table at (\d+)-\d+")
_FREE_BLOCKS = re.compile(rb"^  Free blocks:(.*)$")
_FREE_INODES = re.compile(rb"^  Free inodes:(.*)$")
_JOURNAL_MAGIC = 0xC03B3998


def wipe(path: Path, disk: Path, offset: int) -> int:
    """Zero what a clean file system has free (blocks and inodes) or never written, and its journal.

    Args:
        path: a file that holds one ext4 file system, checked and not in use.
        disk: a file that knows the holes of what ``path`` shows: the whole disk (a view's partition
            has the right bytes, but takes all that its overlay lacks for holes), or ``path`` itself.
        offset: where in ``disk`` the file system begins.

    Returns:
        The number of bytes that were overwritten (what was a hole before is not counted).

    Raises:
        GuestError: the file system's own account of itself makes no sense.
    """
    listing = on_file(["dumpe2fs"], path)
    if listing.returncode != 0:
        raise GuestError("the guest's file system cannot be listed")
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    holes = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        fs = Ext4(lambda at, length: os.pread(fd, length, at), size)
        if fs.needs_recovery:
            raise GuestError("the file system's journal was not replayed")
        wiped = 0
        for start, length in forgotten(fs, listing.stdout):
            for at, count in data_runs(holes, offset + start, offset + start + length):
                zero(fd, at - offset, count)
                wiped += count
        os.fsync(fd)
        return wiped
    finally:
        os.close(holes)
        os.close(fd)


def forgotten(fs: Ext4, listing: bytes, *, blocks: bool = True) -> list[tuple[int, int]]:
    """(offset, length) in a clean file system of what it does not need.

    Args:
        fs: the file system.
        listing: what dumpe2fs says of it.
        blocks: free blocks too, besides free inodes and the journal.

    Raises:
        GuestError: the file system's own account of itself makes no sense.
    """
    found = [*_free(fs, listing, blocks=blocks), *unwritten(fs), *_journal(fs)]
    for start, length in found:
        if start < fs.block or start + length > fs.blocks * fs.block:
            raise GuestError("the guest's file system lists free space outside itself")
    return found


def _free(fs: Ext4, listing: bytes, *, blocks: bool) -> Iterator[tuple[int, int]]:
    """(offset, length) of the free blocks and of the free inodes, from dumpe2fs' listing."""
    group = table = -1
    for line in listing.splitlines():
        if found := _GROUP.match(line):
            group = int(found[1])
            table = -1
        elif found := _TABLE.search(line):
            table = int(found[1])
        elif blocks and (found := _FREE_BLOCKS.match(line)):
            for first, last in _ranges(found[1]):
                yield first * fs.block, (last - first + 1) * fs.block
        elif found := _FREE_INODES.match(line):
            for first, last in _ranges(found[1]):
                index = first - 1 - group * fs.group_inodes
                if table < 0 or index < 0 or last > (group + 1) * fs.group_inodes:
                    raise GuestError("the guest's file system lists inodes in the wrong place")
                start = table * fs.block + index * fs.inode_size
                yield start, (last - first + 1) * fs.inode_size


def _ranges(text: bytes) -> Iterator[tuple[int, int]]:
    for part in filter(None, text.strip().split(b", ")):
        first, _, last = part.partition(b"-")
        yield int(first), int(last or first)


def _journal(fs: Ext4) -> Iterator[tuple[int, int]]:
    """(offset, length) of the journal's blocks but the first, which says that it is empty."""
    if not fs.has_journal or not fs.journal_inode:
        return
    runs = list(fs.runs(fs.inode(fs.journal_inode)))
    if not runs or runs[0].logical != 0:
        raise GuestError("the guest's journal makes no sense")
    head = fs.read_at(runs[0].physical * fs.block, 32)
    magic, start = struct.unpack(">I24xI", head)
    if magic != _JOURNAL_MAGIC or start != 0:
        raise GuestError("the guest's journal is not empty")
    for run in runs:
        skip = run.logical == 0
        if run.blocks > skip:
            yield (run.physical + skip) * fs.block, (run.blocks - skip) * fs.block


def data_runs(fd: int, offset: int, end: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is not a hole of a file, from ``offset`` to ``end``."""
    while offset < end:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
            stop = min(end, os.lseek(fd, offset, os.SEEK_HOLE))
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            stop = end  # a file system that knows no holes
        if offset < stop:
            yield offset, stop - offset
        offset = max(stop, offset + 1)
