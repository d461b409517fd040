"""The machine's name, and the places that repeat it."""

import re
from collections.abc import Iterator

from calotype.guest.accounts import edit_lines
from calotype.guest.guest import Guest, Tree, lines, text
from calotype.guest.steps.step import Concern, SysprepStep

_LOCAL = "localhost"
#: Names of every machine.
_OURS = {_LOCAL, "localhost.localdomain", "localhost4", "localhost6", "ip6-localhost"}
_OURS |= {"ip6-loopback", "localhost4.localdomain4", "localhost6.localdomain6"}
#: Files that are the name and nothing else.
_FILES = ("/etc/hostname", "/etc/mailname", "/etc/HOSTNAME", "/etc/myname")
#: Files of settings, in one of which the name stands.
_SETTINGS = (
    "/etc/sysconfig/network",
    "/etc/conf.d/hostname",
    "/etc/rc.conf",
    "/etc/rc.conf.d/hostname",
)
_SETTING = re.compile(r"""\s*(hostname=)(["']?)([^"'#\s]*)\2\s*(#.*)?""", re.IGNORECASE)
#: Configuration in which the old name is replaced wherever it stands as a word.
_MENTIONS = (
    "/etc/postfix/main.cf",
    "/etc/exim4/update-exim4.conf.conf",
    "/etc/nullmailer/me",
    "/etc/network/interfaces",
    "/etc/ssmtp/ssmtp.conf",
    "/etc/mail/sendmail.mc",
)
_INFO = "/etc/machine-info"


def perform(guest: Guest) -> None:
    """Call the machine localhost."""
    ours = _ours(guest)
    old = {name for path in _FILES for name in _name(guest, path).split() if name not in ours}
    old |= {name for _, name in _settings(guest)}
    old |= {name for address, names in _hosts(guest) if _is_loopback(address) for name in names}
    old = {part for name in old for part in (name, name.partition(".")[0])} - ours
    for path in _FILES:
        if _name(guest, path) not in (_LOCAL, ""):
            guest.write(path, f"{_LOCAL}\n".encode())
    for path in _SETTINGS:
        edit_lines(guest, path, lambda line: _SETTING.sub(rf"\1\2{_LOCAL}\2", line))
    edit_lines(guest, "/etc/hosts", lambda line: _hosts_line(line, old, ours))
    for path in _MENTIONS:
        edit_lines(guest, path, lambda line: _without(line, old))
    edit_lines(guest, _INFO, lambda line: None if line.startswith("PRETTY_HOSTNAME=") else line)


def check(guest: Tree) -> list[str]:
    """Names of one machine."""
    ours = _ours(guest)
    left = [
        f"{path} says {_name(guest, path)}"
        for path in _FILES
        if _name(guest, path) not in ours | {""}
    ]
    left += [f"{path} says {name}" for path, name in _settings(guest)]
    for address, names in _hosts(guest):
        if _is_loopback(address):
            left += [f"/etc/hosts names {name}" for name in names if name not in ours]
    if "PRETTY_HOSTNAME=" in text(guest, _INFO):
        left.append(f"{_INFO} has a name")
    return left


def _ours(guest: Tree) -> set[str]:
    """Names of every machine: a distribution's images may be called by its own."""
    found = re.search(r"^ID=[\"']?([a-z0-9._-]+)", text(guest, "/etc/os-release"), re.MULTILINE)
    return _OURS | ({found[1], f"{found[1]}.localdomain"} if found else set())


def _settings(guest: Tree) -> Iterator[tuple[str, str]]:
    """(path, name) of each setting that names one machine."""
    ours = _ours(guest) | {""}
    for path in _SETTINGS:
        for line in lines(guest, path):
            found = _SETTING.fullmatch(line)
            if found and found[3] not in ours:
                yield path, found[3]


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


def _hosts_line(line: str, old: set[str], ours: set[str]) -> str | None:
    """A line of /etc/hosts without the old names; None when no name is left on it."""
    body, sign, comment = line.partition("#")
    address, *names = body.split() or [""]
    wanted = ours if _is_loopback(address) else None
    gone = {n for n in names if n in old or n.partition(".")[0] in old}
    stay = [n for n in names if n not in gone and (wanted is None or n in wanted)]
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
