"""How two guests differ: packages, files, users, services, kernels, sizes; nothing is run or mounted."""

import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from calotype.disk.base import Disk
from calotype.errors import GuestError
from calotype.guest import facts
from calotype.guest.ext4_manifest import ExtManifest
from calotype.guest.guest import Tree
from calotype.guest.locate import Filesystem, find_root, survey
from calotype.guest.manifest import Bools, Entry, Manifest, Runs, Spans, TreeManifest
from calotype.guest.noise import noise
from calotype.guest.ntfs_tree import NtfsTree
from calotype.guest.os_release import os_release
from calotype.guest.packages import Family, Package, compare, inventory, owners

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
_LARGEST = 20  # directories whose size changed most
_SMALL = 4 << 20  # bytes of a list of a package's files

_T = TypeVar("_T")

#: Of files of equal size whose contents lie in these runs of two disks: which are known to be unequal without
#: reading, and the parts of the others that may differ.
Judge = Callable[[Runs, Runs], tuple[Bools, Spans]]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two guests."""

    tree: Tree
    manifest: Manifest

    @classmethod
    def of(cls, tree: Tree) -> "Side":
        """A guest behind any tree: every name is asked for, and every content read."""
        return cls(tree, TreeManifest(tree))

    @classmethod
    def on_disk(cls, disk: Disk) -> "Side":
        """The guest on an OS disk.

        Raises:
            GuestError: there is none, or one that cannot be looked into.
        """
        found = survey(disk)
        try:
            root, tree = find_root(disk, found)
        except GuestError:
            for partition in found.partitions:
                if partition.filesystem is Filesystem.NTFS:
                    windows = NtfsTree.on_disk(disk, partition.offset, partition.size)
                    if windows.real("/Windows/System32") is not None:
                        return cls.of(windows)
            raise
        manifest = ExtManifest(tree.fs, root.offset)
        if tree.fs.needs_recovery:
            manifest.notes.append("its journal was not replayed: the newest changes are not seen")
        return cls(tree, manifest)


@dataclass(frozen=True, slots=True)
class Change:
    """A fact that differs; None where there is none."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class PackageChange:
    """A package of which both guests have another version."""

    family: Family
    name: str
    architecture: str
    before: str
    after: str


@dataclass(slots=True)
class PackagesDiff:
    """Which packages differ, each list by name."""

    added: list[Package] = field(default_factory=list)
    removed: list[Package] = field(default_factory=list)
    upgraded: list[PackageChange] = field(default_factory=list)
    downgraded: list[PackageChange] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.upgraded or self.downgraded)


@dataclass(frozen=True, slots=True)
class FileState:
    """What a path was, or is; ``size`` in bytes, of regular files."""

    type: str
    mode: str
    uid: int
    gid: int
    size: int
    target: str

    @classmethod
    def of(cls, entry: Entry) -> "FileState":
        """The state of an entry."""
        kind = _KINDS.get(entry.kind, "unknown")
        mode = f"{stat.S_IMODE(entry.mode):04o}"
        return cls(kind, mode, entry.uid, entry.gid, entry.size, entry.target)


@dataclass(frozen=True, slots=True)
class FileChange:
    """A path that differs. ``aspects`` of what is in both: content, mode, owner, type, target.

    ``package`` brought it, where a database tells; ``noise`` names the kind of file that changes by itself.
    """

    path: str
    before: FileState | None
    after: FileState | None
    aspects: tuple[str, ...] = ()
    package: str = ""
    noise: str = ""

    @property
    def status(self) -> str:
        """Added, removed or changed."""
        if self.before is None:
            return "added"
        return "removed" if self.after is None else "changed"


@dataclass(frozen=True, slots=True)
class DirectorySize:
    """The bytes of all files below a directory."""

    path: str
    before: int
    after: int


