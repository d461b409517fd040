"""Copies that editors leave beside what they edit: older contents of configuration."""

import re
from collections.abc import Iterator

from calotype.guest.guest import Guest, Tree, walk
from calotype.guest.steps.step import Concern, SysprepStep

_TREES = ("/etc", "/root", "/srv", "/opt", "/usr/local")
_COPY = re.compile(r".+~|\.?#.+#|\..+\.sw[a-p]")


def perform(guest: Guest) -> None:
    """Remove the copies."""
    for path in list(_copies(guest)):
        guest.remove(path)


def check(guest: Tree) -> list[str]:
    """The copies that are there."""
    return [f"{path} is there" for path in _copies(guest)]


def _copies(guest: Tree) -> Iterator[str]:
    for tree in _TREES:
        for path, found in walk(guest, tree):
            if found.is_file and _COPY.fullmatch(path.rpartition("/")[2]):
                yield path


STEP = SysprepStep(
    name="editor-files",
    heading="Editors' backup and swap files of configuration",
    order=600,
    concern=Concern.TRACE,
    perform=perform,
    check=check,
)
