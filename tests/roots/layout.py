"""A root file system as it is laid out: files, directories and links with owners, modes and labels."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from calotype import run

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----\n"


@dataclass(frozen=True, slots=True)
class Entry:
    """One name: a file with ``content``, a link with a ``target``, or else a directory."""

    content: bytes | None
    target: str | None
    mode: int
    uid: int
    gid: int
    label: str | None


@dataclass(slots=True)
class Root:
    """What stands in a root file system. ``gone`` are the canaries that generalizing must remove."""

    entries: dict[str, Entry] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    label: str | None = None  # of every file, where the distribution has SELinux

    def canary(self, tag: str) -> str:
        """A string that must not be found afterwards."""
        name = f"CANARY-{tag}-xyzzy"
        if name not in self.gone:
            self.gone.append(name)
        return name

    def file(
        self, path: str, content: str | bytes = b"", mode: int = 0o644, uid: int = 0, gid: int = 0
    ) -> None:
        """A regular file; its directories come by themselves."""
        data = content if isinstance(content, bytes) else content.encode()
        self.entries[path] = Entry(data, None, mode, uid, gid, self.label)

    def directory(self, path: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        """A directory."""
        self.entries[path] = Entry(None, None, mode, uid, gid, self.label)

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self.entries[path] = Entry(None, target, 0o777, 0, 0, self.label)

    def lay(self, directory: Path) -> None:
        """Write the tree into an empty directory of the host (owners and labels are left out)."""
        for path, entry in self.entries.items():
            target = directory / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if entry.target is not None:
                target.symlink_to(entry.target)
            elif entry.content is None:
                target.mkdir(exist_ok=True)
            else:
                target.write_bytes(entry.content)

    def ext4(self, path: Path, size: int = 32 << 20) -> None:
        """An ext4 file system of ``size`` bytes with the tree in it, owners and labels included."""
        with _room(path) as room:
            tree = room / "tree"
            tree.mkdir()
            self.lay(tree)
            make = ["mke2fs", "-q", "-t", "ext4", "-L", "root", "-b", "4096", "-I", "256"]
            run.run([*make, "-d", str(tree), str(path), f"{size >> 10}k"])
            script = "\n".join([*self._owners(tree), *self._labels()]) + "\n"
            said = run.run(["debugfs", "-w", "-f", "-", str(path)], data=script.encode())
            assert len(said.stderr.splitlines()) == 1, said.stderr

    def _owners(self, tree: Path) -> Iterator[str]:
        """Everything belongs to root, whoever laid it out, but for what does not."""
        for found, directories, files in os.walk(tree):
            for name in (*directories, *files):
                path = "/" + str((Path(found) / name).relative_to(tree))
                entry = self.entries.get(path, Entry(None, None, 0o755, 0, 0, None))
                yield f"sif {_quoted(path)} uid {entry.uid}"
                yield f"sif {_quoted(path)} gid {entry.gid}"
                if entry.target is None:
                    kind = 0o040000 if entry.content is None else 0o100000
                    yield f"sif {_quoted(path)} mode 0{kind | entry.mode:o}"

    def _labels(self) -> Iterator[str]:
        for path, entry in self.entries.items():
            if entry.label is not None and entry.target is None:
                yield f"ea_set {_quoted(path)} security.selinux {entry.label}"


@dataclass(frozen=True, slots=True)
class Family:
    """How to lay out a family's root, each state on top of the one before."""

    fresh: Callable[[Root], None]
    used: Callable[[Root], None]


def _quoted(path: str) -> str:
    return f'"{path}"'


@contextlib.contextmanager
def _room(path: Path) -> Iterator[Path]:
    room = Path(tempfile.mkdtemp(prefix=".roots-", dir=path.parent))
    try:
        yield room
    finally:
        shutil.rmtree(room)
