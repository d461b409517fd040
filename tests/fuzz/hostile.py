"""Disks that are all metadata, made up as they are read: the most work that a map can make.

``python -m tests.fuzz.hostile NAME`` reads one and prints its cost as JSON: seconds, MiB at the most, bytes
read, extents found.
"""

import json
import struct
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from tests.fuzz.physical_volume import metadata, physical_volume
from tests.memory import peak

from calotype.store.files import areas

_TIB = 1 << 40
_KINDS = 24  # different nodes of each level


class Made:
    """A disk whose blocks a function makes; ``block`` bytes each."""

    def __init__(self, size: int, block: int, make: Callable[[int], bytes]) -> None:
        self.size = size
        self.bytes_read = 0
        self._block = block
        self._make = make

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``."""
        self.bytes_read += length
        first, last = offset // self._block, -(-(offset + length) // self._block)
        raw = b"".join(map(self._make, range(first, last)))
        return raw[offset - first * self._block :][:length]


def ext4_trees(block: int = 65536) -> Made:
    """Each inode is the root of a tree of depth 5 with as many children as fit."""
    blocks = _TIB // block
    group_blocks, group_inodes = 8 * block, 32768
    groups = -(-blocks // group_blocks)
    rng = np.random.default_rng(1)

    def children(depth: int, count: int) -> bytes:
        where = rng.integers(1000, blocks // 6, count) * 6 + depth - 1 if depth else None
        if where is None:
            where = rng.integers(1000, blocks - 1, count)
        rows = np.zeros((count, 3), dtype="<u4")
        rows[:, 1] = where if depth else 1  # a leaf: one block; an index: the child
        rows[:, 2] = 0 if depth else where
        return struct.pack("<HHHHI", 0xF30A, count, count, depth, 0) + rows.tobytes()

    room = (block - 12) // 12
    nodes = [
        [children(depth, room).ljust(block, b"\0") for _ in range(_KINDS)] for depth in range(6)
    ]
    root = children(5, 4)
    inode = struct.pack("<H24xH4xI4x", 0x81A4, 1, 0x80000) + root
    inode = inode.ljust(256, b"\0")
    table_block = inode * (block // 256)
    sb = bytearray(block)
    struct.pack_into(
        "<7I", sb, 1024, groups * group_inodes, blocks, 0, 0, 0, 0, block.bit_length() - 11
    )
    struct.pack_into("<3I", sb, 1056, group_blocks, group_blocks, group_inodes)
    struct.pack_into("<H", sb, 1080, 0xEF53)
    struct.pack_into("<I", sb, 1100, 1)
    struct.pack_into("<IH", sb, 1108, 11, 256)
    gdt = struct.pack("<8xI20x", 100) * groups
    tables = group_inodes * 256 // block

    def make(number: int) -> bytes:
        if number == 0:
            return bytes(sb)
        if number < 100:
            return gdt[(number - 1) * block : number * block].ljust(block, b"\0")
        if number < 100 + tables:
            return table_block
        return nodes[number % 6][number // 6 % _KINDS]

    return Made(blocks * block, block, make)


def ext4_maps(block: int = 65536) -> Made:
    """Each inode has a block map of three levels, full of random blocks."""
    whole = ext4_trees(block)
    blocks = whole.size // block
    rng = np.random.default_rng(2)
    full = [rng.integers(1000, blocks, block // 4).astype("<u4").tobytes() for _ in range(_KINDS)]
    pointers = rng.integers(1000, blocks, 15).astype("<u4").tobytes()
    inode = (struct.pack("<H24xH4xI4x", 0x81A4, 1, 0) + pointers).ljust(256, b"\0")
    table = inode * (block // 256)
    tables = 32768 * 256 // block
    base = whole._make

    def make(number: int) -> bytes:
        if number < 100:
            return base(number)
        return table if number < 100 + tables else full[number % _KINDS]

    return Made(whole.size, block, make)


def _xfs(
    block: int, group_blocks: int, groups: int, levels: int, make: Callable[[int, int], bytes]
) -> Made:
    """``make`` gets a group and a block in it."""
    sb = bytearray(block)
    blocks = group_blocks * groups
    struct.pack_into(">4sIQ", sb, 0, b"XFSB", block, blocks)
    struct.pack_into(">II", sb, 84, group_blocks, groups)
    struct.pack_into(">HHH", sb, 100, 5, 512, 512)
    sb[124] = (group_blocks - 1).bit_length()
    struct.pack_into(">I", sb, 216, 2)
    struct.pack_into(">4s16xII", sb, 1024, b"XAGI", 1, levels)

    def block_of(number: int) -> bytes:
        group, at = divmod(number, group_blocks)
        return bytes(sb) if at == 0 else make(group, at)

    return Made(blocks * block, block, block_of)


def xfs_inodes(block: int = 65536) -> Made:
    """The inode tree is three levels of full nodes; each chunk has 64 inodes full of extents."""
    group_blocks = _TIB // 4 // block // 2
    rng = np.random.default_rng(3)
    room, records = (block - 56) // 8, (block - 56) // 16

    def node(level: int) -> bytes:
        head = struct.pack(">4sHH48x", b"IAB3", level, room)
        places = rng.integers(100, group_blocks // 4, room) * 4 + level - 1
        return (head + bytes(4 * room) + places.astype(">u4").tobytes()).ljust(block, b"\0")

    leaf = np.zeros((records, 4), dtype=">u4")
    leaf[:, 0] = rng.integers(100, group_blocks // 4, records) * 4 * (block // 512) + 3 * (
        block // 512
    )
    leaf_raw = (struct.pack(">4sHH48x", b"IAB3", 0, records) + leaf.tobytes()).ljust(block, b"\0")
    nodes = [leaf_raw, node(1), node(2)]
    inode = bytearray(512)
    struct.pack_into(">HHBB", inode, 0, 0x494E, 0x81A4, 3, 2)
    struct.pack_into(">I", inode, 16, 1)
    struct.pack_into(">I", inode, 76, 21)
    for number in range(21):
        start = int(rng.integers(100, group_blocks))
        struct.pack_into(
            ">QQ", inode, 176 + number * 16, number << 9 | start >> 43, start << 21 | 1
        )
    chunk = bytes(inode) * (block // 512)

    def make(group: int, at: int) -> bytes:
        if at == 1:
            return nodes[2]
        return chunk if at % 4 == 3 else nodes[at % 4]

    return _xfs(block, group_blocks, 1, 3, make)


def xfs_trees(block: int = 65536) -> Made:
    """Each inode is the root of a deep tree of extents."""
    group_blocks = _TIB // 4 // block // 2
    rng = np.random.default_rng(4)
    room = (block - 72) // 16
    depth = 4

    def node(level: int) -> bytes:
        head = struct.pack(">4sHH64x", b"BMA3", level, room)
        if level:
            places = rng.integers(100, group_blocks // 8, room) * 8 + level - 1
            return (head + bytes(8 * room) + places.astype(">u8").tobytes()).ljust(block, b"\0")
        rows = np.zeros((room, 2), dtype=">u8")
        rows[:, 0] = np.arange(room) << 9
        rows[:, 1] = rng.integers(100, group_blocks, room) << 21 | 1
        return (head + rows.tobytes()).ljust(block, b"\0")

    nodes = [[node(level) for _ in range(_KINDS)] for level in range(depth)]
    records = (block - 56) // 16
    leaf = np.zeros((records, 4), dtype=">u4")
    leaf[:, 0] = (np.arange(records) % (group_blocks // 8 - 9) * 8 + 7) * (block // 512)
    first = (struct.pack(">4sHH48x", b"IAB3", 0, records) + leaf.tobytes()).ljust(block, b"\0")
    inode = bytearray(512)
    struct.pack_into(">HHBB", inode, 0, 0x494E, 0x81A4, 3, 3)
    struct.pack_into(">I", inode, 16, 1)
    struct.pack_into(">HH", inode, 176, depth, 20)
    for number in range(20):
        place = int(rng.integers(100, group_blocks // 8)) * 8 + depth - 1
        struct.pack_into(">Q", inode, 180 + 20 * 8 + number * 8, place)
    chunk = bytes(inode) * (block // 512)

    def make(group: int, at: int) -> bytes:
        if at == 1:
            return first
        kind = at % 8
        return nodes[kind][at // 8 % _KINDS] if kind < depth else chunk

    return _xfs(block, group_blocks, 1, 1, make)


def xfs_groups() -> Made:
    """As many groups as there may be, each with a root that is empty."""
    return _xfs(4096, 64, 1 << 16, 1, lambda _group, _at: bytes(4096))


def ntfs(every: int = 1, record: int = 4096, run: bytes = b"\x11\x01\x01") -> Made:
    """A table that is read over and over, with as many runs in each record as fit.

    Only one record in ``every`` is in use.
    """
    cluster = 4096
    clusters = _TIB // 4 // cluster
    boot = bytearray(cluster)
    struct.pack_into("<3x8sHB", boot, 0, b"NTFS    ", 512, 8)
    struct.pack_into("<qq", boot, 40, clusters * 8, 4)
    boot[64] = 256 - (record.bit_length() - 1)
    strides = record // 512

    def made(runs: bytes, base: int) -> bytes:
        raw = bytearray(record)
        struct.pack_into(
            "<4sHHQHHHHIIQ", raw, 0, b"FILE", 48, strides + 1, 0, 1, 1, 72, 1, record, record, base
        )
        struct.pack_into("<IIBBHHH", raw, 72, 0x80, record - 80, 1, 0, 64, 0, 0)
        struct.pack_into("<qqHHIqqq", raw, 72 + 16, 0, 0, 64, 0, 0, 1 << 50, 1 << 50, 1 << 50)
        raw[136 : 136 + len(runs)] = runs
        for number in range(strides):
            end = (number + 1) * 512
            raw[50 + number * 2 : 52 + number * 2] = raw[end - 2 : end]
            raw[end - 2 : end] = b"\0\0"
        return bytes(raw)

    # The table takes the same clusters again and again.
    again = b"\x31\x7f" + (64).to_bytes(3, "little")
    again += (b"\x31\x7f" + (0).to_bytes(3, "little")) * ((record - 200) // 5)
    first = made(again, 0)
    full = made(run * ((record - 160) // len(run)), 0)

    def make(number: int) -> bytes:
        if number == 0:
            return bytes(boot)
        if number == 4:
            return first.ljust(cluster, b"\0")
        per = cluster // record
        return b"".join(
            full if (number * per + n) % every == 0 else bytes(record) for n in range(per)
        )

    return Made(clusters * cluster, cluster, make)


class _Bytes(NamedTuple):
    data: bytes
    size: int
    bytes_read: int = 0

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length].ljust(length, b"\0")


def lvm(text: str) -> _Bytes:
    """A physical volume with a long text."""
    disk = bytes(physical_volume({}, extents=16, text=text))
    return _Bytes(disk, len(disk))


def _text(body: str) -> str:
    return metadata({}, 16).replace("logical_volumes {\n", "logical_volumes {\n" + body)


_LONG = 1_000_000  # characters
DISKS: dict[str, Callable[[], Made | _Bytes]] = {
    "ext4 trees": ext4_trees,
    "ext4 maps": ext4_maps,
    "xfs inodes": xfs_inodes,
    "xfs trees": xfs_trees,
    "xfs groups": xfs_groups,
    "ntfs runs": ntfs,
    "ntfs runs, holes": lambda: ntfs(run=b"\x01\x01"),
    "ntfs one record in 1000": lambda: ntfs(every=1000, run=b"\x01\x01"),
    "lvm words": lambda: lvm(_text("a" * _LONG)),
    "lvm sections": lambda: lvm(_text("".join(f"a{n}{{}}" for n in range(_LONG // 9)))),
    "lvm depth": lambda: lvm(_text("a{" * (_LONG // 2))),
    "lvm array": lambda: lvm(_text("a=[" + "1," * (_LONG // 2) + "]")),
    "lvm open arrays": lambda: lvm(_text("a=[" * (_LONG // 3))),
    "lvm quotes": lambda: lvm(_text('a="\\' * (_LONG // 4))),
    "lvm spaces": lambda: lvm(_text("a" + " " * _LONG)),
}


def main() -> None:
    """Read one."""
    disk = DISKS[sys.argv[1]]()
    before = peak()
    begun = time.process_time()
    found = areas(disk)
    cost = {
        "seconds": round(time.process_time() - begun, 2),
        "MiB": peak() >> 10,
        "MiB before": before >> 10,
        "read": disk.bytes_read,
        "extents": sum(len(area.files.start) for area in found if area.files is not None),
        "areas": len(found),
    }
    sys.stdout.write(json.dumps(cost) + "\n")


if __name__ == "__main__":
    main()
