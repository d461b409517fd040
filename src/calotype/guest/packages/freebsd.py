"""FreeBSD's pkg: ``/var/db/pkg/local.sqlite``."""

from collections.abc import Iterator

from calotype.guest.guest import Tree
from calotype.guest.packages.package import Family, Package, bounded, whole
from calotype.guest.packages.sqlite import Database, Value

_PATH = "/var/db/pkg/local.sqlite"


def packages(tree: Tree) -> Iterator[Package]:
    """The installed packages."""
    database = _open(tree)
    if database is not None:
        rows = (_package(row) for _, row in database.rows("packages"))
        yield from bounded(package for package in rows if package.name)


def files(tree: Tree) -> Iterator[tuple[str, str]]:
    """(path, package) of everything that packages brought."""
    database = _open(tree)
    if database is None:
        return
    names = {number: _text(row.get("name")) for number, row in database.rows("packages")}
    for _, row in database.rows("files"):
        owner = row.get("package_id")
        if isinstance(owner, int) and owner in names:
            yield _text(row.get("path")), names[owner]


def _open(tree: Tree) -> Database | None:
    data = whole(tree, _PATH)
    return Database(data, tree.read(f"{_PATH}-wal") or b"") if data else None


def _package(row: dict[str, Value]) -> Package:
    name, version, architecture, origin = (
        _text(row.get(key)) for key in ("name", "version", "arch", "origin")
    )
    return Package(Family.FREEBSD, name, version, architecture, origin)


def _text(value: Value) -> str:
    return value if isinstance(value, str) else ""
