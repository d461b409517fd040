"""Where an ext2/3/4 file system keeps its regular files: read with numpy, straight from the disk.

Only the map is read, only to choose where to cut. Everything here is a stranger's: a number that makes no
sense ends the reading of what it describes, work and memory are bounded, and nothing is ever an error.
Files that the map leaves out (old block maps, inline data, what exceeds a bound) are cut as free space is.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calotype.store.digest import Ints
from calotype.store.source import Source

_MAX_GROUPS = 1 << 18
_MAX_INODE_BYTES = 2 << 30  # of inode tables that are read
_MAX_EXTENTS = 1 << 21
_MAX_TREE_BLOCKS = 1 << 17  # of extent trees, on one level
_MAX_DEPTH = 5
_SLICE = 4 << 20  # bytes of inode tables or tree blocks in memory at once

_META_BG, _64BIT = 0x10, 0x80
_EXTENTS_FLAG, _INLINE_FLAG = 0x80000, 0x10000000
_CHECKSUMS = 0x10 | 0x400  # gdt_csum, metadata_csum: only then itable_unused is kept
_NODE_MAGIC = 0xF30A
_LONGEST = 32768  # blocks of a written extent; more marks an unwritten one

_Table = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False, slots=True)
class FileMap:
    """Runs of file data, ascending and apart; all in bytes."""

    size: int  # of the file system
    start: Ints  # on the disk
    end: Ints
    logical: Ints  # where each run starts in its file


class _Super(NamedTuple):
    block: int
    blocks: int
    first_block: int
    group_blocks: int
    group_inodes: int
    inode_size: int
    first_inode: int
    descriptor: int
    first_meta: int
    meta: bool
    unused_kept: bool
    sparse: bool
    sparse2: tuple[int, int] | None

    @property
    def groups(self) -> int:
        return -(-(self.blocks - self.first_block) // self.group_blocks)


class _Extents(NamedTuple):
    logical: Ints  # blocks
    physical: Ints
    length: Ints


def file_map(disk: Source, start: int, length: int) -> FileMap | None:
    """The files of the file system at ``start``; None where no ext2/3/4 is (or a mad one)."""
    if length < 4096 or start + length > disk.size:
        return None
    reader = _Reader(disk, start)
    sb = _superblock(reader.read(1024, 1024), length)
    if sb is None:
        return None
    tables = _inode_tables(reader, sb)
    found = list(_bounded(_extents(reader, sb, tables)))
    runs = _apart(sb, found)
    unit = sb.block
    return FileMap(
        size=sb.blocks * unit,
        start=runs.physical * unit + start,
        end=(runs.physical + runs.length) * unit + start,
        logical=runs.logical * unit,
    )


class _Reader:
    def __init__(self, disk: Source, start: int) -> None:
        self._disk = disk
        self._start = start

    def read(self, offset: int, length: int) -> bytes:
        return self._disk.read(self._start + offset, length)


def _superblock(raw: bytes, length: int) -> _Super | None:
    (inodes, blocks_low, _r, _f, _fi, first_block, log_block) = struct.unpack_from("<7I", raw)
    group_blocks, _clusters, group_inodes = struct.unpack_from("<3I", raw, 32)
    magic, revision = struct.unpack_from("<H", raw, 56)[0], struct.unpack_from("<I", raw, 76)[0]
    if magic != 0xEF53 or log_block > 6 or not group_blocks or not group_inodes:
        return None
    first_inode, inode_size = struct.unpack_from("<IH", raw, 84) if revision else (11, 128)
    compat, incompat, ro_compat = struct.unpack_from("<3I", raw, 92) if revision else (0, 0, 0)
    wide = bool(incompat & _64BIT)
    blocks = blocks_low | (struct.unpack_from("<I", raw, 0x150)[0] << 32 if wide else 0)
    sb = _Super(
        block=1024 << log_block,
        blocks=blocks,
        first_block=first_block,
        group_blocks=group_blocks,
        group_inodes=group_inodes,
        inode_size=inode_size,
        first_inode=first_inode,
        descriptor=struct.unpack_from("<H", raw, 254)[0] if wide else 32,
        first_meta=struct.unpack_from("<I", raw, 260)[0],
        meta=bool(incompat & _META_BG),
        unused_kept=bool(ro_compat & _CHECKSUMS),
        sparse=bool(ro_compat & 1),
        sparse2=struct.unpack_from("<2I", raw, 0x24C) if compat & 0x200 else None,
    )
    return sb if _sane(sb, inodes, length) else None


def _sane(sb: _Super, inodes: int, length: int) -> bool:
    sizes = {1 << n for n in range(5, 17)}
    return (
        sb.first_block in (0, 1)
        and sb.first_block < sb.blocks <= length // sb.block
        and sb.inode_size in sizes
        and 128 <= sb.inode_size <= sb.block
        and sb.descriptor in sizes
        and 32 <= sb.descriptor <= 1024
        and sb.groups <= _MAX_GROUPS
        and inodes == sb.groups * sb.group_inodes
        and inodes * sb.inode_size <= length
    )


def _inode_tables(reader: _Reader, sb: _Super) -> list[tuple[int, int, int]]:
    """(offset in bytes, bytes, number of the first inode) of what is used of each group's table."""
    raw = b"".join(_descriptors(reader, sb))
    table = np.frombuffer(raw, dtype=np.uint8).reshape(-1, sb.descriptor)
    block = _u32(table, 8)
    unused = _u16(table, 0x1C)
    if sb.descriptor >= 64:
        block |= _u32(table, 0x28) << 32
        unused |= _u16(table, 0x32) << 16
    used = np.full(len(table), sb.group_inodes, dtype=np.int64)
    if sb.unused_kept:
        used = np.maximum(used - unused, 0)
        used[(_u16(table, 0x12) & 1) != 0] = 0  # the table was never initialized
    length = used * sb.inode_size
    fits = (block > 0) & (block < sb.blocks) & (length > 0)
    fits &= block * sb.block + length <= sb.blocks * sb.block
    fits &= np.cumsum(np.where(fits, length, 0)) <= _MAX_INODE_BYTES
    first = np.arange(len(table)) * sb.group_inodes + 1
    return [(int(block[i]) * sb.block, int(length[i]), int(first[i])) for i in np.flatnonzero(fits)]


