"""The machine-id: left empty, so that each clone makes its own at its first start.

Under systemd the file itself must stay: without it a guest with a read-only root would run without an id,
and a guest without one (or with ``uninitialized`` in it) takes its next start for its very first and sets
all its services anew. OpenRC and FreeBSD take an empty file for a damaged one: there it goes. A copy for
D-Bus would bring the old id back.
"""

from collections.abc import Sequence

from calotype.guest.guest import Guest, Tree
from calotype.guest.steps.step import Concern, SysprepStep

_FILE = "/etc/machine-id"
_COPIES = ("/var/lib/dbus/machine-id", "/var/db/dbus/machine-id", "/usr/local/etc/machine-id")
_UNSET = {b"", b"uninitialized"}
_SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
_OTHERS = ("/sbin/openrc", "/usr/sbin/openrc", "/etc/rc.subr")


def perform(guest: Guest) -> None:
    """Empty the file (or remove it) and remove the copies."""
    found = guest.stat(_FILE)
    if found is not None and (not found.is_file or _is_any(guest, _OTHERS)):
        guest.remove(_FILE)
    elif found is not None and found.size:
        guest.truncate(_FILE)
    if _is_any(guest, _SYSTEMD) and guest.stat(_FILE) is None:
        guest.write(_FILE, b"", 0o444)
    for path in _COPIES:
        copy = guest.stat(path)
        if copy is not None and not copy.is_link:
            guest.remove(path)


def check(guest: Tree) -> list[str]:
    """An id that is set, or a file that is missing."""
    left = []
    found = guest.stat(_FILE)
    if found is not None and not found.is_file:
        left.append(f"{_FILE} is no file")
    elif (guest.read(_FILE, 64) or b"").strip() not in _UNSET:
        left.append(f"{_FILE} is set")
    elif found is None and _is_any(guest, _SYSTEMD):
        left.append(f"{_FILE} is missing")
    copies = ((path, guest.stat(path)) for path in _COPIES)
    return left + [f"{p} is a copy" for p, copy in copies if copy is not None and not copy.is_link]


def _is_any(guest: Tree, paths: Sequence[str]) -> bool:
    return any(guest.stat(path) is not None for path in paths)


STEP = SysprepStep(
    name="machine-id",
    heading="The machine-id and its copy for D-Bus",
    order=220,
    concern=Concern.IDENTITY,
    perform=perform,
    check=check,
)
