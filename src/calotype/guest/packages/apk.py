"""apk: ``/lib/apk/db/installed`` of Alpine, one paragraph for each package."""

from collections.abc import Iterator

from calotype.guest.guest import Tree
from calotype.guest.packages.package import LONGEST, Family, Package, bounded, told, whole

_PATHS = ("/lib/apk/db/installed", "/usr/lib/apk/db/installed")
_LIMIT = 64 << 20


def packages(tree: Tree) -> Iterator[Package]:
    """The installed packages."""
    yield from bounded(_packages(tree))


def _packages(tree: Tree) -> Iterator[Package]:
    fields: dict[bytes, bytes] = {}
    for line in _lines(tree):
        if line[1:2] == b":" and line[:1] in b"PVAoL":
            fields.setdefault(line[:1], line[2:])
        elif not line:
            yield from _package(fields)
            fields = {}
    yield from _package(fields)


def files(tree: Tree) -> Iterator[tuple[str, str]]:
    """(path, package) of everything that packages brought."""
    name, directory = "", ""
    for line in _lines(tree):
        what, value = line[:2], line[2:].decode("utf-8", "surrogateescape")
        if what == b"P:":
            name = value
        elif what == b"F:":
            directory = f"/{value[:LONGEST]}" if value else ""
            yield directory or "/", name
        elif what == b"R:":
            yield f"{directory}/{value}", name


def _lines(tree: Tree) -> Iterator[bytes]:
    for path in _PATHS:
        if (data := whole(tree, path, _LIMIT)) is not None:
            start = 0
            while start < len(data):
                end = data.find(b"\n", start)
                end = len(data) if end < 0 else end
                yield data[start:end]
                start = end + 1
            return


def _package(fields: dict[bytes, bytes]) -> Iterator[Package]:
    if fields.get(b"P") and fields.get(b"V"):
        name, version, architecture, source, license_ = (
            told(fields.get(key, b"")) for key in (b"P", b"V", b"A", b"o", b"L")
        )
        yield Package(Family.APK, name, version, architecture, source or name, license_)
