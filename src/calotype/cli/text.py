"""Text that others chose, on the terminal of a user."""

import re

#: Control characters but line end and tab, what turns the direction of writing, and bytes that are no UTF-8.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """``text`` with every character that could steer a terminal written out, as JSON would."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def size(count: int | None) -> str:
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
