"""Where an ext2/3/4 file system keeps its regular files: inode tables, extent trees, indirect blocks.

What is left out (inline data, what exceeds a bound) is cut as free space is.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from calotype.store.digest import Ints
from calotype.store.files.extents import Extents, FileMap, file_map, joined
from calotype.store.files.numbers import Table, column, matrix, power_of_two, table
from calotype.store.files.trees import Nodes, walk
from calotype.store.files.volume import SLICE, Reader

_MAX_GROUPS = 1 << 18
_MAX_DEPTH = 5

_META_BG, _64BIT = 0x10, 0x80
_EXTENTS_FLAG, _INLINE_FLAG = 0x80000, 0x10000000
_CHECKSUMS = 0x10 | 0x400  # gdt_csum, metadata_csum: only then itable_unused is kept
_NODE_MAGIC = 0xF30A
_LONGEST = 32768  # blocks of a written extent; more marks an unwritten one
_DIRECT, _INDIRECT = 12, 3  # block numbers in an inode


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


def read_map(volume: Reader) -> FileMap | None:
    """The files of an ext2/3/4 file system; None where there is none, or a mad one."""
    if volume.size < 4096:
        return None
    sb = _superblock(volume.read(1024, 1024), volume.size)
    if sb is None:
        return None
    return file_map(sb.blocks * sb.block, sb.block, _extents(volume, sb))


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
    return (
        sb.first_block in (0, 1)
        and sb.first_block < sb.blocks <= length // sb.block
        and power_of_two(sb.inode_size, 128, sb.block)
        and power_of_two(sb.descriptor, 32, 1024)
        and sb.groups <= _MAX_GROUPS
        and inodes == sb.groups * sb.group_inodes
        and inodes * sb.inode_size <= length
    )


def _extents(volume: Reader, sb: _Super) -> Iterator[Extents]:
    """The extents of all regular files: first those in the inodes, then those of the trees."""
    trees, maps = Nodes(), Nodes()
    for numbers, inodes in _inodes(volume, sb):
        flags = column(inodes, 0x20, "<u4")
        wanted = (column(inodes, 0, "<u2") & 0xF000) == 0x8000
        wanted &= column(inodes, 0x1A, "<u2") > 0  # a deleted file's blocks are no longer its own
        wanted &= ((flags & _INLINE_FLAG) == 0) & (numbers >= sb.first_inode)
        tree = (flags & _EXTENTS_FLAG) != 0
        yield _parse_nodes(inodes[wanted & tree, 0x28:0x64], None, trees)
        yield _parse_direct(inodes[wanted & ~tree, 0x28:0x64], sb, maps)
    yield from walk(
        volume, sb.block, trees, lambda rows, _tags, level, nodes: _parse_nodes(rows, level, nodes)
    )
    yield from walk(volume, sb.block, maps, _parse_indirect)


def _inodes(volume: Reader, sb: _Super) -> Iterator[tuple[Ints, Table]]:
    """Inodes that are in use, with their numbers, some MiB at a time."""
    numbers: list[Ints] = []
    parts: list[bytes] = []
    room = SLICE
    for offset, length, first in _inode_tables(volume, sb):
        for at in range(0, length, SLICE):
            parts.append(volume.read(offset + at, min(SLICE, length - at)))
            here = first + at // sb.inode_size
            numbers.append(np.arange(here, here + len(parts[-1]) // sb.inode_size))
            room -= len(parts[-1])
            if room <= 0:
                yield np.concatenate(numbers), table(b"".join(parts), sb.inode_size)
                numbers, parts, room = [], [], SLICE
    if parts:
        yield np.concatenate(numbers), table(b"".join(parts), sb.inode_size)


def _inode_tables(volume: Reader, sb: _Super) -> Iterator[tuple[int, int, int]]:
    """(offset in bytes, bytes, number of the first inode) of what is used of each group's table."""
    groups = table(b"".join(_descriptors(volume, sb)), sb.descriptor)
    block = column(groups, 8, "<u4")
    unused = column(groups, 0x1C, "<u2")
    if sb.descriptor >= 64:
        block |= column(groups, 0x28, "<u4") << 32
        unused |= column(groups, 0x32, "<u2") << 16
    used = np.full(len(groups), sb.group_inodes, dtype=np.int64)
    if sb.unused_kept:
        used = np.maximum(used - unused, 0)
        used[(column(groups, 0x12, "<u2") & 1) != 0] = 0  # the table was never initialized
    length = used * sb.inode_size
    fits = (block > 0) & (block < sb.blocks) & (length > 0)
    fits &= length <= (sb.blocks - block) * sb.block
    for group in np.flatnonzero(fits).tolist():
        yield int(block[group]) * sb.block, int(length[group]), group * sb.group_inodes + 1


