"""Old copies of the account files: people and hashes that the current ones no longer have."""

import re
from collections.abc import Iterator

from calotype.guest.guest import Guest, Tree, glob, join
from calotype.guest.steps.step import Concern, SysprepStep

_FILES = "passwd|shadow|group|gshadow|subuid|subgid|sudoers|opasswd"
# group.conf (of PAM) and sudoers.d are something else.
_COPY = re.compile(rf"\.?({_FILES})([-~]|[-~+.,](?!conf$|d$).+)")
#: Where distributions and administrators leave them.
_DIRECTORIES = ("/etc", "/etc/security", "/var/backups")


def perform(guest: Guest) -> None:
    """Remove the copies."""
    for path in list(_copies(guest)):
        guest.remove(path)


def check(guest: Tree) -> list[str]:
    """The copies that are there."""
    return [f"{path} is there" for path in _copies(guest)]


def _copies(guest: Tree) -> Iterator[str]:
    for directory in _DIRECTORIES:
        for path in glob(guest, join(directory, "*")):
            found = guest.stat(path)
            if found is not None and not found.is_dir and _COPY.fullmatch(path.rpartition("/")[2]):
                yield path


STEP = SysprepStep(
    name="account-backups",
    heading="Old copies of passwd, shadow, group and their like",
    order=140,
    concern=Concern.CREDENTIAL,
    perform=perform,
    check=check,
)
