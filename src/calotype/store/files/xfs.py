"""Where an XFS file system (version 4 or 5) keeps its regular files: inode B+trees, extents, extent B+trees.

All numbers are big-endian. What is left out (inline data, the real-time device, what exceeds a bound) is
cut as free space is.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from calotype.store.digest import Ints
from calotype.store.files.extents import Extents, FileMap, file_map
from calotype.store.files.numbers import Table, column, matrix, power_of_two
from calotype.store.files.trees import Nodes, walk
from calotype.store.files.volume import SLICE, Reader, read_rows

_MAX_GROUPS = 1 << 16
_MAX_DEPTH = 8
_CHUNK = 64  # inodes that one record of an inode B+tree describes
_SPARSE_INODES = 2  # an incompatible feature: chunks may have holes
_EXTENTS, _BTREE = 2, 3  # formats of a data fork
_REALTIME = 1  # a flag of an inode
_BIG_COUNTS = 1 << 4  # a flag (2) of an inode: nextents is 64 bits wide, elsewhere


class _Super(NamedTuple):
    block: int
    blocks: int
    group_blocks: int
    groups: int
    group_log: int  # bits of a block number that count inside a group
    sector: int
    inode_size: int
    v5: bool
    sparse: bool

    def linear(self, number: Ints) -> Ints:
        """Blocks from the start of the file system for XFS's block numbers; -1 where there is none."""
        group, block = number >> self.group_log, number & ((1 << self.group_log) - 1)
        inside = (number >= 0) & (group < self.groups) & (block < self.group_blocks)
        return np.where(inside, group * self.group_blocks + block, -1)


class _Chunks(NamedTuple):
    """Chunks of 64 inodes: where they are (bytes), and their records, 16 bytes each."""

    offset: Ints
    records: Table


def read_map(volume: Reader) -> FileMap | None:
    """The files of an XFS file system; None where there is none, or a mad one."""
    if volume.size < 4096:
        return None
    sb = _superblock(volume.read(0, 512), volume.size)
    if sb is None:
        return None
    return file_map(sb.blocks * sb.block, sb.block, _extents(volume, sb))


def _superblock(raw: bytes, length: int) -> _Super | None:
    magic, block, blocks = struct.unpack_from(">4sIQ", raw)
    group_blocks, groups = struct.unpack_from(">II", raw, 84)
    version, sector, inode_size = struct.unpack_from(">HHH", raw, 100)
    v5 = version & 15 == 5
    sb = _Super(
        block=block,
        blocks=blocks,
        group_blocks=group_blocks,
        groups=groups,
        group_log=raw[124],
        sector=sector,
        inode_size=inode_size,
        v5=v5,
        sparse=v5 and bool(struct.unpack_from(">I", raw, 216)[0] & _SPARSE_INODES),
    )
    sane = (
        magic == b"XFSB"
        and version & 15 in (4, 5)
        and power_of_two(block, 512, 65536)
        and power_of_two(sector, 512, 32768)
        and power_of_two(inode_size, 512 if v5 else 256, min(block, 2048))
        and 0 < blocks <= length // block
        and 0 < groups <= _MAX_GROUPS
        and group_blocks * (groups - 1) < blocks <= group_blocks * groups
        and group_blocks <= 1 << sb.group_log <= 1 << 31
    )
    return sb if sane else None


def _extents(volume: Reader, sb: _Super) -> Iterator[Extents]:
    """The extents of all regular files: first those in the inodes, then those of the trees."""
    trees = Nodes()
    for chunks in walk(
        volume, sb.block, _roots(volume, sb), lambda *node: _parse_inode_tree(sb, *node)
    ):
        for inodes in _inodes(volume, sb, chunks):
            yield _parse_extents(inodes, sb)
            _add_trees(inodes, sb, trees)
    yield from walk(volume, sb.block, trees, lambda *node: _parse_extent_tree(sb, *node))