def _descriptors(volume: Reader, sb: _Super) -> Iterator[bytes]:
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
        part = volume.read(offset, min(length, left))
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


def _parse_nodes(rows: Table, depth: int | None, nodes: Nodes) -> Extents:
    """The extents in nodes of extent trees that are leaves; the children of the others are added.

    ``depth`` is what the parent says; None for the roots in the inodes.
    """
    room = (rows.shape[1] - 12) // 12
    count, level = column(rows, 2, "<u2"), column(rows, 6, "<u2")
    good = (column(rows, 0, "<u2") == _NODE_MAGIC) & (count <= room) & (level <= _MAX_DEPTH)
    if depth is not None:
        good &= level == depth
    rows, count, level = rows[good], count[good], level[good]
    entries = np.ascontiguousarray(rows[:, 12 : 12 + room * 12]).reshape(-1, 12)
    used = (np.arange(room) < count[:, None]).reshape(-1)
    levels = np.repeat(level, room)
    for above in np.unique(level[level > 0]).tolist():
        inner = entries[used & (levels == above)]
        blocks = column(inner, 4, "<u4") | (column(inner, 8, "<u2") << 32)
        nodes.add(above - 1, blocks, np.zeros_like(blocks))
    leaves = entries[used & (levels == 0)]
    extents = Extents(
        logical=column(leaves, 0, "<u4"),
        physical=column(leaves, 8, "<u4") | (column(leaves, 6, "<u2") << 32),
        length=column(leaves, 4, "<u2"),
    )
    return extents.take(extents.length <= _LONGEST)


def _parse_direct(rows: Table, sb: _Super, nodes: Nodes) -> Extents:
    """The direct blocks of inodes with block maps; their indirect blocks are added."""
    pointers = matrix(rows, 0, _DIRECT + _INDIRECT, "<u4")
    fan = sb.block // 4
    logical = _DIRECT
    for level in range(_INDIRECT):
        blocks = pointers[:, _DIRECT + level]
        blocks = blocks[blocks > 0]
        nodes.add(level, blocks, np.full_like(blocks, logical))
        logical += fan ** (level + 1)
    return _blocks(np.zeros(len(rows), dtype=np.int64), pointers[:, :_DIRECT])


def _parse_indirect(rows: Table, logical: Ints, level: int, nodes: Nodes) -> Extents:
    """Nodes of block maps; the tag of each is the first block in the file that it maps."""
    fan = rows.shape[1] // 4
    pointers = matrix(rows, 0, fan, "<u4")
    if level == 0:
        return _blocks(logical, pointers)
    row, slot = np.nonzero(pointers)
    nodes.add(level - 1, pointers[row, slot], logical[row] + slot * fan**level)
    none = np.zeros(0, dtype=np.int64)
    return Extents(none, none, none)


def _blocks(logical: Ints, pointers: Ints) -> Extents:
    """Extents from block numbers, shape (n, blocks); ``logical`` is where each row starts."""
    row, slot = np.nonzero(pointers)
    physical = pointers[row, slot]
    return joined(Extents(logical[row] + slot, physical, np.ones_like(physical)))
