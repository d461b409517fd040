"""The guest's fstab: what it mounts where."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from calotype.guest.guest import Tree, lines

_ESCAPED = re.compile(r"\\([0-7]{3})")


class FstabEntry(NamedTuple):
    """A line of fstab: the device as it is named there, the mount point, the type, the options."""

    spec: str
    point: str
    type: str
    options: str


def fstab(tree: Tree) -> Iterator[FstabEntry]:
    """The entries of fstab, in order; comments, and lines of fewer than three fields, are none."""
    for line in lines(tree, "/etc/fstab"):
        fields = [unescaped(field) for field in line.split()]
        if len(fields) >= 3 and not line.lstrip().startswith("#"):
            spec, point, kind, options = (*fields[:4], "")[:4]
            yield FstabEntry(spec, point, kind, options)


def unescaped(field: str) -> str:
    """A field of fstab, in which spaces and their like are octal numbers."""
    return _ESCAPED.sub(lambda sign: chr(int(sign[1], 8)), field)
