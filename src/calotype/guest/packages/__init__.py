"""Which packages are installed in a guest, as its own databases say; and whose a file is.

Each database is one small file, read by our own code: what a guest wrote is never given to a program or a
library that was made for data that can be trusted.
"""

from collections.abc import Callable

from calotype.errors import GuestError
from calotype.guest.guest import Tree
from calotype.guest.packages import apk, dpkg, freebsd, rpm
from calotype.guest.packages.package import (
    MOST,
    MOST_CHARACTERS,
    MOST_PATHS,
    Family,
    Inventory,
    Package,
)
from calotype.guest.packages.version import compare

__all__ = ["Family", "Inventory", "Package", "compare", "inventory", "owners"]

_FAMILIES = {Family.DEB: dpkg, Family.RPM: rpm, Family.APK: apk, Family.FREEBSD: freebsd}


def inventory(tree: Tree) -> Inventory:
    """The installed packages of every family; what cannot be read is a note, never an error."""
    found = Inventory()
    for family, database in _FAMILIES.items():
        try:
            for package in database.packages(tree):
                found.packages.append(package)
                if len(found.packages) > MOST:
                    raise GuestError(f"more than {MOST} packages")  # noqa: TRY301 (noted like the others)
        except GuestError as error:
            found.notes.append(f"{family} packages: {error.message}")
    found.packages.sort(key=lambda p: (p.family, p.name, p.architecture, p.version))
    return found


def owners(tree: Tree, read: "Callable[[list[str]], dict[str, bytes]]") -> dict[str, str]:
    """Path -> name of the package that brought it; what cannot be read is left out.

    Args:
        tree: the guest.
        read: reads many small files at once (dpkg keeps one for each package).
    """
    found: dict[str, str] = {}
    room = MOST_CHARACTERS
    for family, database in _FAMILIES.items():
        try:
            pairs = dpkg.files(tree, read) if family is Family.DEB else database.files(tree)
            for path, name in pairs:
                room -= len(path)
                if room < 0 or len(found) > MOST_PATHS:
                    return found
                found[path] = name
        except GuestError:
            continue
    return found
