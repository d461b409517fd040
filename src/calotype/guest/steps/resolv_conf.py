"""The name servers of the old network. A link to a resolver's own file stays."""

from calotype.guest.guest import Guest, Tree, lines
from calotype.guest.steps.step import Concern, SysprepStep

_FILE = "/etc/resolv.conf"


def perform(guest: Guest) -> None:
    """Empty the file."""
    if check(guest):
        guest.truncate(_FILE)


def check(guest: Tree) -> list[str]:
    """The lines that say something."""
    found = guest.stat(_FILE)
    if found is None or not found.is_file:
        return []
    said = [line for line in lines(guest, _FILE) if line.strip()]
    return [f"{_FILE} says {line}" for line in said]


STEP = SysprepStep(
    name="resolv-conf",
    heading="Name servers of the old network",
    order=360,
    concern=Concern.TRACE,
    perform=perform,
    check=check,
)
