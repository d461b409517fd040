"""The machine's name, and the places that repeat it."""

import re

from calotype.guest.accounts import edit_lines
from calotype.guest.guest import Guest, Tree, lines, text
from calotype.guest.steps.step import Concern, SysprepStep

_LOCAL = "localhost"
#: Names of every machine.
_OURS = {_LOCAL, "localhost.localdomain", "localhost4", "localhost6", "ip6-localhost"}
_OURS |= {"ip6-loopback", "localhost4.localdomain4", "localhost6.localdomain6"}
#: Files that are the name and nothing else.
_FILES = ("/etc/hostname", "/etc/mailname", "/etc/HOSTNAME", "/etc/myname")
#: Configuration in which the old name is replaced wherever it stands as a word.
_MENTIONS = ("/etc/postfix/main.cf", "/etc/exim4/update-exim4.conf.conf", "/etc/nullmailer/me")
_INFO = "/etc/machine-info"


def perform(guest: Guest) -> None:
    """Call the machine localhost."""
    old = {name for path in _FILES for name in _name(guest, path).split() if name not in _OURS}
    old |= {name for address, names in _hosts(guest) if _is_loopback(address) for name in names}
    old = {part for name in old for part in (name, name.partition(".")[0])} - _OURS
    for path in _FILES:
        if _name(guest, path) not in (_LOCAL, ""):
            guest.write(path, f"{_LOCAL}\n".encode())
    edit_lines(guest, "/etc/hosts", lambda line: _hosts_line(line, old))
    for path in _MENTIONS:
        edit_lines(guest, path, lambda line: _without(line, old))
    edit_lines(guest, _INFO, lambda line: None if line.startswith("PRETTY_HOSTNAME=") else line)


def check(guest: Tree) -> list[str]:
    """Names of one machine."""
    left = [
        f"{path} says {_name(guest, path)}"
        for path in _FILES
        if _name(guest, path) not in _OURS | {""}
    ]
    for address, names in _hosts(guest):
        if _is_loopback(address):
            left += [f"/etc/hosts names {name}" for name in names if name not in _OURS]
    if "PRETTY_HOSTNAME=" in text(guest, _INFO):
        left.append(f"{_INFO} has a name")
    return left


def _name(guest: Tree, path: str) -> str:
    return text(guest, path).strip()


def _hosts(guest: Tree) -> list[tuple[str, list[str]]]:
    found = []
    for line in lines(guest, "/etc/hosts"):
        address, *names = line.partition("#")[0].split() or [""]
        found.append((address, names))
    return found


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _hosts_line(line: str, old: set[str]) -> str | None:
    """A line of /etc/hosts without the old names; None when no name is left on it."""
    body, sign, comment = line.partition("#")
    address, *names = body.split() or [""]
    wanted = _OURS if _is_loopback(address) else None
    stay = [n for n in names if n not in old and (wanted is None or n in wanted)]
    if stay == names:
        return line
    if not stay:
        return None
    return f"{address} {' '.join(stay)}" + (f" {sign}{comment}" if sign else "")


def _without(line: str, old: set[str]) -> str:
    for name in sorted(old, key=len, reverse=True):
        line = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", _LOCAL, line)
    return line


STEP = SysprepStep(
    name="hostname",
    heading="The host name, and its entries in hosts and mailname",
    order=240,
    concern=Concern.IDENTITY,
    perform=perform,
    check=check,
)
