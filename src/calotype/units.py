"""Sizes, times and shares as people write them, and text of others as people may see it."""

import re
from collections.abc import Sequence
from datetime import timedelta

from calotype.errors import InvalidInput

#: Control characters but line end and tab, what turns the direction of writing, and bytes that are no UTF-8.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MAX_SIZE = 1 << 60
_SCALE = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def size(text: str) -> int:
    """Bytes in ``10G``, ``512MiB``, ``2t`` or a plain number of bytes (units are powers of 1024).

    Raises:
        InvalidInput: it is not a size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower(), re.ASCII)
    if not found:
        raise InvalidInput(f"'{text}' is not a size", hint="write 10G, 512M, or a number of bytes")
    count = float(found[1]) * _SCALE[found[2]]
    if count > _MAX_SIZE:
        raise InvalidInput(f"'{text}' is more than any disk or memory holds")
    return int(count)


def duration(text: str) -> timedelta:
    """The time in ``90s``, ``15m``, ``36h``, ``7d``, ``2w``, or a plain ``0``.

    Raises:
        InvalidInput: it is not a time.
    """
    found = re.fullmatch(r"(\d{1,9})\s*([smhdw]?)", text.strip().lower(), re.ASCII)
    if not found or (not found[2] and int(found[1])):
        raise InvalidInput(f"'{text}' is not a time", hint="write 90s, 15m, 36h, 7d or 2w")
    seconds = int(found[1]) * _SECONDS[found[2] or "s"]
    if seconds > 100 * 365 * _SECONDS["d"]:
        raise InvalidInput(f"'{text}' is longer than a hundred years")
    return timedelta(seconds=seconds)


def share(text: str) -> float:
    """The part of a whole in ``10%`` (above 0, at most 100).

    Raises:
        InvalidInput: it is not a share.
    """
    found = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*%", text.strip(), re.ASCII)
    if not found or not 0 < float(found[1]) <= 100:
        raise InvalidInput(f"'{text}' is not a share", hint="write 10%, or 0.5%")
    return float(found[1]) / 100


def visible(text: str) -> str:
    """``text`` with every character that could steer a terminal written out, as JSON would."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str, limit: int = 1024) -> str:
    """As :func:`visible`, without ends of lines, cut off after ``limit`` characters."""
    shown = visible(text).replace("\n", "\\u000a").replace("\t", "\\u0009")
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def some(texts: Sequence[str], most: int = 5) -> str:
    """The first of several texts, and how many more there are: ``a; b; and 3 more``."""
    left = len(texts) - most
    return "; ".join([*texts[:most], *([f"and {left} more"] if left > 0 else [])])


def human_size(count: int | None) -> str:
    """Bytes for people: ``1.5 GiB``."""
    if count is None:
        return ""
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(number) < 1024 or unit == "TiB":
            return (
                f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
            )
        number /= 1024
    raise AssertionError