def _descriptors(reader: _Reader, sb: _Super) -> Iterator[bytes]:
    """The group descriptors, in order."""
    per_block = sb.block // sb.descriptor
    blocks = -(-sb.groups // per_block)
    plain = min(blocks, sb.first_meta) if sb.meta else blocks
    left = sb.groups * sb.descriptor
    # The superblock is 1024 bytes in, whatever the first data block (0 with bigalloc) says.
    after_super = 1024 // sb.block + 1
    spans = [(after_super * sb.block, plain * sb.block)]
    for number in range(plain, blocks):
        group = number * per_block
        at = sb.first_block + group * sb.group_blocks + _has_super(sb, group)
        at = at if group else after_super
        spans.append((at * sb.block, sb.block))
    for offset, length in spans:
        if offset + length > sb.blocks * sb.block:
            return
        part = reader.read(offset, min(length, left))
        left -= len(part)
        yield part


def _has_super(sb: _Super, group: int) -> bool:
    if group == 0:
        return True
    if sb.sparse2 is not None:
        return group in sb.sparse2
    if not sb.sparse or group == 1:
        return True
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return False


def _extents(reader: _Reader, sb: _Super, tables: list[tuple[int, int, int]]) -> Iterator[_Extents]:
    """The extents of all regular files: first those in the inodes, then those of the trees."""
    below: list[tuple[Ints, Ints]] = []
    for offset, length, first in tables:
        for at in range(0, length, _SLICE):
            raw = reader.read(offset + at, min(_SLICE, length - at))
            inodes = np.frombuffer(raw, dtype=np.uint8)
            inodes = inodes[: len(inodes) // sb.inode_size * sb.inode_size]
            numbers = first + at // sb.inode_size
            nodes = _regular(inodes.reshape(-1, sb.inode_size), numbers, sb)
            extents, children = _parse_nodes(nodes, None)
            yield extents
            if len(children[0]):
                below.append(children)
    if not below:
        return
    blocks = np.concatenate([b for b, _ in below])
    depths = np.concatenate([d for _, d in below])
    yield from _trees(reader, sb, blocks, depths)


def _regular(inodes: _Table, first: int, sb: _Super) -> _Table:
    """The 60 bytes of ``i_block`` of each regular file with an extent tree."""
    flags = _u32(inodes, 0x20)
    wanted = (_u16(inodes, 0) & 0xF000) == 0x8000
    wanted &= _u16(inodes, 0x1A) > 0  # a deleted file's blocks are no longer its own
    wanted &= ((flags & _EXTENTS_FLAG) != 0) & ((flags & _INLINE_FLAG) == 0)
    wanted &= np.arange(len(inodes)) + first >= sb.first_inode
    return inodes[wanted, 0x28:0x64]


def _trees(reader: _Reader, sb: _Super, blocks: Ints, depths: Ints) -> Iterator[_Extents]:
    """Walk down level by level; each level's depth is known, so a cycle ends by itself."""
    for depth in range(_MAX_DEPTH - 1, -1, -1):
        here = depths == depth
        level = np.unique(blocks[here])
        blocks, depths = blocks[~here], depths[~here]
        level = level[(level > 0) & (level < sb.blocks)][:_MAX_TREE_BLOCKS]
        step = max(1, _SLICE // sb.block)
        for at in range(0, len(level), step):
            nodes = _read_blocks(reader, sb, level[at : at + step])
            extents, children = _parse_nodes(nodes, depth)
            yield extents
            blocks = np.concatenate([blocks, children[0]])
            depths = np.concatenate([depths, children[1]])


def _read_blocks(reader: _Reader, sb: _Super, blocks: Ints) -> _Table:
    rows = np.empty((len(blocks), sb.block), dtype=np.uint8)
    heads = np.flatnonzero(np.diff(blocks, prepend=-2) != 1)
    for head, tail in zip(heads, [*heads[1:], len(blocks)], strict=True):
        raw = reader.read(int(blocks[head]) * sb.block, int(tail - head) * sb.block)
        rows[head:tail] = np.frombuffer(raw, dtype=np.uint8).reshape(-1, sb.block)
    return rows


def _parse_nodes(nodes: _Table, depth: int | None) -> tuple[_Extents, tuple[Ints, Ints]]:
    """The extents in leaf nodes, and (blocks, depths) of the children of the others.

    ``depth`` is what the parent says; None for the roots in the inodes.
    """
    room = (nodes.shape[1] - 12) // 12
    count, level = _u16(nodes, 2), _u16(nodes, 6)
    good = (_u16(nodes, 0) == _NODE_MAGIC) & (count <= room) & (level <= _MAX_DEPTH)
    if depth is not None:
        good &= level == depth
    nodes, count, level = nodes[good], count[good], level[good]
    entries = np.ascontiguousarray(nodes[:, 12 : 12 + room * 12]).reshape(-1, 12)
    used = (np.arange(room) < count[:, None]).reshape(-1)
    levels = np.repeat(level, room)
    leaves = entries[used & (levels == 0)]
    inner = used & (levels > 0)
    extents = _Extents(
        logical=_u32(leaves, 0),
        physical=_u32(leaves, 8) | (_u16(leaves, 6) << 32),
        length=_u16(leaves, 4),
    )
    children = entries[inner]
    blocks = _u32(children, 4) | (_u16(children, 8) << 32)
    return extents, (blocks, levels[inner] - 1)


def _bounded(parts: Iterator[_Extents]) -> Iterator[_Extents]:
    left = _MAX_EXTENTS
    for part in parts:
        yield _Extents(*(column[:left] for column in part))
        left -= len(part.logical)
        if left <= 0:
            return


def _apart(sb: _Super, parts: list[_Extents]) -> _Extents:
    """The sane extents in the order of the disk; of those that overlap, the first."""
    empty = np.zeros(0, dtype=np.int64)
    logical = np.concatenate([empty, *(p.logical for p in parts)])
    physical = np.concatenate([empty, *(p.physical for p in parts)])
    length = np.concatenate([empty, *(p.length for p in parts)])
    sane = (length > 0) & (length <= _LONGEST) & (physical > 0) & (physical + length <= sb.blocks)
    order = np.flatnonzero(sane)
    order = order[np.lexsort((length[order], logical[order], physical[order]))]
    ends = np.maximum.accumulate(physical[order] + length[order])
    free = np.ones(len(order), dtype=bool)
    free[1:] = physical[order][1:] >= ends[:-1]
    order = order[free]
    return _Extents(logical[order], physical[order], length[order])


def _u16(rows: _Table, at: int) -> Ints:
    return np.ascontiguousarray(rows[:, at : at + 2]).view("<u2").reshape(-1).astype(np.int64)


def _u32(rows: _Table, at: int) -> Ints:
    return np.ascontiguousarray(rows[:, at : at + 4]).view("<u4").reshape(-1).astype(np.int64)
