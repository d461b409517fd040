"""Names of a room that are loaded when they are first used: a command loads what it needs, and is quick."""

from collections.abc import Callable, Mapping
from importlib import import_module


def late(room: str, places: Mapping[str, str]) -> Callable[[str], object]:
    """The ``__getattr__`` of a package whose names are in its modules: name -> module."""

    def attribute(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(import_module(f"{room}.{places[name]}"), name)

    return attribute
