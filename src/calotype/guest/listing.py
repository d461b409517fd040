"""Listing many directories of a guest in one go, with whatever ``find`` and ``stat`` the guest has.

GNU's find tells everything by itself, between NULs. Elsewhere ``stat`` tells it (busybox's or BSD's): a
record there ends in ``//`` (which no path has), and a link's target is as long as its size says.
"""

import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from calotype.errors import GuestError
from calotype.guest.guest import Stat

#: Bytes of one listing; an agent's answer takes no more than 16 MiB.
LIMIT = 12 << 20

_GNU, _STAT = b"gnu\0", b"stat\0"
_KINDS = {b"f": stat.S_IFREG, b"d": stat.S_IFDIR, b"l": stat.S_IFLNK, b"p": stat.S_IFIFO}
_KINDS |= {b"s": stat.S_IFSOCK, b"b": stat.S_IFBLK, b"c": stat.S_IFCHR}
_SCRIPT = b"""gnu=
for f in /usr/bin/find /bin/find /usr/local/bin/find; do
	case $($f --version 2> /dev/null < /dev/null) in *GNU*) gnu=$f; break;; esac
done
if [ "$gnu" ]; then
	printf 'gnu\\000'
	look() { "$gnu" "$@"; }
	print='-printf %%y\\040%%m\\040%%U\\040%%G\\040%%s\\040%%n\\040%%p\\0%%l\\0'
	show() { cat; }
else
	printf 'stat\\000'
	look() { find "$@"; }
	print=-print0
	if stat -c %%f / > /dev/null 2>&1; then
		show() { xargs -0 stat -c '%%f %%u %%g %%s %%h %%n//%%N'; }
	else
		show() { xargs -0 stat -f '%%Xp %%u %%g %%z %%l %%N//%%N%%SY'; }
	fi
fi
{
%s
} | show | head -c %d
"""
_RECORD = re.compile(rb"([0-9a-fA-F]+) (\d+) (\d+) (\d+) (\d+) (\.(?:/.+?)??)//", re.DOTALL)


class Node(NamedTuple):
    """What a listing says of a name; ``target`` is where a symbolic link leads."""

    stat: Stat
    target: bytes


class Listing(NamedTuple):
    """Paths (without ``.`` before them) in the order of the listing, and whether it was cut off."""

    nodes: Mapping[bytes, Node]
    cut: bool


def script(wanted: Sequence[tuple[bytes, int]], prune: Iterable[bytes]) -> bytes:
    """A script for :func:`parse`.

    Args:
        wanted: directories, quoted for the shell and beginning with ``./``, each with a depth.
        prune: paths, beginning with ``./``, that are named and not entered.
    """
    patterns = b" -o ".join(b"-path '%s'" % _literal(path) for path in prune)
    stop = b" \\( %s \\) -prune" % patterns if patterns else b""
    lines = [b"look %s -maxdepth %d $print%s" % (path, depth, stop) for path, depth in wanted]
    return _SCRIPT % (b"\n".join(lines), LIMIT)


def _literal(path: bytes) -> bytes:
    """A path as a pattern of find's, inside single quotes."""
    return re.sub(rb"([][*?\\])", rb"\\\1", path).replace(b"'", b"'\\''")


def parse(output: bytes) -> Listing:
    """What a listing's script printed.

    Raises:
        GuestError: it makes no sense.
    """
    dialect, _, body = output.partition(b"\0")
    cut = len(body) >= LIMIT
    if dialect + b"\0" == _GNU:
        return Listing(_gnu(body), cut)
    if dialect + b"\0" == _STAT:
        return Listing(_stat(body, cut=cut), cut)
    raise GuestError("the guest's files cannot be listed: it answers nonsense")


def _gnu(body: bytes) -> dict[bytes, Node]:
    nodes = {}
    fields = body.split(b"\0")
    for record, target in zip(fields[0:-1:2], fields[1:-1:2], strict=False):
        words = record.split(b" ", 6)
        try:
            kind, mode, uid, gid, size, links, path = words
            found = Stat(_KINDS[kind] | int(mode, 8), int(uid), int(gid), int(size), int(links))
        except (ValueError, KeyError):
            if words[0] in (b"?", b"D", b"U", b"N"):  # vanished while it was looked at
                continue
            raise GuestError("the guest's list of files makes no sense") from None
        nodes[_absolute(path)] = Node(found, target)
    return nodes


def _stat(body: bytes, *, cut: bool) -> dict[bytes, Node]:
    nodes = {}
    at = 0
    while at < len(body):
        record = _RECORD.match(body, at)
        if record is None:
            if cut:
                break
            raise GuestError("the guest's list of files makes no sense")
        mode, path = int(record[1], 16), record[6]
        found = Stat(mode, int(record[2]), int(record[3]), int(record[4]), int(record[5]))
        at = record.end()
        target = b""
        if found.is_link:
            after = _target(body, at, path, found.size)
            if after is None:
                if cut:
                    break
                raise GuestError("the guest's list of files makes no sense")
            target, at = after
        else:
            at += len(path)
        at = body.find(b"\n", at) + 1
        if at == 0:
            break
        nodes[_absolute(path)] = Node(found, target)
    return nodes


def _target(body: bytes, at: int, path: bytes, size: int) -> tuple[bytes, int] | None:
    """A link's target and where it ends: ``'PATH' -> 'TARGET'``, with quotes or without."""
    for opened in (b"'" + path + b"' -> '", path + b" -> "):
        if body.startswith(opened, at):
            start = at + len(opened)
            end = start + size
            return (body[start:end], end) if end < len(body) else None
    return None


def _absolute(path: bytes) -> bytes:
    return b"/" + path.removeprefix(b".").strip(b"/")


def directories(found: Listing, start: bytes, depth: int) -> dict[bytes, dict[bytes, Node]]:
    """The directories of which a listing from ``start`` down to ``depth`` has every name."""
    whole: dict[bytes, dict[bytes, Node]] = {}
    base = 0 if start == b"/" else start.count(b"/")
    prefix = start.rstrip(b"/") + b"/"
    last = b""
    for path, node in found.nodes.items():
        last = path
        if path != start and not path.startswith(prefix):
            continue
        level = 0 if path == b"/" else path.count(b"/")
        if level - base > depth:  # of another listing
            continue
        if node.stat.is_dir and level - base < depth:
            whole.setdefault(path, {})
        if path != start:
            parent, _, name = path.rpartition(b"/")
            whole.setdefault(parent or b"/", {})[name] = node
    if found.cut:  # whatever the last path lies in was not left
        while last:
            whole.pop(last, None)
            last = last.rpartition(b"/")[0]
        whole.pop(b"/", None)
    return whole
