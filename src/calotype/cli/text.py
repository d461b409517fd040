"""Text on the terminal of a user."""

from calotype.units import human_size as size
from calotype.units import visible

__all__ = ["size", "visible"]
