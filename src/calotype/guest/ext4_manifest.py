"""The manifest of an ext2, ext3 or ext4 file system, read in bulk.

Tables of inodes are read whole and become columns, directories are read in the order of the disk: the number
of reads grows with the bytes, not with the names.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.errors import GuestError
from calotype.guest import manifest
from calotype.guest.ext4 import INLINE, ROOT, Ext4, Run, dirents
from calotype.guest.manifest import MOST_NAMES, ContentHash, Entry, Ints, Runs, Spans

_EXTENTS = 0x80000
_EXTENT_MAGIC = 0xF30A
_LONGEST = 32768  # blocks of a written extent
_MOST_GROUPS = 1 << 18
_MOST_TABLES = 4 << 30  # bytes of tables that are read
_MOST_DIRECTORIES = 1 << 30  # bytes
_MOST_READ = 512 << 20  # bytes of many files at once
_INLINE = 64 << 10  # no inode is larger
_DEEPEST = 256  # directories in one another
_NEAR = 32 << 10  # bytes between two reads that become one
_TOGETHER = 4 << 20
_SMALL = 1 << 20  # bytes of a file that is read together with others
_THREADS = 4

_EXTENT = np.dtype([("logical", "<u4"), ("length", "<u2"), ("high", "<u2"), ("low", "<u4")])
_NODE = np.dtype(
    [
        ("magic", "<u2"),
        ("count", "<u2"),
        ("room", "<u2"),
        ("depth", "<u2"),
        ("generation", "<u4"),
        ("extents", _EXTENT, (4,)),
    ]
)
_FIELDS = {
    "mode": ("<u2", 0),
    "uid": ("<u2", 2),
    "size": ("<u4", 4),
    "mtime": ("<u4", 16),
    "gid": ("<u2", 24),
    "links": ("<u2", 26),
    "flags": ("<u4", 32),
    "block": ("V60", 40),
    "size_high": ("<u4", 108),
    "uid_high": ("<u2", 120),
    "gid_high": ("<u2", 122),
}


@dataclass(frozen=True, eq=False, slots=True)
class _Inodes:
    """The inodes in use, by number: one element for each in every column."""

    number: Ints
    mode: Ints
    uid: Ints
    gid: Ints
    size: Ints
    mtime: Ints
    flags: Ints
    block: NDArray[np.void]

    def take(self, which: Any) -> "_Inodes":
        """Some of them."""
        return _Inodes(
            self.number[which],
            self.mode[which],
            self.uid[which],
            self.gid[which],
            self.size[which],
            self.mtime[which],
            self.flags[which],
            self.block[which],
        )


class ExtManifest:
    """Everything in a file system that starts at ``offset`` of its disk.

    Raises:
        GuestError: it is damaged, or larger than any system's.
    """

    def __init__(self, fs: Ext4, offset: int) -> None:
        self._fs = fs
        self._offset = offset
        self._inodes = _inodes(fs)
        self.notes: list[str] = []
        self._targets = dict(self._links())
        names = self._directories()
        self.entries: dict[str, Entry] = dict(self._walk(names))

    # Where contents lie

    def runs(self, paths: Sequence[str]) -> Runs:
        """Where the contents of regular files lie; no block may belong to two of them."""
        numbers = np.array([self.entries[path].inode for path in paths], dtype=np.int64)
        unique, which = np.unique(numbers, return_inverse=True)
        chosen = self._inodes.take(np.searchsorted(self._inodes.number, unique))
        file, logical, start, length, known = self._runs(chosen)
        if int(length.sum()) > self._fs.blocks * self._fs.block:
            raise GuestError("files share blocks: the file system is damaged")
        # From the inodes to the paths, of which several may name one inode.
        first = np.searchsorted(file, np.arange(len(unique)))
        count = np.searchsorted(file, np.arange(len(unique)), side="right") - first
        times = count[which]
        pick = np.arange(int(times.sum())) - np.repeat(np.cumsum(times) - times, times)
        pick += np.repeat(first[which], times)
        return Runs(
            np.repeat(np.arange(len(paths)), times),
            logical[pick],
            start[pick] + self._offset,
            length[pick],
            known[which],
        )

    def _runs(self, inodes: _Inodes) -> tuple[Ints, Ints, Ints, Ints, NDArray[np.bool_]]:
        """(file, logical, start, length), clipped to each file's size, and whose runs are known."""
        block = self._fs.block
        file, logical, physical, blocks, simple = _extents(inodes)
        known = simple.copy()
        slow: list[tuple[int, Run]] = []
        room = self._fs.blocks
        for row in np.flatnonzero(~simple & (inodes.flags & INLINE == 0)).tolist():
            inode = self._fs.inode(int(inodes.number[row]))
            for run in self._fs.runs(inode):
                room -= run.blocks
                if room < 0:
                    raise GuestError("files share blocks: the file system is damaged")
                if run.written:
                    slow.append((row, run))
            known[row] = True
        if slow:
            file = np.concatenate([file, [row for row, _ in slow]])
            logical = np.concatenate([logical, [run.logical for _, run in slow]])
            physical = np.concatenate([physical, [run.physical for _, run in slow]])
            blocks = np.concatenate([blocks, [run.blocks for _, run in slow]])
        if bool((physical + blocks > self._fs.blocks).any()):
            raise GuestError("a file points outside the file system")
        start = logical * block
        length = np.minimum(blocks * block, inodes.size[file] - start)
        order = np.lexsort((start, file))
        order = order[length[order] > 0]
        here, there = order[:-1], order[1:]
        if bool(((file[here] == file[there]) & (start[here] + length[here] > start[there])).any()):
            raise GuestError("a file has two contents at one place: the file system is damaged")
        return file[order], start[order], (physical * block)[order], length[order], known

    # Contents

    def read(self, paths: Sequence[str], limit: int) -> dict[str, bytes]:
        """The contents of many small files, read in the order of the disk."""
        found: dict[str, bytes] = {}
        small = [p for p in paths if (e := self.entries.get(p)) and e.is_file and e.size <= limit]
        if sum(self.entries[path].size for path in small) > _MOST_READ:
            raise GuestError("small files are larger in all than any system's")
        runs = self.runs(small)
        contents = [bytearray(self.entries[path].size) for path in small]
        wanted = zip(
            runs.file.tolist(),
            runs.logical.tolist(),
            (runs.start - self._offset).tolist(),
            runs.length.tolist(),
            strict=True,
        )
        by_place = sorted((at, length, (file, logical)) for file, logical, at, length in wanted)
        for (file, logical), data in self._bulk(by_place):
            contents[file][logical : logical + len(data)] = data
        for path, content, known in zip(small, contents, runs.known.tolist(), strict=True):
            found[path] = bytes(content) if known else self._whole(path)
        return found

    def digests(self, paths: Sequence[str], parts: Spans | None = None) -> dict[str, bytes]:
        """A digest of each regular file's content; several are read at once, in the order of the disk."""
        sizes = [self.entries[path].size for path in paths]
        runs = self.runs(paths)
        reads = self._reads(runs, parts.by_file() if parts is not None else {})
        small: list[tuple[int, int, Any]] = []
        large: list[int] = []
        for number in range(len(paths)):
            mine = reads.get(number, [])
            if len(mine) == 1 and mine[0][1] <= _SMALL:
                small.append((mine[0][0], mine[0][1], (number, mine[0][2])))
            else:
                large.append(number)
        small.sort()

        def together(group: list[tuple[int, int, Any]]) -> list[tuple[int, bytes]]:
            found = []
            for (number, logical), data in self._at_once(group):
                state = ContentHash(sizes[number])
                state.add(logical, data)
                found.append((number, state.digest()))
            return found

        def alone(number: int) -> list[tuple[int, bytes]]:
            state = ContentHash(sizes[number])
            if not runs.known[number]:
                state.add(0, self._whole(paths[number]))
            for at, length, logical in reads.get(number, []):
                for done in range(0, length, _TOGETHER):
                    piece = min(_TOGETHER, length - done)
                    state.add(logical + done, self._fs.read_at(at + done, piece))
            return [(number, state.digest())]

        with ThreadPoolExecutor(_THREADS) as pool:
            found = [*pool.map(together, _grouped(small)), *pool.map(alone, large)]
        return {paths[number]: digest for some in found for number, digest in some}

    def _reads(
        self, runs: Runs, parts: dict[int, list[tuple[int, int]]]
    ) -> dict[int, list[tuple[int, int, int]]]:
        """(offset, length, logical) of what has to be read of each file."""
        found: dict[int, list[tuple[int, int, int]]] = {}
        columns = (runs.file, runs.logical, runs.start - self._offset, runs.length)
        for file, logical, at, length in zip(*(c.tolist() for c in columns), strict=True):
            mine = found.setdefault(file, [])
            if file not in parts:
                mine.append((at, length, logical))
                continue
            for first, last in parts[file]:
                low, high = max(first, logical), min(last, logical + length)
                if low < high:
                    mine.append((at + low - logical, high - low, low))
        return found

    def _whole(self, path: str) -> bytes:
        """A content that lies in its inode."""
        return self._fs.read(self._fs.inode(self.entries[path].inode), _INLINE)

    def _bulk(self, wanted: Iterable[tuple[int, int, Any]]) -> Iterator[tuple[Any, memoryview]]:
        """Read (offset, length, mark) in ascending order, those near each other at once: (mark, bytes)."""
        for group in _grouped(wanted):
            yield from self._at_once(group)

    def _at_once(self, group: list[tuple[int, int, Any]]) -> Iterator[tuple[Any, memoryview]]:
        base = group[0][0]
        end = max(at + length for at, length, _ in group)
        data = memoryview(self._fs.read_at(base, end - base))
        for at, length, mark in group:
            yield mark, data[at - base : at - base + length]

    # Names

    def _links(self) -> Iterator[tuple[int, str]]:
        """(inode, target) of the symbolic links."""
        inodes = self._inodes
        for row in np.flatnonzero(inodes.mode & 0o170000 == stat.S_IFLNK).tolist():
            number, size = int(inodes.number[row]), int(inodes.size[row])
            if size < 60 and not int(inodes.flags[row]) & (INLINE | _EXTENTS):
                yield number, os.fsdecode(inodes.block[row].tobytes()[:size])
                continue
            try:
                yield number, os.fsdecode(self._fs.target(self._fs.inode(number)))
            except GuestError as error:
                self.notes.append(error.message)

    def _directories(self) -> dict[int, list[tuple[bytes, int]]]:
        """Inode of each directory -> the names in it, and their inodes."""
        chosen = self._inodes.take(self._inodes.mode & 0o170000 == stat.S_IFDIR)
        if int(np.minimum(chosen.size, 1 << 40).sum()) > _MOST_DIRECTORIES:
            raise GuestError("the directories are larger than any system's")
        numbers = chosen.number.tolist()
        found: dict[int, list[tuple[bytes, int]]] = {number: [] for number in numbers}
        file, logical, start, length, known = self._runs(chosen)
        if int(length.sum()) > self._fs.blocks * self._fs.block:
            raise GuestError("directories share blocks: the file system is damaged")
        order = np.lexsort((logical, start))
        columns = (start[order], length[order], file[order])
        block = self._fs.block
        room = MOST_NAMES
        for row, data in self._bulk(zip(*(c.tolist() for c in columns), strict=True)):
            names = found[numbers[row]]
            for at in range(0, len(data), block):
                for name, inode in dirents(bytes(data[at : at + block])):
                    if inode:
                        names.append((name, inode))
                        room -= 1
                if room < 0:
                    raise GuestError(f"the guest has more than {MOST_NAMES} names")
        for row in np.flatnonzero(~known).tolist():
            found[numbers[row]] += list(self._fs.entries(self._fs.inode(numbers[row])))
        return found

    def _walk(self, directories: dict[int, list[tuple[bytes, int]]]) -> Iterator[tuple[str, Entry]]:
        """(path, entry) of every name; each directory is entered once."""
        entries = self._all()
        entered = {ROOT}
        pending = [(ROOT, "", 0)]
        room = manifest.MOST_CHARACTERS
        while pending:
            number, path, depth = pending.pop()
            for raw, inode in directories.get(number, ()):
                if raw in (b"", b".", b".."):
                    continue
                if b"/" in raw or b"\0" in raw:
                    raise GuestError(f"directory {number} holds an impossible name")
                entry = entries.get(inode)
                if entry is None:
                    self._note("names stand for files that are gone")
                    continue
                inner = f"{path}/{os.fsdecode(raw)}"
                room -= len(inner)
                if room < 0:
                    raise GuestError("the guest's paths are longer in all than any system's")
                yield inner, entry
                if inode not in directories:
                    continue
                if inode in entered or depth >= _DEEPEST:
                    self._note("directories lie in themselves, or too deep")
                    continue
                entered.add(inode)
                pending.append((inode, inner, depth + 1))

    def _all(self) -> dict[int, Entry]:
        """The entry of every inode in use."""
        inodes, targets = self._inodes, self._targets
        regular = inodes.mode & 0o170000 == stat.S_IFREG
        columns = (
            *(inodes.number, inodes.mode, inodes.uid, inodes.gid),
            *(np.where(regular, inodes.size, 0), inodes.mtime),
        )
        return {
            number: Entry(mode, uid, gid, size, mtime, targets.get(number, ""), number)
            for number, mode, uid, gid, size, mtime in zip(
                *(column.tolist() for column in columns), strict=True
            )
        }

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _grouped(
    wanted: Iterable[tuple[int, int, Any]],
) -> Iterator[list[tuple[int, int, Any]]]:
    """(offset, length, mark) in ascending order, in groups that one read can get."""
    group: list[tuple[int, int, Any]] = []
    end = 0
    for at, length, mark in wanted:
        if group and (at - end > _NEAR or at + length - group[0][0] > _TOGETHER):
            yield group
            group = []
            end = 0
        end = max(end, at + length)
        group.append((at, length, mark))
    if group:
        yield group


