"""A guest that is switched off: its ext4 file system in a raw file, edited without mounting it.

Reading is our own (:mod:`calotype.guest.ext4`); changes are queued and handed to ``debugfs`` in batches.
Trees are killed by inode number, so a name is spelled out only where an entry leaves a directory that
stays.
"""

import contextlib
import os
import stat
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from calotype.disk.base import Disk, read
from calotype.errors import GuestError
from calotype.guest import ext4
from calotype.guest.ext4 import Ext4, Inode
from calotype.guest.guest import READ_LIMIT, Action, Edit, Stat
from calotype.guest.tools import on_file

_MAX_LINKS = 40  # symbolic links on one path, as in the kernel
_KEPT_PLACES, _KEPT_INODES = 4096, 65536
_ZEROS = bytes(1 << 20)
_LABEL, _INLINE_DATA = b"security.selinux", b"system.data"
#: debugfs reads its commands line by line; these bytes end a line and cannot be quoted.
_UNSPEAKABLE = (b"\n", b"\r")


class _Place(NamedTuple):
    """Where a path leads: ``inode`` is None where nothing is; ``parent`` 0 stands for the root's own."""

    parent: int
    name: bytes
    inode: int | None
    up: "_Place | None"  # the directory that it is in, reached without symbolic links

    @property
    def path(self) -> bytes:
        """The path without symbolic links."""
        names: list[bytes] = []
        here: _Place | None = self
        while here is not None and here.up is not None:
            names.append(here.name)
            here = here.up
        return b"/" + b"/".join(reversed(names))


_ROOT = _Place(0, b"", ext4.ROOT, None)


class ExtGuest:
    """The read-only half: a tree in an ext4 file system."""

    def __init__(self, fs: Ext4) -> None:
        self.fs = fs
        self._names: dict[int, dict[bytes, int]] = {}
        self._inodes: dict[int, Inode] = {}
        self._places: dict[bytes, _Place | None] = {}
        self._ways: dict[int, tuple[int, bytes]] = {}  # how each directory was reached

    @classmethod
    def on_disk(cls, disk: Disk, offset: int, size: int) -> "ExtGuest":
        """The file system of ``size`` bytes at ``offset`` of a disk."""
        return cls(Ext4(lambda at, length: read(disk, offset + at, length), size))

    def stat(self, path: str) -> Stat | None:
        """What stands at a path; a symbolic link there is not followed."""
        place = self._resolve(path, follow=False)
        if place is None or place.inode is None:
            return None
        inode = self._inode(place.inode)
        return Stat(inode.mode, inode.uid, inode.gid, inode.size, inode.links)

    def list(self, path: str) -> list[str]:
        """The names in a directory, sorted; links to directories are followed."""
        place = self._resolve(path, follow=True)
        if place is None or place.inode is None or not self._inode(place.inode).is_dir:
            return []
        return sorted(os.fsdecode(name) for name in self._entries(place.inode))

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes | None:
        """The first ``limit`` bytes of a regular file; links are followed."""
        place = self._resolve(path, follow=True)
        if place is None or place.inode is None:
            return None
        inode = self._inode(place.inode)
        return self.fs.read(inode, limit) if stat.S_ISREG(inode.mode) else None

    def real(self, path: str) -> str | None:
        """The path without symbolic links, where something is there."""
        place = self._resolve(path, follow=True)
        return None if place is None or place.inode is None else os.fsdecode(place.path)

    def is_blank(self, path: str, keep: int) -> bool:
        """Whether a file's content is zero from byte ``keep`` on."""
        for at, length in self._content(path, keep):
            for start in range(at, at + length, len(_ZEROS)):
                count = min(len(_ZEROS), at + length - start)
                if self.fs.read_at(start, count) != _ZEROS[:count]:
                    return False
        return True

    def _content(self, path: str, keep: int) -> Iterator[tuple[int, int]]:
        """(offset, length) in the file system of a file's blocks from byte ``keep`` on.

        Unwritten ones too: the kernel swaps past the file system, which takes them for unwritten still.
        """
        place = self._resolve(path, follow=True)
        inode = self._inode(place.inode) if place is not None and place.inode is not None else None
        if inode is None or not stat.S_ISREG(inode.mode):
            return
        block = self.fs.block
        for run in self.fs.runs(inode):
            skip = max(0, keep - run.logical * block)
            if skip < run.blocks * block:
                yield run.physical * block + skip, run.blocks * block - skip

    def _resolve(self, path: str, *, follow: bool) -> _Place | None:
        """Walk a path from the root; None where a directory on the way is missing."""
        directory, _, name = os.fsencode(path).rpartition(b"/")
        if directory not in self._places:
            if len(self._places) >= _KEPT_PLACES:
                self._places.clear()
            self._places[directory] = self._walk(_ROOT, directory.split(b"/"), follow=True)
        base = self._places[directory]
        return None if base is None else self._walk(base, [name], follow=follow)

    def _walk(self, here: _Place, names: Sequence[bytes], *, follow: bool) -> _Place | None:
        parts = [*reversed(names)]
        links = 0
        while parts:
            part = parts.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                here = here.up or here
                continue
            inside = here.inode
            if inside is None or not self._inode(inside).is_dir:
                return None
            number = self._entries(inside).get(part)
            if number is not None:
                inode = self._inode(number)
                more = follow or any(p not in (b"", b".") for p in parts)
                if more and stat.S_ISLNK(inode.mode):
                    links += 1
                    if links > _MAX_LINKS:
                        return None
                    target = self.fs.target(inode)
                    parts += target.split(b"/")[::-1]
                    here = _ROOT if target.startswith(b"/") else here
                    continue
                if inode.is_dir:
                    self._enter(number, inside, part)
            here = _Place(inside, part, number, here)
        return here

    def _enter(self, number: int, parent: int, name: bytes) -> None:
        """Note how a directory was reached: from two sides, the tree would have no end."""
        if number == ext4.ROOT or self._ways.setdefault(number, (parent, name)) != (parent, name):
            raise GuestError(f"the directory of inode {number} has two names")

    def _entries(self, number: int) -> dict[bytes, int]:
        if number not in self._names:
            inode = self._inode(number)
            self._names[number] = {entry.name: entry.inode for entry in self.fs.entries(inode)}
        return self._names[number]

    def _inode(self, number: int) -> Inode:
        if number not in self._inodes:
            if len(self._inodes) >= _KEPT_INODES:
                self._forget()
            self._inodes[number] = self.fs.inode(number)
        return self._inodes[number]

    def _forget(self) -> None:
        self._inodes.clear()


