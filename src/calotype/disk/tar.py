"""The members of a tar file as windows: nothing is extracted, only regular members are let through."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from calotype.disk.window import Window
from calotype.errors import DiskRefused

_BLOCK: Final = 512
_MAX_MEMBERS: Final = 256
_MAX_PAX: Final = 64 << 10
_AGAIN: Final = "the archive is truncated or damaged: fetch it again and compare its checksum"


@dataclass(frozen=True, slots=True)
class Member:
    """A regular member: its name, and where its bytes lie in the archive."""

    name: str
    offset: int
    size: int


def members(window: Window) -> list[Member]:
    """All members of a tar file, in order.

    Raises:
        DiskRefused: it is damaged; a member is no regular file, has a path, stands twice; or there are
            too many.
    """
    found: dict[str, Member] = {}
    for member in _walk(window):
        if "/" in member.name or "\\" in member.name or member.name in {"", ".", ".."}:
            raise DiskRefused(f"the archive member {member.name!r} has a path", hint=_PLAIN)
        if member.name in found:
            raise DiskRefused(f"the archive member {member.name!r} stands twice", hint=_PLAIN)
        found[member.name] = member
        if len(found) > _MAX_MEMBERS:
            raise DiskRefused(f"the archive has more than {_MAX_MEMBERS} members", hint=_PLAIN)
    return list(found.values())


_PLAIN: Final = "an OVA is a tar of an .ovf, an .mf and disks, all plain files: tar cf x.ova FILES"


def _walk(window: Window) -> Iterator[Member]:
    position, pax = 0, dict[str, str]()
    while position + _BLOCK <= window.size:
        raw = window.read(position, _BLOCK)
        if not any(raw):
            return
        _check(raw)
        size, kind, data = _number(raw[124:136]), raw[156:157], position + _BLOCK
        if kind == b"x":
            pax = _pax(window, data, size)
        elif kind in {b"0", b"\0"}:
            size = int(pax.get("size", size))
            name = pax.get("path") or _name(raw)
            window.part(data, size).close()  # refuses what reaches over the end
            yield Member(name.removeprefix("./"), data, size)
            pax = {}
        else:
            raise DiskRefused(
                f"the archive member {_name(raw)!r} is no regular file (type {kind!r})", hint=_PLAIN
            )
        position = data + -(-size // _BLOCK) * _BLOCK
    raise DiskRefused("the archive has no end mark", hint=_AGAIN)


def _check(raw: bytes) -> None:
    stated = _number(raw[148:156])
    if raw[257:262] != b"ustar" or sum(raw) - sum(raw[148:156]) + 8 * 32 != stated:
        raise DiskRefused("a header of the archive is damaged", hint=_AGAIN)


def _name(raw: bytes) -> str:
    name = raw[:100].partition(b"\0")[0]
    if raw[257:263] == b"ustar\0" and (prefix := raw[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    return name.decode("utf-8", "backslashreplace")


def _number(raw: bytes) -> int:
    """An octal number, or GNU's base 256 for sizes of 8 GiB and more."""
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    text = raw.strip(b" \0")
    if not all(byte in b"01234567" for byte in text):
        raise DiskRefused("a number in a header of the archive is damaged", hint=_AGAIN)
    return int(text or b"0", 8)


def _pax(window: Window, offset: int, size: int) -> dict[str, str]:
    """The records of a pax header that we understand; those that change what a member is are refused."""
    if size > _MAX_PAX:
        raise DiskRefused(f"an extended header of {size} bytes is not accepted", hint=_PLAIN)
    raw, records = window.read(offset, size), dict[str, str]()
    while raw:
        length, _, rest = raw.partition(b" ")
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(raw):
            raise DiskRefused("an extended header of the archive is damaged", hint=_AGAIN)
        key, _, value = raw[len(length) + 1 : int(length)].removesuffix(b"\n").partition(b"=")
        if key.startswith(b"GNU.sparse") or (key == b"size" and not value.isdigit()):
            raise DiskRefused("the archive has a sparse or damaged member", hint=_PLAIN)
        if key in {b"path", b"size"}:
            records[key.decode()] = value.decode("utf-8", "backslashreplace")
        raw = raw[int(length) :]
        del rest
    return records
