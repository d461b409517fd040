"""Reads an ext2, ext3 or ext4 file system, from its bytes alone and without trust in them.

Names, modes and contents come out exactly as they stand on the disk, so no tool's output has to be
parsed. Everything that a hostile file system could make endless is bounded; what makes no sense raises
:class:`~calotype.errors.GuestError`.
"""

import itertools
import stat
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from calotype.disk.crc32c import crc32c
from calotype.errors import GuestError

ROOT = 2
#: Reads ``length`` bytes at ``offset`` of the file system.
ReadAt = Callable[[int, int], bytes]

_MAGIC = 0xEF53
_META_BG, _64BIT = 0x10, 0x80
_NEEDS_RECOVERY = 0x4
_GROUP_CHECKSUMS = 0x10 | 0x400  # either of these, and descriptors count unused inodes
_INODE_UNINIT = 0x1
_UNREADABLE = {0x1: "compression", 0x8: "an external journal", 0x1000: "dirdata"}
_UNREADABLE |= {0x10000: "encrypted directories"}
# filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, large_dir, inline_data,
# casefold: none changes how we read.
_KNOWN = 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x20000
_EXTENTS = 0x80000
#: The flag of an inode that keeps its content in itself.
INLINE = 0x10000000
_EXTENT_MAGIC, _XATTR_MAGIC = 0xF30A, 0xEA020000
_SYSTEM = 7  # the name index of "system." attributes
#: What the names of extended attributes begin with, by index.
_PREFIXES = {1: b"user.", 2: b"system.posix_acl_access", 3: b"system.posix_acl_default"}
_PREFIXES |= {4: b"trusted.", 6: b"security.", _SYSTEM: b"system.", 8: b"system.richacl"}
_ALL = 0xFFFFFFFF
_CHECKSUM_TAIL = struct.pack("<IHBB", 0, 12, 0, 0xDE)
_CHECKSUMS, _CHECKSUM_SEED = 0x400, 0x2000
_LARGEST_VALUE = 1 << 16  # of an extended attribute
_TABLE_BLOCKS = 256  # blocks of inode tables that are kept
_LONGEST = 32768  # blocks of a written extent; a greater length marks an unwritten one
_MAX_DIRECTORY = 64 << 20
_MAX_DEPTH = 5
_MAX_NODES = 1 << 17  # of one file's tree


class Run(NamedTuple):
    """Blocks of a file, in a row: ``blocks`` from ``logical`` on lie at ``physical``."""

    logical: int
    physical: int
    blocks: int
    written: bool


class Entry(NamedTuple):
    """A name in a directory."""

    name: bytes
    inode: int


@dataclass(frozen=True, slots=True)
class Inode:
    """What the file system keeps of a file; ``raw`` is the inode as it stands in its table."""

    number: int
    mode: int
    uid: int
    gid: int
    size: int
    links: int
    mtime: int
    flags: int
    raw: bytes

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


