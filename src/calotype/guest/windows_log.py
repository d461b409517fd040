"""Sysprep's own log of errors: the line that matters, and what it means."""

import re
from typing import NamedTuple

#: Where Sysprep writes it in the guest.
ERROR_LOG = "/Windows/System32/Sysprep/Panther/setuperr.log"
_LONGEST = 400  # characters of a line that are shown
_MAX_LINES = 20_000

_CUT = (
    "remove the package for that user (Remove-AppxPackage -AllUsers) and its provisioning "
    "(Remove-AppxProvisionedPackage), or provision it for all users, and stop updates of the Store"
)


class Cause(NamedTuple):
    """What a line of the log means, and what helps."""

    meaning: str
    cure: str


_CAUSES = (
    (
        r"was installed for a user, but not provisioned for all users",
        Cause("a Store app is installed for one user and not provisioned for all", _CUT),
    ),
    (
        r"0x80073cf2|0x3cf2\b|Failed to remove apps for the current user|RemoveAllApps",
        Cause("a Store app could not be removed from a user (0x80073cf2)", _CUT),
    ),
    (
        r"BitLocker-Sysprep|0x80310039|BitLocker is on",
        Cause(
            "BitLocker is on", "manage-bde -off C:, wait until it is decrypted, and run it again"
        ),
    ),
    (
        r"0x800f0975|reserved storage",
        Cause(
            "an update holds the reserved storage",
            "let Windows Update finish, restart, and run it again",
        ),
    ),
    (
        r"0xc004d307|re-?arm",
        Cause(
            "Windows may not be rearmed any more",
            "use an image with rearms left, or an answer file with SkipRearm=1",
        ),
    ),
    (
        r"upgraded (?:OS|version|state)|upgraded from",
        Cause(
            "this Windows was upgraded from an older one",
            "Sysprep generalizes clean installations only: install anew",
        ),
    ),
    (
        r"pending.*(?:reboot|restart|update)|(?:reboot|restart).*pending",
        Cause("a restart is pending", "restart Windows until none is, and run it again"),
    ),
    (
        r"another Sysprep|already running|0x800700b7",
        Cause("another Sysprep runs", "wait until it has ended"),
    ),
    (
        r"0x80070005|access is denied",
        Cause(
            "access was denied (0x80070005)",
            "run it as an administrator; look for security software that guards the registry",
        ),
    ),
    (
        r"0x80070002|0x80070003",
        Cause(
            "a file or a key that Sysprep needs is missing",
            "repair Windows (sfc /scannow, DISM /Online /Cleanup-Image /RestoreHealth)",
        ),
    ),
)
_PATTERNS = tuple((re.compile(pattern, re.IGNORECASE), cause) for pattern, cause in _CAUSES)


def explain(line: str) -> Cause | None:
    """What a line of the log means, when it is a known one."""
    return next((cause for pattern, cause in _PATTERNS if pattern.search(line)), None)


def offending(log: bytes) -> str:
    """The line that tells why Sysprep failed: the first of a known meaning, else the first error.

    Empty when there is none; control characters are written out.
    """
    errors = [
        line
        for line in (whole[:_LONGEST] for whole in decoded(log).splitlines()[-_MAX_LINES:])
        if re.match(r"[^\[]{0,40}\b(Error|Fatal)\b", line)
    ]
    known = (line for line in errors if explain(line))
    return printable(next(known, errors[0] if errors else ""))


def decoded(raw: bytes) -> str:
    """A text file of Windows as text: UTF-16 when it says so, else UTF-8; never an error."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", "replace")
    return raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")


def printable(text: str) -> str:
    """Text that a guest chose, on one line, with whatever could steer a terminal written out."""
    line = " ".join(text[:_LONGEST].split())
    return "".join(sign if sign.isprintable() else f"\\u{ord(sign):04x}" for sign in line)
