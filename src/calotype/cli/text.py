"""Text on the terminal of a user."""

from calotype.units import human_size as size
from calotype.units import one_line, visible

__all__ = ["one_line", "size", "visible"]