@dataclass(slots=True)
class GuestDiff:
    """How two guests differ. ``read`` is how many files' contents had to be read on each side."""

    packages: PackagesDiff = field(default_factory=PackagesDiff)
    files: list[FileChange] = field(default_factory=list)
    users: list[Change] = field(default_factory=list)
    groups: list[Change] = field(default_factory=list)
    services: list[Change] = field(default_factory=list)
    kernels: list[Change] = field(default_factory=list)
    release: list[Change] = field(default_factory=list)
    directories: list[DirectorySize] = field(default_factory=list)
    size: DirectorySize = field(default_factory=lambda: DirectorySize("/", 0, 0))
    compared: int = 0
    read: int = 0
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        facts_ = (self.users, self.groups, self.services, self.kernels, self.release)
        return bool(self.packages or self.files or any(facts_))


def diff(a: Side, b: Side, judge: Judge | None = None) -> GuestDiff:
    """How guest ``b`` differs from ``a``; ``judge`` spares the reading of contents.

    Raises:
        GuestError: one of them cannot be read.
    """
    found = GuestDiff(notes=_notes(a, b))
    packages = []
    for side, name in ((a, "before"), (b, "after")):
        listed = inventory(side.tree)
        found.notes += [f"{name}: {note}" for note in listed.notes]
        packages.append(listed.packages)
    found.packages = packages_diff(*packages)
    found.users = _changes(facts.users, a.tree, b.tree)
    found.groups = _changes(facts.groups, a.tree, b.tree)
    found.kernels = _changes(facts.kernels, a.tree, b.tree)
    found.release = _changes(os_release, a.tree, b.tree)
    found.services = _changes(lambda s: facts.services(s.tree, s.manifest.entries), a, b)
    contents = _Contents(a.manifest, b.manifest, judge)
    found.files = _named(a, b, list(_files(a.manifest, b.manifest, contents)))
    found.notes += contents.notes
    found.compared, found.read = contents.compared, contents.read
    found.size, found.directories = _sizes(a.manifest, b.manifest)
    return found


def packages_diff(a: Iterable[Package], b: Iterable[Package]) -> PackagesDiff:
    """Which packages differ; of one that is there several times (as kernels are), each version counts."""
    found = PackagesDiff()
    before, after = _by_name(a), _by_name(b)
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key, {}), after.get(key, {})
        gone = [package for version, package in old.items() if version not in new]
        come = [package for version, package in new.items() if version not in old]
        if len(gone) == len(come) == 1:
            (was,), (now,) = gone, come
            change = PackageChange(now.family, now.name, now.architecture, was.version, now.version)
            older = compare(now.family, was.version, now.version) > 0
            (found.downgraded if older else found.upgraded).append(change)
            continue
        found.removed += gone
        found.added += come
    return found


def _by_name(
    packages: Iterable[Package],
) -> dict[tuple[str, str, str], dict[str, Package]]:
    found: dict[tuple[str, str, str], dict[str, Package]] = defaultdict(dict)
    for package in packages:
        key = (package.family, package.name, package.architecture)
        found[key][package.version] = package
    return found


