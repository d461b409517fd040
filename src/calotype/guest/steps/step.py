"""What a step of generalizing is, and the kind of step that most are."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from calotype.guest.guest import Guest, Tree, glob

#: Identifiers of ``/etc/os-release`` (``ID``, or one of ``ID_LIKE``) that we know well enough.
DEBIAN = frozenset({"debian"})


class Concern(StrEnum):
    """What a step's leavings would do to a clone; the verdict on a disk follows from it."""

    IDENTITY = "identity"  # two clones would be one machine
    CREDENTIAL = "credential"  # somebody could log in, or be somebody else
    TRACE = "trace"  # tells of the old machine and its people, and opens nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class SysprepStep:
    """One thing to make general.

    ``perform`` changes the guest (the guest keeps the list of changes). ``check`` says what is left,
    one line each, beginning with the path; it looks for itself and trusts nothing that ``perform``
    did. ``distributions`` is empty where the step concerns all of them.
    """

    name: str
    heading: str
    order: int
    concern: Concern
    perform: Callable[[Guest], None]
    check: Callable[[Tree], list[str]]
    distributions: frozenset[str] = frozenset()
    default: bool = True


def clearing(
    *,
    name: str,
    heading: str,
    order: int,
    concern: Concern,
    remove: Sequence[str] = (),
    empty: Sequence[str] = (),
    distributions: frozenset[str] = frozenset(),
    default: bool = True,
) -> SysprepStep:
    """A step that removes what matches ``remove``, and empties the files and directories ``empty``."""

    def perform(guest: Guest) -> None:
        for path in _matches(guest, remove):
            guest.remove(path)
        for path in _matches(guest, empty):
            if _filled(guest, path):
                guest.truncate(path)

    def check(guest: Tree) -> list[str]:
        left = [f"{path} is there" for path in _matches(guest, remove)]
        return left + [f"{p} is not empty" for p in _matches(guest, empty) if _filled(guest, p)]

    return SysprepStep(
        name=name,
        heading=heading,
        order=order,
        concern=concern,
        perform=perform,
        check=check,
        distributions=distributions,
        default=default,
    )


def _matches(guest: Tree, patterns: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        yield from list(glob(guest, pattern))


def _filled(guest: Tree, path: str) -> bool:
    """Whether there is something to empty; a link is not, wherever it leads."""
    found = guest.stat(path)
    if found is None:
        return False
    return bool(guest.list(path)) if found.is_dir else found.is_file and found.size > 0
