"""Where LVM2 keeps its linear volumes: a label, a header, and metadata in text.

Volumes that lie on this physical volume alone count, in one piece or several; mirrors, thin pools and other
kinds do not. Checksums are not looked at: what is wrong here costs ratio alone.
"""

import re
import struct
from itertools import takewhile
from typing import Any

from calotype.store.files.volume import Reader, Segment

_SECTOR = 512
_MAX_TEXT = 1 << 20
_MAX_DEPTH = 8
_MAX_SEGMENTS = 4096  # of all volumes
_MAX_AREAS = 16
_MAGIC = b" LVM2 x[5A%r0N*>"
_NUMBER = re.compile(r"[0-9]{1,18}")
_STATEMENT = re.compile(
    r"""
    \#[^\n]* | (?P<close>\})
    | (?<![\w.+-]) (?P<name>[\w.+-]+) \s*
        (?: (?P<open>\{) | = \s* (?: \[ (?P<array>[^][]*) \] | (?P<value>"(?:[^"\\]|\\.)*" | [\w.+-]+) ) )
    """,
    re.VERBOSE | re.ASCII | re.DOTALL,
)
_ITEM = re.compile(r'"[^"]*"|[\w.+-]+', re.ASCII)

Section = dict[str, Any]  # values: str, int, a list of these, or a section


def linear_volumes(disk: Reader) -> list[list[Segment]]:
    """The segments of each linear volume of a physical volume, in bytes; none where there is none."""
    if disk.size < 8 * _SECTOR:
        return []
    raw = disk.read(0, 5 * _SECTOR)
    for at in range(0, 4 * _SECTOR, _SECTOR):
        magic, _sector, _crc, head, kind = struct.unpack_from("<8sQII8s", raw, at)
        if magic == b"LABELONE" and kind == b"LVM2 001" and 32 <= head <= _SECTOR - 40:
            return _physical_volume(disk, raw[at + head : at + _SECTOR])
    return []


def _physical_volume(disk: Reader, header: bytes) -> list[list[Segment]]:
    identity = header[:32].decode("ascii", "replace")
    pairs = struct.iter_unpack("<QQ", header[40 : 40 + (len(header) - 40) // 16 * 16])
    list(takewhile(_some, pairs))  # where data is, which the metadata says too
    for offset, _size in takewhile(_some, pairs):
        for group in parse(_text(disk, offset)).values():
            if isinstance(group, dict):
                return _volumes(group, identity, disk.size)
    return []


def _some(pair: tuple[int, int]) -> bool:
    return pair[0] > 0


def _text(disk: Reader, area: int) -> str:
    """The metadata that is in force in the area at this offset: a part of a ring."""
    if area > disk.size - _SECTOR:
        return ""
    raw = disk.read(area, _SECTOR)
    magic, _version, start, size, at, length = struct.unpack_from("<16sIQQQQ", raw, 4)
    ring = size - _SECTOR  # after this header
    if magic != _MAGIC or start != area or not 0 < length <= min(ring, _MAX_TEXT):
        return ""
    if not _SECTOR <= at < size or size > disk.size - area:
        return ""
    first = min(length, size - at)
    text = disk.read(area + at, first) + disk.read(area + _SECTOR, length - first)
    return text.rstrip(b"\0").decode("utf-8", "replace")


def parse(text: str) -> Section:
    """LVM's text: ``name = value`` and ``name { … }``, nested; as much of it as makes sense."""
    top: Section = {}
    stack = [top]
    for statement in _STATEMENT.finditer(text):
        name, array, value = statement.group("name", "array", "value")
        if statement["open"]:
            section: Section = {}
            stack[-1][name] = section
            stack.append(section)
        elif statement["close"]:
            stack.pop()
        elif array is not None:
            stack[-1][name] = [_value(item) for item in _ITEM.findall(array)]
        elif value is not None:
            stack[-1][name] = _value(value)
        if not 0 < len(stack) <= _MAX_DEPTH:
            break
    return top


def _value(word: str) -> str | int:
    if word[0] == '"':
        return word[1:-1]
    return int(word) if _NUMBER.fullmatch(word) else word


def _volumes(group: Section, identity: str, size: int) -> list[list[Segment]]:
    """The linear volumes of a group whose segments are all on the physical volume ``identity``."""
    unit = _int(group, "extent_size") * _SECTOR
    here = [
        (name, _int(volume, "pe_start") * _SECTOR)
        for name, volume in _sections(group, "physical_volumes")
        if str(volume.get("id")).replace("-", "") == identity
    ]
    if not here or unit <= 0 or here[0][1] < 0:
        return []
    name, origin = here[0]
    found: list[list[Segment]] = []
    room = _MAX_SEGMENTS
    for _name, volume in _sections(group, "logical_volumes"):
        segments = _segments(volume, name, origin, unit, size)
        if segments and len(segments) <= room:
            found.append(segments)
            room -= len(segments)
    return found


def _segments(volume: Section, name: str, origin: int, unit: int, size: int) -> list[Segment]:
    """The segments of a volume, in its order; none when it is not linear or not here alone."""
    found: list[Segment] = []
    done = 0
    parts = [
        part for key, part in volume.items() if key.startswith("segment") and isinstance(part, dict)
    ]
    for part in sorted(parts, key=lambda part: _int(part, "start_extent")):
        count, stripes = _int(part, "extent_count"), part.get("stripes")
        linear = str(part.get("type")) in {"striped", "linear"} and _int(part, "stripe_count") == 1
        if not linear or not isinstance(stripes, list) or len(stripes) != 2 or stripes[0] != name:
            return []
        if _int(part, "start_extent") != done or count <= 0 or not isinstance(stripes[1], int):
            return []
        done += count
        start = origin + stripes[1] * unit
        if stripes[1] < 0 or start > size - count * unit:
            return []
        found.append(Segment(start, count * unit))
    return found


def _sections(section: Section, name: str) -> list[tuple[str, Section]]:
    """The sections inside the section ``name``."""
    inner = section.get(name)
    if not isinstance(inner, dict):
        return []
    return [(key, value) for key, value in inner.items() if isinstance(value, dict)]


def _int(section: Section, name: str) -> int:
    """A number of a section that is not negative; -1 where it has none."""
    value = section.get(name)
    return value if isinstance(value, int) and value >= 0 else -1