def _changes(look: Callable[[_T], facts.Facts], a: _T, b: _T) -> list[Change]:
    before, after = look(a), look(b)
    names = sorted(before.keys() | after.keys())
    return [
        Change(name, before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    ]


class _Contents:
    """Tells which files of equal size have other contents."""

    def __init__(self, a: Manifest, b: Manifest, judge: Judge | None) -> None:
        self._a, self._b = a, b
        self._judge = judge
        self.compared = self.read = 0
        self.notes: list[str] = []

    def differing(self, paths: Sequence[str]) -> set[str]:
        """Those of the paths, regular files of one size in both, whose contents differ."""
        self.compared = len(paths)
        doubtful = np.ones(len(paths), dtype=np.bool_)
        unequal, parts = ~doubtful, None
        if self._judge is not None:
            one, two = self._a.runs(paths), self._b.runs(paths)
            told = one.known & two.known
            unequal, spans = self._judge(one, two)
            unequal = unequal & told
            doubtful = ~told
            doubtful[spans.file] = True
            doubtful &= ~unequal
            # From places among all paths to places among those that are read.
            place = np.cumsum(doubtful) - 1
            known = doubtful[spans.file] & told[spans.file]
            parts = Spans(place[spans.file[known]], spans.start[known], spans.end[known])
        unread = [paths[number] for number in np.flatnonzero(doubtful).tolist()]
        self.read = len(unread)
        before, after = self._a.digests(unread, parts), self._b.digests(unread, parts)
        beyond = [path for path in unread if path not in before or path not in after]
        if beyond:
            self.notes.append(f"{len(beyond)} files could not be read, such as {beyond[0]}")
        differ = {path for path in unread if before.get(path) != after.get(path)}
        return differ.union(paths[number] for number in np.flatnonzero(unequal).tolist())


def _files(a: Manifest, b: Manifest, contents: _Contents) -> Iterator[FileChange]:
    """Every path that differs, in order."""
    before, after = a.entries, b.entries
    alike = [
        path
        for path, old in before.items()
        if old.is_file
        and old.size
        and (new := after.get(path)) is not None
        and new.is_file
        and new.size == old.size
    ]
    differing = contents.differing(alike)
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old is None or new is None:
            yield FileChange(
                path, old and FileState.of(old), new and FileState.of(new), noise=noise(path)
            )
            continue
        aspects = tuple(_aspects(old, new, content=path in differing))
        if aspects:
            yield FileChange(path, FileState.of(old), FileState.of(new), aspects, noise=noise(path))


def _aspects(old: Entry, new: Entry, *, content: bool) -> Iterator[str]:
    if old.kind != new.kind:
        yield "type"
        return
    if content or old.size != new.size:
        yield "content"
    if old.target != new.target:
        yield "target"
    if old.mode != new.mode and not stat.S_ISLNK(new.mode):
        yield "mode"
    if (old.uid, old.gid) != (new.uid, new.gid):
        yield "owner"


def _named(a: Side, b: Side, changes: list[FileChange]) -> list[FileChange]:
    """The changes with the packages that the files belong to."""
    if not changes:
        return changes
    names = [owners(side.tree, _reader(side.manifest)) for side in (a, b)]
    named = []
    for change in changes:
        owner = _owner(change.path, names[0] if change.after is None else names[1])
        if owner:
            change = FileChange(  # noqa: PLW2901 (the same, named)
                change.path, change.before, change.after, change.aspects, owner, change.noise
            )
        named.append(change)
    return named


def _reader(manifest: Manifest) -> Callable[[list[str]], dict[str, bytes]]:
    return lambda paths: manifest.read(paths, _SMALL)


def _owner(path: str, names: Mapping[str, str]) -> str:
    """The owner; databases written before ``/bin`` became a link to ``/usr/bin`` say the shorter path."""
    return names.get(path) or names.get(path.removeprefix("/usr")) or ""


def _sizes(a: Manifest, b: Manifest) -> tuple[DirectorySize, list[DirectorySize]]:
    """All bytes, and the directories (two levels deep) whose bytes differ most."""
    before, after = _by_directory(a), _by_directory(b)
    found = [
        DirectorySize(path, before[path], after[path])
        for path in before.keys() | after.keys()
        if before[path] != after[path]
    ]
    found.sort(key=lambda d: (-abs(d.after - d.before), d.path))
    total = DirectorySize("/", sum(before.values()), sum(after.values()))
    return total, found[:_LARGEST]


def _by_directory(manifest: Manifest) -> Counter[str]:
    sizes: Counter[str] = Counter()
    counted: set[int] = set()
    for path, entry in manifest.entries.items():
        if not entry.is_file or not entry.size or entry.inode in counted:
            continue
        if entry.inode:  # a file of several names counts once
            counted.add(entry.inode)
        parts = path.split("/", 3)
        sizes["/".join(parts[: min(3, len(parts) - 1)]) or "/"] += entry.size
    return sizes


def _notes(a: Side, b: Side) -> list[str]:
    before = [f"before: {note}" for note in a.manifest.notes]
    return before + [f"after: {note}" for note in b.manifest.notes]