def _inodes(fs: Ext4) -> _Inodes:
    """All inodes that are in use."""
    names = list(_FIELDS)
    dtype = np.dtype(
        {
            "names": names,
            "formats": [_FIELDS[name][0] for name in names],
            "offsets": [_FIELDS[name][1] for name in names],
            "itemsize": fs.inode_size,
        }
    )
    parts = []
    room = _MOST_TABLES
    for first, offset, count in islice(fs.tables(), _MOST_GROUPS):
        room -= count * fs.inode_size
        if room < 0 or offset + count * fs.inode_size > fs.blocks * fs.block:
            raise GuestError("a table of inodes makes no sense")
        table = np.frombuffer(fs.read_at(offset, count * fs.inode_size), dtype=dtype)
        numbers = np.arange(first, first + count, dtype=np.int64)
        used = (table["links"] > 0) & (table["mode"] > 0)
        parts.append(_columns(numbers[used], table[used]))
    if not parts:
        raise GuestError("the file system has no inodes")
    return _Inodes(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in _Inodes.__dataclass_fields__
        )
    )


def _columns(numbers: Ints, table: NDArray[np.void]) -> _Inodes:
    def column(name: str) -> Ints:
        return table[name].astype(np.int64)

    mode = column("mode")
    kind = mode & 0o170000
    sized = (kind == stat.S_IFREG) | (kind == stat.S_IFDIR)
    return _Inodes(
        numbers,
        mode,
        column("uid") | column("uid_high") << 16,
        column("gid") | column("gid_high") << 16,
        # A size of more than 63 bits is no size: no file has any of it.
        np.maximum(column("size") | np.where(sized, column("size_high"), 0) << 32, 0),
        column("mtime"),
        column("flags"),
        np.ascontiguousarray(table["block"]),
    )


def _extents(inodes: _Inodes) -> tuple[Ints, Ints, Ints, Ints, NDArray[np.bool_]]:
    """(file, logical, physical, blocks) of what lies in the inodes themselves; and for whom that is all."""
    node = inodes.block.view(_NODE).reshape(-1)
    simple = (
        (inodes.flags & _EXTENTS != 0)
        & (inodes.flags & INLINE == 0)
        & (node["magic"] == _EXTENT_MAGIC)
        & (node["depth"] == 0)
        & (node["count"] <= 4)
    )
    used = simple[:, None] & (np.arange(4)[None, :] < node["count"][:, None])
    used &= node["extents"]["length"] <= _LONGEST  # what was never written reads as zeros
    file, _ = np.nonzero(used)
    extents = node["extents"][used]
    physical = extents["low"].astype(np.int64) | extents["high"].astype(np.int64) << 32
    return (
        file.astype(np.int64),
        extents["logical"].astype(np.int64),
        physical,
        extents["length"].astype(np.int64),
        simple,
    )
