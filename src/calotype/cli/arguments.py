"""Arguments that several commands read in one way."""

import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from calotype.errors import InvalidInput
from calotype.model import MAX_LUN
from calotype.units import one_line

#: For a file name that may be ``-``: standard input.
StdinPath = Annotated[str, Parameter(allow_leading_hyphen=True)]
#: For options that may be repeated.
Repeat = Parameter(negative_iterable="", consume_multiple=True)


def _seconds(_type: object, value: float | None) -> None:
    if value is not None and not 0 <= value <= 10_000_000:  # not a number is neither
        raise ValueError("is no number of seconds")


#: For how long to wait.
Seconds = Annotated[float, Parameter(validator=_seconds)]


def pair(text: str) -> tuple[str, str]:
    """``KEY=VALUE`` taken apart."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise InvalidInput(f"'{one_line(text, 200)}' is not KEY=VALUE", hint="such as team=web")
    return key, value


def pairs(texts: Iterable[str]) -> dict[str, str]:
    """Each ``KEY=VALUE`` taken apart; empty ones are none."""
    return dict(map(pair, filter(None, texts)))


def by_lun(texts: Iterable[str]) -> dict[int, str]:
    """Each ``LUN=NAME`` taken apart.

    Raises:
        InvalidInput: one is no such pair, or two have one LUN.
    """
    found: dict[int, str] = {}
    for text in texts:
        lun, separator, name = text.partition("=")
        if not separator or re.fullmatch("[0-9]{1,2}", lun) is None or int(lun) > MAX_LUN:
            raise InvalidInput(
                f"'{one_line(text, 200)}' is not LUN=NAME",
                hint="such as 0=data.vhd; LUNs are 0 to 63",
            )
        if int(lun) in found:
            raise InvalidInput(
                f"two data disks have LUN {int(lun)}", hint="give each a LUN of its own"
            )
        found[int(lun)] = name
    return found


def moment(text: str) -> datetime | None:
    """The moment that ``2027-12-31`` or ``2027-12-31T12:00:00Z`` means; ``None`` for ``none``.

    Raises:
        InvalidInput: it is none.
    """
    if text.lower() in ("", "none"):
        return None
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=found.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidInput(f"'{text}' is not a date", hint="such as 2027-12-31") from None


def sha256(text: str | None) -> str | None:
    """The hex digits of ``sha256:HEX`` or ``HEX``.

    Raises:
        InvalidInput: it is no SHA-256.
    """
    if text is None:
        return None
    kind, _, digest = text.lower().rpartition(":")
    if kind not in ("", "sha256") or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise InvalidInput(f"'{text}' is not a SHA-256", hint="sha256: and 64 hex digits")
    return digest


def read(path: str) -> bytes:
    """The bytes of a file; ``-`` is standard input."""
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"cannot read '{path}': {error.strerror}", hint="name a file, or - for standard input"
        ) from error
