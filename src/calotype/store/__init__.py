"""The store: disk images as deduplicated, compressed, verified chunks in an object store."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calotype.store.check import CheckReport, Damage
    from calotype.store.directory import DirectoryStore
    from calotype.store.ingest import Ingested
    from calotype.store.objects import MemoryStore, ObjectStore, ReadableStore
    from calotype.store.repository import Repository
    from calotype.store.stats import IndexStats, StoreStats

__all__ = [
    "CheckReport",
    "Damage",
    "DirectoryStore",
    "IndexStats",
    "Ingested",
    "MemoryStore",
    "ObjectStore",
    "ReadableStore",
    "Repository",
    "StoreStats",
]

#: Where each name is defined: a command loads what it needs, and is quick.
_PLACES = {
    "CheckReport": "check",
    "Damage": "check",
    "DirectoryStore": "directory",
    "IndexStats": "stats",
    "Ingested": "ingest",
    "MemoryStore": "objects",
    "ObjectStore": "objects",
    "ReadableStore": "objects",
    "Repository": "repository",
    "StoreStats": "stats",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
