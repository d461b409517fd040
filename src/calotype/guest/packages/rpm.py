"""rpm: package headers, out of whichever of its three databases a guest has.

A header is an index of tagged values; SQLite (rpmdb.sqlite), SUSE's ndb (Packages.db) and Berkeley DB's hash
(Packages, of RHEL 8 and older) are only ways to keep them.
"""

import struct
from collections.abc import Iterator

from calotype.errors import GuestError
from calotype.guest.guest import Tree
from calotype.guest.packages.package import LONGEST, Family, Package, bounded, told, whole
from calotype.guest.packages.rpm_bdb import blobs as bdb_blobs
from calotype.guest.packages.rpm_ndb import blobs as ndb_blobs
from calotype.guest.packages.sqlite import Database

_PLACES = ("/usr/lib/sysimage/rpm", "/var/lib/rpm")
_NAME, _VERSION, _RELEASE, _EPOCH = 1000, 1001, 1002, 1003
_LICENSE, _ARCH, _SOURCE = 1014, 1022, 1044
_INDEXES, _BASENAMES, _DIRECTORIES = 1116, 1117, 1118
_INT32, _STRING, _STRINGS, _I18N = 4, 6, 8, 9
_MAX_TAGS = 1 << 16
#: The public keys of those who sign packages stand in the database as if they were some.
_KEYS = "gpg-pubkey"


class Header:
    """A package's header; ``data`` is its index and its store.

    Raises:
        GuestError: it is damaged.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) < 8:
            raise GuestError("a package's header is too short")
        count, size = struct.unpack_from(">II", data)
        start = 8 + 16 * count
        if not 0 < count <= _MAX_TAGS or start + size > len(data):
            raise GuestError("a package's header makes no sense")
        self._store = data[start : start + size]
        self._tags = {
            tag: (kind, offset, number)
            for tag, kind, offset, number in struct.iter_unpack(">4I", data[8:start])
        }

    def text(self, tag: int) -> str:
        """A string; empty where there is none."""
        kind, offset, _ = self._tags.get(tag, (0, 0, 0))
        if kind not in (_STRING, _STRINGS, _I18N):
            return ""
        end = self._store.find(b"\0", offset)
        return told(self._store[offset : end if end >= 0 else None])

    def texts(self, tag: int) -> list[str]:
        """The strings of a list."""
        kind, offset, count = self._tags.get(tag, (0, 0, 0))
        if kind != _STRINGS or count > len(self._store):
            return []
        found = self._store[offset:].split(b"\0", count)[:count]
        return [raw.decode("utf-8", "surrogateescape") for raw in found]

    def numbers(self, tag: int) -> tuple[int, ...]:
        """The 32-bit numbers of a list."""
        kind, offset, count = self._tags.get(tag, (0, 0, 0))
        if kind != _INT32 or offset + 4 * count > len(self._store):
            return ()
        return struct.unpack_from(f">{count}I", self._store, offset)


def packages(tree: Tree) -> Iterator[Package]:
    """The installed packages."""
    yield from bounded(p for p in map(_package, _headers(tree)) if p.name and p.name != _KEYS)


def files(tree: Tree) -> Iterator[tuple[str, str]]:
    """(path, package) of everything that packages brought."""
    for header in _headers(tree):
        name = header.text(_NAME)
        directories = header.texts(_DIRECTORIES)
        pairs = zip(header.texts(_BASENAMES), header.numbers(_INDEXES), strict=False)
        for base, number in pairs:
            if number < len(directories) and len(directories[number]) < LONGEST:
                yield directories[number] + base, name


def _headers(tree: Tree) -> Iterator[Header]:
    for blob in _blobs(tree):
        yield Header(blob)


def _blobs(tree: Tree) -> Iterator[bytes]:
    """The headers of the first database that is there."""
    for place in _PLACES:
        if data := whole(tree, f"{place}/rpmdb.sqlite"):
            wal = tree.read(f"{place}/rpmdb.sqlite-wal") or b""
            for _, row in Database(data, wal).rows("Packages"):
                blob = row.get("blob")
                if isinstance(blob, bytes):
                    yield blob
            return
        if data := whole(tree, f"{place}/Packages.db"):
            yield from ndb_blobs(data)
            return
        if data := whole(tree, f"{place}/Packages"):
            yield from bdb_blobs(data)
            return


def _package(header: Header) -> Package:
    epoch = header.numbers(_EPOCH)
    version = f"{header.text(_VERSION)}-{header.text(_RELEASE)}"
    return Package(
        Family.RPM,
        header.text(_NAME),
        f"{epoch[0]}:{version}" if epoch and epoch[0] else version,
        header.text(_ARCH),
        header.text(_SOURCE),
        header.text(_LICENSE),
    )
