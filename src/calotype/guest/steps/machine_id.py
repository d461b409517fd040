"""The machine-id: left empty, so that each clone makes its own at its first start.

Under systemd the file itself must stay: without it a guest with a read-only root would run without an id,
and a guest without one (or with ``uninitialized`` in it) takes its next start for its very first and sets
all its services anew. OpenRC and FreeBSD take an empty file for a damaged one: there it goes. A copy for
D-Bus would bring the old id back.
"""

import re
from collections.abc import Iterator, Sequence

from calotype.guest.accounts import edit_lines
from calotype.guest.guest import Guest, Tree, glob, text
from calotype.guest.steps.step import Concern, SysprepStep

_FILE = "/etc/machine-id"
_COPIES = ("/var/lib/dbus/machine-id", "/var/db/dbus/machine-id", "/usr/local/etc/machine-id")
_UNSET = {b"", b"uninitialized"}
_SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
#: Where kernels are told what to start with: a machine-id there is every clone's, whatever the file says.
_COMMAND_LINES = (
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/boot/grub/grubenv",
    "/boot/grub2/grubenv",
    "/boot/loader/entries/*.conf",
    "/boot/efi/loader/entries/*.conf",
    "/boot/extlinux/extlinux.conf",
    "/etc/default/grub",
    "/etc/default/grub.d/*",
    "/etc/kernel/cmdline",
    "/etc/kernel/cmdline.d/*",
    "/etc/cmdline.d/*",
)
_ARGUMENT = re.compile(r"systemd\.machine_id=[0-9a-fA-F-]{32,36}")
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
    for path in list(_telling(guest)):
        edit_lines(guest, path, _without_argument)


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
    left += [f"{p} is a copy" for p, copy in copies if copy is not None and not copy.is_link]
    return left + [f"{path} tells the kernel a machine-id" for path in _telling(guest)]


def _telling(guest: Tree) -> Iterator[str]:
    for pattern in _COMMAND_LINES:
        for path in glob(guest, pattern):
            if _ARGUMENT.search(text(guest, path)):
                yield path


def _without_argument(line: str) -> str:
    # As long as it was: GRUB's environment has a fixed size.
    return _ARGUMENT.sub(lambda found: " " * len(found[0]), line)


def _is_any(guest: Tree, paths: Sequence[str]) -> bool:
    return any(guest.stat(path) is not None for path in paths)


STEP = SysprepStep(
    name="machine-id",
    heading="The machine-id, its copy for D-Bus, and one that the kernel is told",
    order=220,
    concern=Concern.IDENTITY,
    perform=perform,
    check=check,
)
