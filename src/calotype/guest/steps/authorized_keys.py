"""Keys that open system accounts: whoever holds the other half could log in to every clone."""

import re
from collections.abc import Iterator

from calotype.guest.accounts import homes
from calotype.guest.guest import Guest, Tree, glob, join
from calotype.guest.sshd import settings
from calotype.guest.steps.step import Concern, SysprepStep

_NAMES = (".ssh/authorized_keys*", ".rhosts", ".shosts", ".k5login")
_USUAL = {".ssh/authorized_keys", ".ssh/authorized_keys2"}
_KEY = re.compile(rb"\b(ssh|ecdsa|sk)-[\w@.-]+[ \t]+AAAA")
_LONGEST = 1 << 20  # bytes of a list of keys that are looked at
_CENTRAL = ("/etc/ssh/authorized_keys*", "/etc/dropbear/authorized_keys", "/etc/hosts.equiv")


def perform(guest: Guest) -> None:
    """Remove them."""
    for path in list(_keys(guest)):
        guest.remove(path)


def check(guest: Tree) -> list[str]:
    """Those that hold something."""
    return [f"{path} is there" for path in _keys(guest) if _holds(guest, path)]


def _keys(guest: Tree) -> Iterator[str]:
    for home in homes(guest):
        for name in _NAMES:
            if home != "/root":  # root's own directory goes as a whole
                yield from glob(guest, join(home, name))
    for pattern in _CENTRAL:
        yield from glob(guest, pattern)
    yield from _configured(guest)


def _configured(guest: Tree) -> Iterator[str]:
    """Keys where the server's configuration has them; nothing that is no list of keys."""
    named = (s.words for s in settings(guest) if s.key == "authorizedkeysfile")
    for word in dict.fromkeys(word for words in named for word in words):
        if word in _USUAL or any(sign in word for sign in "*?["):
            continue
        pattern = re.sub("%[uU]", "*", word).replace("%%", "%")
        inside = not pattern.startswith(("/", "%h"))
        places = homes(guest) if inside or "%h" in pattern else [""]
        for home in places:
            where = join(home, pattern) if inside else pattern.replace("%h", home)
            for path in list(glob(guest, where)):
                if not path.startswith("/root/.ssh/") and _KEY.search(
                    guest.read(path, _LONGEST) or b""
                ):
                    yield path


def _holds(guest: Tree, path: str) -> bool:
    found = guest.stat(path)
    return found is not None and (bool(found.size) if found.is_file else bool(guest.list(path)))


STEP = SysprepStep(
    name="authorized-keys",
    heading="SSH keys that open system accounts",
    order=150,
    concern=Concern.CREDENTIAL,
    perform=perform,
    check=check,
)