class OfflineGuest(ExtGuest):
    """A guest that can be changed; use :func:`offline`."""

    def __init__(self, path: Path, fd: int, staging: Path) -> None:
        self._path = path
        self._fd = fd
        self._staging = staging
        self._staged = 0
        self._queue: list[bytes] = []
        self._doomed: dict[int, set[bytes]] = {}  # names to strike out of directories
        self._stale = False  # the queue makes inodes whose numbers we do not know yet
        self.edits: list[Edit] = []
        size = os.fstat(fd).st_size
        super().__init__(Ext4(lambda at, length: _pread(fd, at, length), size))
        if self.fs.needs_recovery:
            raise GuestError("the file system's journal was not replayed")

    def remove(self, path: str) -> None:
        """Remove a file, a link (not its target) or a whole directory."""
        place = self._resolve(path, follow=False)
        if place is None or place.inode is None:
            return
        if place.parent == 0:
            raise GuestError("the root directory cannot be removed")
        self._unlink(place)
        self._kill([place.inode])
        self._log(Action.REMOVED, path)

    def truncate(self, path: str) -> None:
        """Empty a regular file, or a directory, which stays as it is otherwise."""
        place = self._resolve(path, follow=True)
        if place is None or place.inode is None:
            return
        inode = self._inode(place.inode)
        if inode.is_dir:
            if not self._empty(place, inode):
                return
        elif stat.S_ISREG(inode.mode) and inode.size:
            self._do(*_truncation(inode))
            self._inodes[inode.number] = replace(inode, size=0)
            self._stale = True
        else:
            return
        self._log(Action.EMPTIED, path)

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a regular file; one that is there keeps its mode and owner, a new one is root's."""
        place = self._resolve(path, follow=True)
        if place is None or place.parent == 0:
            raise GuestError(f"{path} cannot be written: its directory is missing")
        if any(sign in place.name for sign in _UNSPEAKABLE):
            raise GuestError(f"{path!r} cannot be written: its name ends a line")
        uid = gid = 0
        # A new file is labelled as its directory is, which SELinux would do.
        label = self.fs.attributes(self._inode(place.parent)).get(_LABEL)
        attributes = {_LABEL: label} if label is not None else {}
        if place.inode is not None:
            old = self._inode(place.inode)
            if not stat.S_ISREG(old.mode):
                raise GuestError(f"{path} is no regular file")
            if self.fs.read(old, len(data) + 1) == data:
                return
            mode, uid, gid = stat.S_IMODE(old.mode), old.uid, old.gid
            attributes = self.fs.attributes(old)
            self._unlink(place)
            self._kill([old.number])
        name = _quoted(place.name)
        self._do(
            b"cd <%d>" % place.parent,
            b"write %s %s" % (self._stage(data), name),
            b"sif %s mode 0%o" % (name, stat.S_IFREG | mode),
            b"sif %s uid %d" % (name, uid),
            b"sif %s gid %d" % (name, gid),
        )
        for attribute, value in attributes.items():
            if attribute != _INLINE_DATA:
                source = self._stage(value)
                self._do(b"ea_set -f %s -r %s %s" % (source, name, _attribute(attribute)))
        self._stale = True
        self._log(Action.WRITTEN, path)

    def _stage(self, data: bytes) -> bytes:
        """Put bytes where debugfs can read them; their path in its sandbox."""
        (self._staging / str(self._staged)).write_bytes(data)
        self._staged += 1
        return b"/in/%d" % (self._staged - 1)

    def blank(self, path: str, keep: int) -> None:
        """Overwrite a file's content, but for the first ``keep`` bytes, with zeros in place."""
        self.flush()
        for at, length in self._content(path, keep):
            zero(self._fd, at, length)
        self._log(Action.BLANKED, path)

    def execute(self, argv: Sequence[str]) -> bool:
        """Nothing: a guest that is switched off runs no program."""
        del argv
        return False

    def flush(self) -> None:
        """Carry out what is queued.

        Raises:
            GuestError: debugfs could not do a part of it.
        """
        for number, names in self._doomed.items():
            self._strike(number, names)
        self._doomed.clear()
        if self._queue:
            commands, self._queue = self._queue, []
            self._debugfs(["-f", "-"], b"\n".join(commands) + b"\n")
        self.fs.forget()
        if self._stale:
            self._stale = False
            self._names.clear()
            self._inodes.clear()
            self._places.clear()
            self._ways.clear()

    def _forget(self) -> None:
        self.flush()
        super()._forget()

    def _resolve(self, path: str, *, follow: bool) -> _Place | None:
        if self._stale:
            self.flush()
        return super()._resolve(path, follow=follow)

    def _empty(self, place: _Place, inode: Inode) -> bool:
        entries = self._entries(inode.number)
        if not entries:
            return False
        numbers = list(entries.values())
        for name, number in list(entries.items()):
            self._unlink(_Place(inode.number, name, number, place))
        self._kill(numbers)
        return True

    def _unlink(self, place: _Place) -> None:
        """Take a name out of its directory; what it named is left to :meth:`_kill`."""
        parent = self._inode(place.parent)
        if parent.flags & ext4.INLINE:
            self._name_command(b"unlink", place)
        else:
            self._doomed.setdefault(place.parent, set()).add(place.name)
        self._entries(place.parent).pop(place.name, None)
        self._places.clear()
        if place.inode is not None and self._inode(place.inode).is_dir:
            parent = self._inode(place.parent)
            self._ways.pop(place.inode, None)
            if parent.links > 2:  # 1 means: too many to be counted
                self._links(parent, parent.links - 1)

    def _kill(self, roots: list[int]) -> None:
        """Free inodes, with everything below those that are directories."""
        names: Counter[int] = Counter()
        pending = list(roots)
        while pending:
            number = pending.pop()
            names[number] += 1
            if self._inode(number).is_dir:
                if names[number] > 1:
                    raise GuestError(f"directory inode {number} has two names")
                pending += self._entries(number).values()
        for number, count in names.items():
            inode = self._inode(number)
            if number <= ext4.ROOT or (not inode.is_dir and inode.links > count):
                self._links(inode, inode.links - count)
                continue
            # A block of attributes stays marked as in use until the next e2fsck.
            self._do(b"kill_file <%d>" % number, b"clri <%d>" % number)
            self._names.pop(number, None)
            self._inodes.pop(number, None)

    def _links(self, inode: Inode, count: int) -> None:
        self._do(b"sif <%d> links_count %d" % (inode.number, count))
        self._inodes[inode.number] = replace(inode, links=count)

    def _strike(self, number: int, names: set[bytes]) -> None:
        """Take names out of a directory, all at once, block by block."""
        inode = self.fs.inode(number)
        start = b""
        if self.fs.checksum_seed is not None:
            start = struct.pack("<I", number) + inode.raw[100:104]  # with the inode's generation
        for run in self.fs.runs(inode):
            for block in range(run.physical, run.physical + run.blocks if run.written else 0):
                at = block * self.fs.block
                before = _pread(self._fd, at, self.fs.block)
                after = ext4.without(before, names)
                if after != before:
                    after = ext4.sealed(after, start, self.fs.checksum_seed)
                    if os.pwrite(self._fd, after, at) != len(after):
                        raise GuestError("the guest's file system could not be written")

    def _name_command(self, command: bytes, place: _Place) -> None:
        """A command on a name: in a batch, or where no line can spell it, by itself."""
        if not any(sign in place.path for sign in _UNSPEAKABLE):
            self._do(b"cd <%d>" % place.parent, b"%s %s" % (command, _quoted(place.name)))
            return
        self.flush()
        quoted = b'"' + place.path.replace(b'"', b'""') + b'"'
        self._debugfs(["-R", os.fsdecode(b"%s %s" % (command, quoted))], None)

    def _do(self, *commands: bytes) -> None:
        self._queue += commands

    def _debugfs(self, arguments: list[str], data: bytes | None) -> None:
        files = {"/in": str(self._staging)}
        done = on_file(["debugfs", "-w", *arguments], self._path, data=data, files=files)
        said = done.stderr.decode("utf-8", "replace").splitlines()
        complaints = [line for line in said if line.strip() and not line.startswith("debugfs 1.")]
        if done.returncode != 0 or complaints:
            what = " / ".join(complaints[:3]) or f"status {done.returncode}"
            raise GuestError(f"the guest's file system could not be changed: {what}")

    def _log(self, action: Action, path: str) -> None:
        self.edits.append(Edit(action, path))