class Ext4:
    """A file system of at most ``size`` bytes, read through ``read_at``.

    Raises:
        GuestError: there is none, or one that cannot be read.
    """

    def __init__(self, read_at: ReadAt, size: int) -> None:
        self.read_at = read_at
        self._size = size
        raw = self._bytes(1024, 1024)
        (magic,) = struct.unpack_from("<H", raw, 56)
        (log_block,) = struct.unpack_from("<I", raw, 24)
        revision, compat, incompat = self._features(raw)
        self.group_inodes, self._inodes = (struct.unpack_from("<I", raw, at)[0] for at in (40, 0))
        self._first_block, self._group_blocks = struct.unpack_from("<I8xI", raw, 20)[0:2]
        self.inode_size = struct.unpack_from("<H", raw, 88)[0] if revision else 128
        self._wide = bool(incompat & _64BIT)
        self._descriptor = struct.unpack_from("<H", raw, 254)[0] if self._wide else 32
        self._first_meta = struct.unpack_from("<I", raw, 260)[0]
        self._meta = bool(incompat & _META_BG)
        self._counts_unused = bool(struct.unpack_from("<I", raw, 100)[0] & _GROUP_CHECKSUMS)
        self.has_journal = bool(compat & 0x4)
        self.needs_recovery = bool(incompat & _NEEDS_RECOVERY)
        self.journal_inode: int = struct.unpack_from("<I", raw, 224)[0]
        self.uuid = raw[104:120]
        #: What the checksums of metadata begin with; None where there are none.
        self.checksum_seed: int | None = None
        if revision and struct.unpack_from("<I", raw, 100)[0] & _CHECKSUMS:
            seeded = struct.unpack_from("<I", raw, 0x270)[0]
            self.checksum_seed = seeded if incompat & _CHECKSUM_SEED else ~crc32c(self.uuid) & _ALL
        self._tables: dict[int, int] = {}
        self._table_blocks: dict[int, bytes] = {}
        if magic != _MAGIC or log_block > 6:
            raise GuestError("there is no ext4 file system")
        self.block: int = 1024 << log_block
        self.blocks: int = struct.unpack_from("<I", raw, 4)[0]
        if self._wide:
            self.blocks |= struct.unpack_from("<I", raw, 0x150)[0] << 32
        if not self._sane():
            raise GuestError("the file system's superblock makes no sense")

    @staticmethod
    def _features(raw: bytes) -> tuple[int, int, int]:
        (revision,) = struct.unpack_from("<I", raw, 76)
        compat, incompat = struct.unpack_from("<2I", raw, 92) if revision else (0, 0)
        for flag, what in _UNREADABLE.items():
            if incompat & flag:
                raise GuestError(f"the file system uses {what}, which cannot be read")
        if incompat & ~_KNOWN:
            raise GuestError(f"the file system has unknown features ({incompat & ~_KNOWN:#x})")
        return revision, compat, incompat

    def _sane(self) -> bool:
        powers = {1 << n for n in range(5, 17)}
        return (
            self.group_inodes > 0
            and self._group_blocks > 0
            and self._first_block in (0, 1)
            and self.inode_size in powers
            and 128 <= self.inode_size <= self.block
            and self._descriptor in powers
            and self._descriptor <= self.block
            and 0 < self.blocks <= self._size // self.block
        )

    # Inodes

    def inode(self, number: int) -> Inode:
        """The inode of that number."""
        if not 1 <= number <= self._inodes:
            raise GuestError(f"inode {number} is not in the file system")
        group, index = divmod(number - 1, self.group_inodes)
        at = self._inode_table(group) * self.block + index * self.inode_size
        block, start = divmod(at, self.block)
        raw = self._table_block(block)[start : start + self.inode_size]
        mode, uid, size, mtime, gid, links, flags = struct.unpack_from("<HHI8xI4xHH4xI", raw)
        uid |= struct.unpack_from("<H", raw, 120)[0] << 16
        gid |= struct.unpack_from("<H", raw, 122)[0] << 16
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            size |= struct.unpack_from("<I", raw, 108)[0] << 32
        return Inode(number, mode, uid, gid, size, links, mtime, flags, raw)

    def tables(self) -> Iterator[tuple[int, int, int]]:
        """(first inode's number, offset, inodes that may be in use) of each group's table of inodes."""
        for group in range(-(-self._inodes // self.group_inodes)):
            raw = self._group(group)
            count = min(self.group_inodes, self._inodes - group * self.group_inodes)
            if self._counts_unused:
                (flags, unused) = struct.unpack_from("<H8xH", raw, 18)
                unused |= struct.unpack_from("<H", raw, 50)[0] << 16 if len(raw) >= 64 else 0
                count = 0 if flags & _INODE_UNINIT else max(0, count - unused)
            if count:
                yield group * self.group_inodes + 1, self._table_of(raw) * self.block, count

    def forget(self) -> None:
        """Read anew what stands on the disk: somebody has changed it."""
        self._table_blocks.clear()

    def _table_block(self, number: int) -> bytes:
        """A block of an inode table: who looks at one inode soon looks at its neighbours."""
        if number not in self._table_blocks:
            if len(self._table_blocks) >= _TABLE_BLOCKS:
                self._table_blocks.clear()
            self._table_blocks[number] = self._bytes(number * self.block, self.block)
        return self._table_blocks[number]

    def _inode_table(self, group: int) -> int:
        if group not in self._tables:
            self._tables[group] = self._table_of(self._group(group))
        return self._tables[group]

    @staticmethod
    def _table_of(raw: bytes) -> int:
        (low,) = struct.unpack_from("<I", raw, 8)
        high = struct.unpack_from("<I", raw, 40)[0] if len(raw) >= 64 else 0
        return int(low | high << 32)

    def _group(self, group: int) -> bytes:
        """The descriptor of a group of blocks."""
        per_block = self.block // self._descriptor
        meta_group, index = divmod(group, per_block)
        if self._meta and meta_group >= self._first_meta:
            first = meta_group * per_block
            at = self._first_block + first * self._group_blocks + self._has_super(first)
        else:
            at = self._first_block + 1 + meta_group
        return self._bytes(at * self.block + index * self._descriptor, self._descriptor)

    @staticmethod
    def _has_super(group: int) -> int:
        if group <= 1:
            return 1
        for base in (3, 5, 7):
            power = base
            while power < group:
                power *= base
            if power == group:
                return 1
        return 0

    # Contents

    def read(self, inode: Inode, limit: int) -> bytes:
        """The first ``limit`` bytes of a file's content."""
        size = min(inode.size, limit)
        if inode.flags & INLINE:
            return b"".join(self._inline(inode))[:size].ljust(size, b"\0")
        content = bytearray(size)
        for run in self.runs(inode):
            start = run.logical * self.block
            if start >= size or not run.written:
                continue
            length = min(run.blocks * self.block, size - start)
            content[start : start + length] = self._bytes(run.physical * self.block, length)
        return bytes(content)

    def target(self, inode: Inode) -> bytes:
        """Where a symbolic link leads."""
        if inode.size > 4096:
            raise GuestError(f"the symbolic link {inode.number} is longer than a path can be")
        if inode.size < 60 and not inode.flags & (INLINE | _EXTENTS):
            return inode.raw[40 : 40 + inode.size]
        return self.read(inode, 4096)

    def entries(self, inode: Inode) -> Iterator[Entry]:
        """The names in a directory, without ``.`` and ``..``."""
        if inode.size > _MAX_DIRECTORY:
            raise GuestError(f"the directory {inode.number} is too big")
        if inode.flags & INLINE:
            first, *rest = self._inline(inode)
            parts = [first[4:], *rest]  # the parent's number comes first
        else:
            content = self.read(inode, _MAX_DIRECTORY)
            parts = [content[at : at + self.block] for at in range(0, len(content), self.block)]
        for part in parts:
            for entry in dirents(part):
                if entry.inode and entry.name not in (b"", b".", b".."):
                    if b"/" in entry.name or b"\0" in entry.name:
                        raise GuestError(f"directory {inode.number} holds an impossible name")
                    yield entry

    def runs(self, inode: Inode) -> Iterator[Run]:
        """Where a file's blocks lie."""
        if inode.flags & INLINE:
            return
        if inode.flags & _EXTENTS:
            found = self._extents(inode.raw[40:100], _MAX_DEPTH, itertools.count())
        else:
            found = self._mapped(inode)
        blocks = 0
        for run in found:
            if run.physical + run.blocks > self.blocks:
                raise GuestError(f"inode {inode.number} points outside the file system")
            blocks += run.blocks
            if blocks > self.blocks:
                raise GuestError(f"inode {inode.number} has more blocks than the file system")
            yield run

    def _extents(self, node: bytes, deepest: int, nodes: Iterator[int]) -> Iterator[Run]:
        magic, count, _room, depth = struct.unpack_from("<4H", node)
        sane = magic == _EXTENT_MAGIC and depth <= deepest and 12 + 12 * count <= len(node)
        if not sane or next(nodes) > _MAX_NODES:
            raise GuestError("an extent tree makes no sense")
        for at in range(12, 12 + 12 * count, 12):
            if depth:
                low, high = struct.unpack_from("<IH", node, at + 4)
                block = self._bytes((low | high << 32) * self.block, self.block)
                yield from self._extents(block, depth - 1, nodes)
                continue
            logical, length, high, low = struct.unpack_from("<IHHI", node, at)
            written = length <= _LONGEST
            yield Run(logical, low | high << 32, length if written else length - _LONGEST, written)

    def _mapped(self, inode: Inode) -> Iterator[Run]:
        """The block map of ext2: twelve blocks, then trees of one, two and three levels."""
        pointers = struct.unpack_from("<15I", inode.raw, 40)
        last = -(-inode.size // self.block)
        nodes = itertools.count()
        logical = 0
        for pointer, levels in zip(pointers, (0,) * 12 + (1, 2, 3), strict=True):
            for run in self._tree(pointer, levels, logical, nodes):
                if run.logical < last:
                    yield run
            logical += (self.block // 4) ** levels
            if logical >= last:
                return

    def _tree(self, block: int, levels: int, logical: int, nodes: Iterator[int]) -> Iterator[Run]:
        if block == 0:
            return
        if levels == 0:
            yield Run(logical, block, 1, written=True)
            return
        if next(nodes) > _MAX_NODES:
            raise GuestError("a block map makes no sense")
        reach = (self.block // 4) ** (levels - 1)
        raw = self._bytes(block * self.block, self.block)
        for index, pointer in enumerate(struct.unpack(f"<{self.block // 4}I", raw)):
            yield from self._tree(pointer, levels - 1, logical + index * reach, nodes)

    def attributes(self, inode: Inode) -> dict[bytes, bytes]:
        """The extended attributes of an inode: whole name to value, as both stand on the disk."""
        found = dict(self._values(_inner_attributes(inode)))
        low, high = struct.unpack_from("<I10xH", inode.raw, 104)
        if number := low | high << 32:
            block = self._bytes(number * self.block, self.block)
            if block[:4] != struct.pack("<I", _XATTR_MAGIC):
                raise GuestError(f"the extended attributes of inode {inode.number} make no sense")
            found |= self._values(_Area(block, 32))
        return found

    def _values(self, area: "_Area") -> Iterator[tuple[bytes, bytes]]:
        for name, start, number, size in area.entries():
            if number and size <= _LARGEST_VALUE:
                yield name, self.read(self.inode(number), size)
            elif not number and start + size <= len(area.raw):
                yield name, area.raw[start : start + size]
            else:
                raise GuestError(f"the extended attribute {name!r} makes no sense")

    def _inline(self, inode: Inode) -> list[bytes]:
        """Content kept in the inode itself: in place of the block map, then in ``system.data``."""
        area = _inner_attributes(inode)
        rest = [
            area.raw[start : start + size]
            for name, start, number, size in area.entries()
            if name == b"system.data" and not number and 0 < size <= len(area.raw) - start
        ]
        return [inode.raw[40:100], *rest[:1]]

    def _bytes(self, offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > self._size:
            raise GuestError("the file system points outside itself")
        return self.read_at(offset, length)


def dirents(block: bytes) -> Iterator[Entry]:
    """The entries in a block of a directory, those without an inode too.

    Raises:
        GuestError: it is damaged.
    """
    at = 0
    while at + 8 <= len(block):
        inode, length, name_length = struct.unpack_from("<IHB", block, at)
        # 65535 and 0 stand for 64 KiB, which does not fit into the field.
        length = len(block) if length in (0, 0xFFFF) else length
        if length < 8 or at + length > len(block) or 8 + name_length > length:
            raise GuestError("a directory is damaged")
        yield Entry(block[at + 8 : at + 8 + name_length], inode)
        at += length


def without(block: bytes, names: Collection[bytes]) -> bytes:
    """A block of a directory without these names, which are overwritten too.

    The room of each stays as an unused entry, which is right in a linear directory and in a tree of hashes.
    """
    changed = bytearray(block)
    at = 0
    while at + 8 <= len(block):
        inode, length, name_length = struct.unpack_from("<IHB", block, at)
        length = len(block) if length in (0, 0xFFFF) else length
        if length < 8 or at + length > len(block) or 8 + name_length > length:
            raise GuestError("a directory is damaged")
        if inode and block[at + 8 : at + 8 + name_length] in names:
            struct.pack_into("<I", changed, at, 0)
            changed[at + 6 : at + 8 + name_length] = bytes(2 + name_length)
        at += length
    return bytes(changed)


def sealed(block: bytes, start: bytes, seed: int | None) -> bytes:
    """A block of a directory with its checksum set right, where it has one."""
    if seed is None or block[-12:-4] != _CHECKSUM_TAIL:
        return block
    value = crc32c(start + block[:-12], seed ^ _ALL) ^ _ALL
    return block[:-4] + struct.pack("<I", value)


class _Area(NamedTuple):
    """Where extended attributes stand: ``raw`` has a table of them from ``first`` on."""

    raw: bytes
    first: int

    def entries(self) -> Iterator[tuple[bytes, int, int, int]]:
        """(whole name, start of the value, inode of the value, size) of each that makes sense."""
        at = self.first
        while at + 16 <= len(self.raw):
            length, index, offset, inode, size = struct.unpack_from("<BBHII", self.raw, at)
            if not length and not index:
                return
            name = self.raw[at + 16 : at + 16 + length]
            if index in _PREFIXES and len(name) == length:
                yield _PREFIXES[index] + name, offset, inode, size
            at += 16 + (length + 3 & ~3)


def _inner_attributes(inode: Inode) -> _Area:
    """The extended attributes that stand in the inode itself."""
    if len(inode.raw) > 130:
        start = 128 + struct.unpack_from("<H", inode.raw, 128)[0] + 4
        if inode.raw[start - 4 : start] == struct.pack("<I", _XATTR_MAGIC):
            return _Area(inode.raw[start:], 0)
    return _Area(b"", 0)
