"""The old machine-id in the names of boot entries, and the rescue kernels that are named after it.

Boot entries get the id of nobody that the builders of images give them (32 times ``f``).
"""

import re
from collections.abc import Iterator

from calotype.guest.guest import Guest, Tree, glob, text
from calotype.guest.steps.step import RHEL, SUSE, Concern, SysprepStep

_NOBODY = "f" * 32
_ENTRIES = "/boot/loader/entries/*.conf"
_ENTRY = re.compile(r"(?!f{32})([0-9a-f]{32})(-.+\.conf)")
_RESCUE = ("/boot/*-0-rescue-*", "/boot/loader/entries/*-0-rescue*.conf")
_ENVIRONMENT = ("/boot/grub2/grubenv", "/boot/grub/grubenv")
_SAVED = re.compile(r"(?<=^saved_entry=)(?!f{32})[0-9a-f]{32}(?=-)", re.MULTILINE)
_TOKENS = ("/etc/kernel/entry-token", "/etc/kernel/install.conf.d/machine-id")


def perform(guest: Guest) -> None:
    """Rename entries, and remove rescue kernels, which the next kernel brings back."""
    for path in list(_rescue(guest)):
        guest.remove(path)
    for path, name in list(_entries(guest)):
        content = guest.read(path) or b""
        directory = path.rpartition("/")[0]
        guest.remove(path)
        guest.write(f"{directory}/{name}", content, 0o644)
    for path in _ENVIRONMENT:
        said = text(guest, path)
        if _SAVED.search(said):
            guest.write(path, _SAVED.sub(_NOBODY, said).encode("utf-8", "surrogateescape"))
    for path in list(_tokens(guest)):
        guest.remove(path)


def check(guest: Tree) -> list[str]:
    """Names with an id in them."""
    left = [f"{path} is there" for path in _rescue(guest)]
    left += [f"{path} names a machine-id" for path, _ in _entries(guest)]
    left += [
        f"{path} names a machine-id" for path in _ENVIRONMENT if _SAVED.search(text(guest, path))
    ]
    return left + [f"{path} names a machine-id" for path in _tokens(guest)]


def _rescue(guest: Tree) -> Iterator[str]:
    for pattern in _RESCUE:
        yield from glob(guest, pattern)


def _entries(guest: Tree) -> Iterator[tuple[str, str]]:
    """(path, the name that it should have) of each entry that has an id in its name."""
    for path in glob(guest, _ENTRIES):
        found = _ENTRY.fullmatch(path.rpartition("/")[2])
        if found and "-0-rescue" not in path:
            yield path, _NOBODY + found[2]


def _tokens(guest: Tree) -> Iterator[str]:
    for path in _TOKENS:
        if re.fullmatch(r"(?!f{32})[0-9a-f]{32}", text(guest, path).strip()):
            yield path


STEP = SysprepStep(
    name="boot-entries",
    heading="The old machine-id in the names of boot entries; rescue kernels named after it",
    order=225,
    concern=Concern.TRACE,
    perform=perform,
    check=check,
    distributions=RHEL | SUSE,
)
