"""A root file system laid out in a directory that belongs to whoever builds.

No privilege is needed: files are unpacked as the builder's own, and who is to own them in the image
stands in a table beside them. Members of archives never leave the directory, whatever links lie in
their way.
"""

import os
import posixpath
import shutil
import stat
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from calotype.errors import InvalidInput
from calotype.run import Limits, run

_XATTR = "SCHILY.xattr."


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns a file in the image, and its extended attributes."""

    uid: int = 0
    gid: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()


@dataclass(slots=True)
class Tree:
    """The directory, and the owners of all that is not simply root's (paths without leading ``/``)."""

    root: Path
    owners: dict[str, Owner] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Where ``name`` lies, its directory's links followed as the guest would follow them.

        Raises:
            InvalidInput: the links go round in circles.
        """
        head, last = posixpath.split(posixpath.normpath("/" + name).lstrip("/"))
        return self.root / self._real(head) / last if last else self.root

    def _real(self, directory: str) -> str:
        todo, done, hops = directory.split("/")[::-1], "", 0
        while todo:
            part = todo.pop()
            if part in {"", "."}:
                continue
            if part == "..":
                done = posixpath.dirname(done)
                continue
            here = posixpath.join(done, part)
            try:
                target = os.readlink(self.root / here)
            except OSError:  # no link, or nothing there yet
                done = here
                continue
            hops += 1
            if hops > 40:
                raise InvalidInput(f"too many links on the way to {directory}")
            if target.startswith("/"):
                done = ""
            todo += target.split("/")[::-1]
        return done

    def mkdir(self, name: str, mode: int = 0o755) -> Path:
        """Make a directory and those above it."""
        path = self.root / self._real(name)
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
        return path

    def write(self, name: str, data: bytes | str, mode: int = 0o644) -> Path:
        """Write a file of root's, in place of whatever is there."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        path.chmod(mode)
        return path

    def symlink(self, target: str, name: str) -> None:
        """Make a symbolic link where nothing is yet."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(path):
            path.symlink_to(target)

    def lay(self, files: Path) -> None:
        """Lay a tree of plain files over this one: scripts become 0755, all other files 0644."""
        for source in sorted(files.rglob("*")):
            name = source.relative_to(files).as_posix()
            if source.is_dir():
                if not self.path(name).is_dir():
                    self.mkdir(name)
                continue
            data = source.read_bytes()
            self.write(name, data, 0o755 if data.startswith(b"#!") else 0o644)

    def own(self, name: str, uid: int, gid: int, mode: int | None = None) -> None:
        """Say who owns a file that is there."""
        path = self.path(name)
        if mode is not None:
            path.chmod(mode)
        key = path.relative_to(self.root).as_posix()
        self.owners[key] = Owner(uid, gid, self.owners.get(key, Owner()).xattrs)

    def prune(self, patterns: Iterable[str]) -> None:
        """Remove what matches any pattern (``*`` does not cross a ``/``)."""
        for pattern in patterns:
            for path in self.root.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        gone = [name for name in self.owners if not os.path.lexists(self.root / name)]
        for name in gone:
            del self.owners[name]

    def unpack(self, archive: IO[bytes]) -> None:
        """Unpack a tar stream member by member, through links that stand for directories.

        For packages, which may bring ``lib/…`` where ``lib`` is a link to ``usr/lib``.
        """
        with tarfile.open(fileobj=archive, mode="r|") as tar:
            for member in tar:
                self._member(tar, member)

    def _member(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = self.path(member.name)
        name = path.relative_to(self.root).as_posix()
        if member.isdir():
            if not path.is_dir():
                path.mkdir(parents=True)
            path = self.root / self._real(name)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        if member.isfile():
            source = tar.extractfile(member)
            with path.open("wb") as file:
                if source is not None:
                    shutil.copyfileobj(source, file)
        elif member.issym():
            path.symlink_to(member.linkname)
        elif member.islnk():
            os.link(self.path(member.linkname), path)
        elif not member.isdir():
            return  # device nodes: the guest's devtmpfs makes its own
        self._record(path.relative_to(self.root).as_posix(), member)
        if not member.issym():
            path.chmod(member.mode | (stat.S_IWUSR | stat.S_IXUSR if member.isdir() else 0))
        os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)

    def unpack_file(self, archive: Path) -> None:
        """Unpack a tar file of a whole, freshly installed system; much faster than `unpack`."""
        argv = ["tar", "--extract", "--file", str(archive), "--directory", str(self.root)]
        argv += ["--no-same-owner", "--preserve-permissions", "--no-xattrs", "--exclude=./dev/*"]
        run(argv, limits=Limits(wall=900))
        with tarfile.open(archive) as tar:
            for member in tar:
                if not member.name.startswith("./dev/"):
                    self._record(posixpath.normpath(member.name), member)

    def _record(self, name: str, member: tarfile.TarInfo) -> None:
        xattrs = tuple(
            (key.removeprefix(_XATTR), value.encode("utf-8", "surrogateescape"))
            for key, value in member.pax_headers.items()
            if key.startswith(_XATTR)
        )
        if member.uid or member.gid or xattrs:
            self.owners[name] = Owner(member.uid, member.gid, xattrs)
        else:
            self.owners.pop(name, None)
