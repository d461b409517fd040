"""dpkg: ``/var/lib/dpkg/status``, and ``status.d`` of images without a package manager."""

import re
from collections.abc import Callable, Iterator

from calotype.errors import GuestError
from calotype.guest.guest import Tree, join
from calotype.guest.packages.package import Family, Package, bounded, told, whole

_STATUS = "/var/lib/dpkg/status"
_PARTS = "/var/lib/dpkg/status.d"
_INFO = "/var/lib/dpkg/info"
_LIMIT = 64 << 20
_PART_LIMIT = 1 << 20
_STANZA_LIMIT = 4 << 20
_BLANKS = re.compile(rb"\n*")
_FIELD = re.compile(rb"^(Package|Status|Version|Architecture|Source):([^\n]*)", re.MULTILINE)
#: What comes third in ``Status:`` when nothing, or nothing but configuration, is there.
_ABSENT = {"not-installed", "config-files"}


def packages(tree: Tree) -> Iterator[Package]:
    """The packages of which files are installed."""
    yield from bounded(_packages(tree))


def _packages(tree: Tree) -> Iterator[Package]:
    for stanza in _stanzas(whole(tree, _STATUS, _LIMIT) or b""):
        yield from _package(stanza)
    for name in tree.list(_PARTS):
        if not name.endswith(".md5sums"):
            for stanza in _stanzas(whole(tree, join(_PARTS, name), _PART_LIMIT) or b""):
                yield from _package(stanza)


def files(tree: Tree, read: Callable[[list[str]], dict[str, bytes]]) -> Iterator[tuple[str, str]]:
    """(path, package) of everything that packages brought."""
    lists = [join(_INFO, name) for name in tree.list(_INFO) if name.endswith(".list")]
    for path, content in read(lists).items():
        name = path.rpartition("/")[2].removesuffix(".list").partition(":")[0]
        for line in content.decode("utf-8", "surrogateescape").split("\n"):
            if line.startswith("/"):
                yield line, name


def _stanzas(data: bytes) -> Iterator[bytes]:
    start = _end_of_blanks(data, 0)
    while start < len(data):
        end = data.find(b"\n\n", start)
        end = len(data) if end < 0 else end
        if end - start > _STANZA_LIMIT:
            raise GuestError("a package's paragraph is longer than any")
        yield data[start:end]
        start = _end_of_blanks(data, end)


def _end_of_blanks(data: bytes, start: int) -> int:
    found = _BLANKS.match(data, start)
    return found.end() if found else start


def _package(stanza: bytes) -> Iterator[Package]:
    found = {key: told(value) for key, value in _FIELD.findall(stanza)}
    state = found.get(b"Status", "").split()
    if not found.get(b"Package") or not found.get(b"Version") or (state and state[-1] in _ABSENT):
        return
    source = found.get(b"Source", "").partition(" ")[0]
    yield Package(
        Family.DEB,
        found[b"Package"],
        found[b"Version"],
        found.get(b"Architecture", ""),
        source or found[b"Package"],
    )
