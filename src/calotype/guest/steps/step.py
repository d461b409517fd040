"""What a step of generalizing is, and the kind of step that most are."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from calotype.guest.guest import Guest, Tree, glob, walk

#: Identifiers of ``/etc/os-release`` (``ID``, or one of ``ID_LIKE``) that we know well enough.
DEBIAN = frozenset({"debian", "ubuntu"})
RHEL = frozenset({"rhel", "almalinux", "rocky", "centos", "ol", "fedora"})
SUSE = frozenset({"suse", "sles", "opensuse", "opensuse-leap", "opensuse-tumbleweed"})
ALPINE = frozenset({"alpine"})
FREEBSD = frozenset({"freebsd"})
KNOWN = DEBIAN | RHEL | SUSE | ALPINE | FREEBSD


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
    did. ``distributions`` is empty where the step concerns all of them. ``command`` is a program of the
    guest's own that the step runs where the guest lives; offline, that does nothing.
    """

    name: str
    heading: str
    order: int
    concern: Concern
    perform: Callable[[Guest], None]
    check: Callable[[Tree], list[str]]
    distributions: frozenset[str] = frozenset()
    default: bool = True
    command: tuple[str, ...] = ()


def concerned(steps: Iterable[SysprepStep], distribution: Collection[str]) -> list[SysprepStep]:
    """The steps that concern a distribution; of one that nobody knows, all."""
    known = KNOWN & {*distribution}
    return [
        step for step in steps if not (step.distributions and known) or step.distributions & known
    ]


def commanding(
    *,
    name: str,
    heading: str,
    order: int,
    concern: Concern,
    command: tuple[str, ...],
    distributions: frozenset[str] = frozenset(),
    default: bool = True,
) -> SysprepStep:
    """A step that runs a program of the guest's own; what that leaves is for the steps after it."""

    def perform(guest: Guest) -> None:
        guest.execute(command)

    def check(guest: Tree) -> list[str]:
        del guest
        return []

    return SysprepStep(
        name=name,
        heading=heading,
        order=order,
        concern=concern,
        perform=perform,
        check=check,
        distributions=distributions,
        default=default,
        command=command,
    )


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
    """A step that removes what matches ``remove``, and empties the files and directories ``empty``.

    A directory without a file in it tells nothing, so the check does not mind it.
    """

    def perform(guest: Guest) -> None:
        for path in _matches(guest, remove):
            guest.remove(path)
        for path in _matches(guest, empty):
            if _filled(guest, path):
                guest.truncate(path)

    def check(guest: Tree) -> list[str]:
        left = [f"{path} is there" for path in _matches(guest, remove) if tells(guest, path)]
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


def tells(guest: Tree, path: str) -> bool:
    """Whether something stands at a path that is not just empty directories."""
    found = guest.stat(path)
    if found is None or not found.is_dir:
        return found is not None
    return any(not inner.is_dir for _, inner in walk(guest, path))


def _matches(guest: Tree, patterns: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        yield from list(glob(guest, pattern))


def _filled(guest: Tree, path: str) -> bool:
    """Whether there is something to empty; a link is not, wherever it leads."""
    found = guest.stat(path)
    if found is None:
        return False
    return bool(guest.list(path)) if found.is_dir else found.is_file and found.size > 0
