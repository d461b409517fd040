"""A minimal initial RAM disk: kernel modules, a busybox and a script, in cpio's ``newc`` format."""

import lzma
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import zstandard

from calotype.errors import InvalidInput

_DIR, _FILE, _LINK = 0o040755, 0o100000, 0o120777


class Cpio:
    """Collects files, all of root's, and returns the archive; directories come by themselves."""

    def __init__(self) -> None:
        self._members: list[bytes] = []
        self._seen: set[str] = set()

    def add(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a file (a name without leading ``/``)."""
        self._parents(name)
        self._entry(name, _FILE | mode, data)

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._parents(name)
        self._entry(name, _LINK, target.encode())

    def mkdir(self, name: str) -> None:
        """Add a directory and those above it."""
        if name not in self._seen:
            self._parents(name)
            self._entry(name, _DIR, b"")

    def finish(self) -> bytes:
        """The whole archive."""
        trailer = _newc("TRAILER!!!", 0, 0, b"", 1)
        archive = b"".join(self._members) + trailer
        return archive.ljust(-(-len(archive) // 512) * 512, b"\0")

    def _parents(self, name: str) -> None:
        for parent in reversed(PurePosixPath(name).parents):
            if str(parent) != "." and str(parent) not in self._seen:
                self._entry(str(parent), _DIR, b"")

    def _entry(self, name: str, mode: int, data: bytes) -> None:
        if name in self._seen or name.startswith("/"):
            raise ValueError(f"{name} is there already, or is no relative name")
        self._seen.add(name)
        links = 2 if mode == _DIR else 1
        self._members.append(_newc(name, len(self._seen), mode, data, links))


def _newc(name: str, inode: int, mode: int, data: bytes, links: int) -> bytes:
    encoded = name.encode() + b"\0"
    numbers = (inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
    return header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4)


def dependencies(text: str) -> dict[str, list[str]]:
    """``modules.dep`` as a table: path of a module to the paths that it needs, nearest first."""
    table: dict[str, list[str]] = {}
    for line in text.splitlines():
        path, _, needs = line.partition(":")
        table[path.strip()] = needs.split()
    return table


def closure(wanted: Iterable[str], deps: Mapping[str, Sequence[str]], builtin: str) -> list[str]:
    """The paths of the wanted modules and all that they need, each after what it needs.

    Args:
        wanted: names of modules; those built into the kernel are left out.
        deps: what :func:`dependencies` returned.
        builtin: the text of ``modules.builtin``.

    Raises:
        InvalidInput: the kernel has no such module.
    """
    by_name = {module_name(path): path for path in deps}
    inside = {module_name(path) for path in builtin.splitlines()}
    ordered: dict[str, None] = {}
    for name in wanted:
        path = by_name.get(name.replace("-", "_"))
        if path is None:
            if name.replace("-", "_") in inside:
                continue
            raise InvalidInput(f"the kernel has no module {name}")
        for need in reversed(deps[path]):
            ordered.setdefault(need)
        ordered.setdefault(path)
    return list(ordered)


def module_name(path: str) -> str:
    """``kernel/drivers/scsi/virtio_scsi.ko.xz`` → ``virtio_scsi``."""
    return PurePosixPath(path).name.split(".", 1)[0].replace("-", "_")


def module_bytes(path: Path) -> bytes:
    """A module as ``insmod`` takes it: unpacked."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def build(init: bytes, busybox: bytes, modules: Sequence[tuple[str, bytes]]) -> bytes:
    """The compressed archive: ``/init``, ``/bin/busybox``, ``/lib/modules/*`` and their order."""
    cpio = Cpio()
    cpio.add("init", init, 0o755)
    cpio.add("bin/busybox", busybox, 0o755)
    cpio.symlink("bin/sh", "busybox")
    for directory in ("dev", "proc", "sys", "new"):
        cpio.mkdir(directory)
    for name, data in modules:
        cpio.add(f"lib/modules/{name}", data)
    cpio.add("lib/modules/order", "".join(f"{name}\n" for name, _ in modules).encode())
    return zstandard.ZstdCompressor(level=19).compress(cpio.finish())