def _roots(volume: Reader, sb: _Super) -> Nodes:
    """The roots of the inode B+trees; the tag of a node is the number of its group."""
    nodes = Nodes()
    for group in range(sb.groups):
        at = group * sb.group_blocks * sb.block + 2 * sb.sector
        if at + sb.sector > sb.blocks * sb.block:
            break
        magic, root, levels = struct.unpack(">4s16xII", volume.read(at, 28))
        if magic == b"XAGI" and 0 < root < sb.group_blocks and 0 < levels <= _MAX_DEPTH:
            block = np.array([group * sb.group_blocks + root], dtype=np.int64)
            nodes.add(levels - 1, block, np.array([group], dtype=np.int64))
    return nodes


def _parse_inode_tree(sb: _Super, rows: Table, groups: Ints, level: int, nodes: Nodes) -> _Chunks:
    """Nodes of inode B+trees: the chunks in leaves; the children of the others are added."""
    magic, head = (b"IAB3", 56) if sb.v5 else (b"IABT", 16)
    if level:
        room = (sb.block - head) // 8
        row, records = _entries(rows, magic, level, at=head + room * 4, room=room, size=4)
        children, groups = column(records, 0, ">u4"), groups[row]
        inside = children < sb.group_blocks
        nodes.add(level - 1, (groups * sb.group_blocks + children)[inside], groups[inside])
        return _Chunks(np.zeros(0, dtype=np.int64), records[:0])
    row, records = _entries(rows, magic, level, at=head, room=(sb.block - head) // 16, size=16)
    first = groups[row] * sb.group_blocks * sb.block
    return _Chunks(first + column(records, 0, ">u4") * sb.inode_size, records)


def _entries(
    rows: Table, magic: bytes, level: int, *, at: int, room: int, size: int
) -> tuple[Ints, Table]:
    """The entries in use of nodes of a B+tree, ``size`` bytes each: of which node, and their bytes."""
    count = column(rows, 6, ">u2")
    good = (rows[:, :4] == np.frombuffer(magic, dtype=np.uint8)).all(axis=1)
    good &= (column(rows, 4, ">u2") == level) & (count <= room)
    used = (np.arange(room) < count[:, None]) & good[:, None]
    row, slot = np.nonzero(used)
    return row, rows[:, at : at + room * size].reshape(len(rows), room, size)[row, slot]


def _inodes(volume: Reader, sb: _Super, chunks: _Chunks) -> Iterator[Table]:
    """The inodes of the chunks that are in use and regular files with extents."""
    size = _CHUNK * sb.inode_size
    offsets, which = np.unique(chunks.offset, return_index=True)
    inside = offsets <= sb.blocks * sb.block - size
    offsets, records = offsets[inside], chunks.records[which[inside]]
    step = SLICE // size
    for at in range(0, len(offsets), step):
        rows = read_rows(volume, offsets[at : at + step], size)
        some = records[at : at + step]
        # Bit n of a number, from the lowest on, stands for inode n: free when it is set.
        used = np.unpackbits(some[:, 8:16], axis=1)[:, ::-1] == 0
        if sb.sparse:
            # Bit n of these 16 stands for inodes 4n to 4n + 3, which do not exist when it is set.
            holes = np.unpackbits(some[:, 4:6], axis=1)[:, ::-1]
            used &= np.repeat(holes, 4, axis=1) == 0
        yield _regular(rows.reshape(-1, sb.inode_size)[used.reshape(-1)], sb)


def _regular(inodes: Table, sb: _Super) -> Table:
    version, format_ = inodes[:, 4], inodes[:, 5]
    wanted = (column(inodes, 0, ">u2") == 0x494E) & (column(inodes, 2, ">u2") >> 12 == 8)
    wanted &= version == 3 if sb.v5 else (version == 1) | (version == 2)
    wanted &= (format_ == _EXTENTS) | (format_ == _BTREE)
    wanted &= (version == 1) | (column(inodes, 16, ">u4") > 0)  # a deleted file's are not its own
    wanted &= (column(inodes, 90, ">u2") & _REALTIME) == 0
    wanted &= _fork(inodes, sb) <= sb.inode_size - _core(sb)
    regular: Table = inodes[wanted]
    return regular


def _core(sb: _Super) -> int:
    """Where the data fork starts in an inode."""
    return 176 if sb.v5 else 100


def _fork(inodes: Table, sb: _Super) -> Ints:
    """The length of each data fork; it ends where the attributes' fork starts, if there is one."""
    attributes = inodes[:, 82].astype(np.int64) * 8
    return np.where(attributes > 0, attributes, sb.inode_size - _core(sb))


def _parse_extents(inodes: Table, sb: _Super) -> Extents:
    """The extents in inodes that have no tree."""
    inodes = inodes[inodes[:, 5] == _EXTENTS]
    count = column(inodes, 76, ">u4")
    if sb.v5:
        big = (column(inodes, 124, ">u4") & _BIG_COUNTS) != 0  # the low half of 64 bits of flags
        count = np.where(big, column(inodes, 24, ">i8"), count)
    room = (sb.inode_size - _core(sb)) // 16
    count = np.minimum(count, _fork(inodes, sb) // 16)
    row, slot = np.nonzero(np.arange(room) < count[:, None])
    records = inodes[:, _core(sb) : _core(sb) + room * 16].reshape(len(inodes), room, 16)
    return _decode(records[row, slot], sb)


def _add_trees(inodes: Table, sb: _Super, nodes: Nodes) -> None:
    """The children of the roots of extent B+trees, which are in the inodes."""
    inodes = inodes[inodes[:, 5] == _BTREE]
    core = _core(sb)
    level, count = column(inodes, core, ">u2"), column(inodes, core + 2, ">u2")
    room = (_fork(inodes, sb) - 4) // 16
    good = (level > 0) & (level <= _MAX_DEPTH) & (count > 0) & (count <= room)
    # Roots of one shape at a time: there are few.
    for depth, slots in sorted(
        {(d, s) for d, s, g in zip(level.tolist(), room.tolist(), good.tolist(), strict=True) if g}
    ):
        same = good & (level == depth) & (room == slots)
        pointers = matrix(inodes[same], core + 4 + slots * 8, slots, ">i8")
        children = sb.linear(pointers[np.arange(slots) < count[same][:, None]])
        nodes.add(depth - 1, children, np.zeros_like(children))


def _parse_extent_tree(sb: _Super, rows: Table, _tags: Ints, level: int, nodes: Nodes) -> Extents:
    """Nodes of extent B+trees: the extents in leaves; the children of the others are added."""
    magic, head = (b"BMA3", 72) if sb.v5 else (b"BMAP", 24)
    room = (sb.block - head) // 16
    if level:
        _row, records = _entries(rows, magic, level, at=head + room * 8, room=room, size=8)
        children = sb.linear(column(records, 0, ">i8"))
        nodes.add(level - 1, children, np.zeros_like(children))
        records = np.zeros((0, 16), dtype=np.uint8)
    else:
        _row, records = _entries(rows, magic, level, at=head, room=room, size=16)
    return _decode(records, sb)


def _decode(records: Table, sb: _Super) -> Extents:
    """Extents of 128 bits: 1 unwritten, 54 in the file, 52 in the file system, 21 how many blocks."""
    high, low = column(records, 0, ">i8"), column(records, 8, ">i8")
    written = high >= 0
    high, low = high[written], low[written]
    number = (high & 0x1FF) << 43 | (low >> 21) & ((1 << 43) - 1)
    length = low & 0x1FFFFF
    physical = sb.linear(number)
    # No extent leaves its group.
    inside = physical % sb.group_blocks + length <= sb.group_blocks
    return Extents(high >> 9, np.where(inside, physical, -1), length)
