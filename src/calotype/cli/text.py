"""Text on the terminal of a user."""

import sys

from calotype.units import human_size as size
from calotype.units import one_line, visible

__all__ = ["one_line", "say", "size", "visible"]


def say(kind: str, text: str) -> None:
    """Tell people something beside the result, on standard error: ``warning: …``, ``note: …``."""
    print(f"{kind}: {one_line(text)}", file=sys.stderr)
