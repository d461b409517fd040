"""What every package database comes down to."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from calotype.errors import GuestError
from calotype.guest.guest import Tree

#: As much of a database as is read; a greater one is an error.
LIMIT = 256 << 20
#: Packages, and paths that they own, of one guest.
MOST, MOST_PATHS = 200_000, 4_000_000
#: Characters of a path, and of all paths that packages own.
LONGEST, MOST_CHARACTERS = 4096, 128 << 20


class Family(StrEnum):
    """Whose database a package stands in; also the type of its purl."""

    DEB = "deb"
    RPM = "rpm"
    APK = "apk"
    FREEBSD = "freebsd"


@dataclass(frozen=True, slots=True)
class Package:
    """An installed package. ``version`` is complete, as its family writes it: ``1:2.3-4``.

    ``source`` names what it was built from (a source package, an origin, a source RPM) where that is known.
    """

    family: Family
    name: str
    version: str
    architecture: str = ""
    source: str = ""
    license: str = ""


@dataclass(slots=True)
class Inventory:
    """The installed packages, sorted; ``notes`` says what could not be read."""

    packages: list[Package] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def whole(tree: Tree, path: str, limit: int = LIMIT) -> bytes | None:
    """A file of a database, all of it.

    Raises:
        GuestError: it is greater than ``limit`` bytes, or cannot be read.
    """
    data = tree.read(path, limit + 1)
    if data is not None and len(data) > limit:
        raise GuestError(f"{path} is larger than {limit >> 20} MiB")
    return data


def bounded(packages: Iterable[Package]) -> Iterator[Package]:
    """The packages.

    Raises:
        GuestError: there are more than any system has.
    """
    for number, package in enumerate(packages):
        if number >= MOST:
            raise GuestError(f"the database lists more than {MOST} packages")
        yield package


def told(raw: bytes) -> str:
    """A field of a database as text, whatever its bytes are."""
    return raw[:LONGEST].decode("utf-8", "replace").strip()
