"""The machine-id: left empty, so that each clone makes its own at its first start.

The file itself must stay: without it a guest with a read-only root would run without an id. A copy for
D-Bus would bring the old id back.
"""

from calotype.guest.guest import Guest, Tree
from calotype.guest.steps.step import Concern, SysprepStep

_FILE = "/etc/machine-id"
_COPY = "/var/lib/dbus/machine-id"
_UNSET = {b"", b"uninitialized"}


def perform(guest: Guest) -> None:
    """Empty the file and remove the copy."""
    found = guest.stat(_FILE)
    if found is not None and not found.is_file:
        guest.remove(_FILE)
    if guest.stat(_FILE) is None:
        guest.write(_FILE, b"", 0o444)
    elif guest.read(_FILE, 64):
        guest.truncate(_FILE)
    copy = guest.stat(_COPY)
    if copy is not None and copy.is_file:
        guest.remove(_COPY)


def check(guest: Tree) -> list[str]:
    """An id that is set, or a file that is missing."""
    left = []
    found = guest.stat(_FILE)
    if found is None or not found.is_file:
        left.append(f"{_FILE} is missing")
    elif (guest.read(_FILE, 64) or b"").strip() not in _UNSET:
        left.append(f"{_FILE} is set")
    copy = guest.stat(_COPY)
    if copy is not None and copy.is_file:
        left.append(f"{_COPY} is a copy")
    return left


STEP = SysprepStep(
    name="machine-id",
    heading="The machine-id and its copy for D-Bus",
    order=220,
    concern=Concern.IDENTITY,
    perform=perform,
    check=check,
)