@contextlib.contextmanager
def offline(path: Path) -> Iterator[OfflineGuest]:
    """The guest whose root file system is the raw file at ``path``; changes are complete at the end.

    Raises:
        GuestError: it cannot be read or changed, or its journal was not replayed.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        with tempfile.TemporaryDirectory(prefix="calotype-") as staging:
            guest = OfflineGuest(path, fd, Path(staging))
            yield guest
            guest.flush()
            os.fsync(fd)
    finally:
        os.close(fd)


def zero(fd: int, offset: int, length: int) -> None:
    """Write zeros (the view keeps them as holes)."""
    for start in range(offset, offset + length, len(_ZEROS)):
        count = min(len(_ZEROS), offset + length - start)
        if os.pwrite(fd, _ZEROS[:count], start) != count:
            raise GuestError("the guest's file system could not be written")


def _truncation(inode: Inode) -> Iterator[bytes]:
    yield b"punch <%d> 0" % inode.number
    yield b"sif <%d> size 0" % inode.number
    if inode.flags & ext4.INLINE:  # an empty map of blocks takes the place of the content
        yield b"sif <%d> flags 0x%x" % (inode.number, inode.flags & ~ext4.INLINE)
        for index in (*map(str, range(12)), "IND", "DIND", "TIND"):
            yield b"sif <%d> block[%s] 0" % (inode.number, index.encode())


def _quoted(name: bytes) -> bytes:
    # Without "./" debugfs would take "<12>" for an inode's number.
    return b'"./' + name.replace(b'"', b'""') + b'"'


def _attribute(name: bytes) -> bytes:
    """An attribute's name for debugfs.

    Raises:
        GuestError: it cannot be spelled.
    """
    if any(sign in name for sign in (b"\n", b"\r", b"\0")):
        raise GuestError(f"the extended attribute {name!r} cannot be kept")
    return b'"' + name.replace(b'"', b'""') + b'"'


def _pread(fd: int, offset: int, length: int) -> bytes:
    data = os.pread(fd, length, offset)
    return data + bytes(length - len(data))
