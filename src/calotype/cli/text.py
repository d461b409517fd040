"""Text on the terminal of a user."""

from calotype.units import visible

__all__ = ["size", "visible"]


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
