"""The store: disk images as deduplicated, compressed, verified chunks in an object store."""

from typing import TYPE_CHECKING

from calotype.late import late

if TYPE_CHECKING:
    from calotype.store.check import CheckReport, Damage
    from calotype.store.copy import CopyReport
    from calotype.store.directory import DirectoryStore
    from calotype.store.ingest import Ingested
    from calotype.store.objects import MemoryStore, ObjectStore, ReadableStore
    from calotype.store.repair import RepairReport
    from calotype.store.repository import Repository
    from calotype.store.stats import IndexStats, StoreStats
    from calotype.store.verified import Verified

__all__ = [
    "CheckReport",
    "CopyReport",
    "Damage",
    "DirectoryStore",
    "IndexStats",
    "Ingested",
    "MemoryStore",
    "ObjectStore",
    "ReadableStore",
    "RepairReport",
    "Repository",
    "StoreStats",
    "Verified",
]

#: Where each name is defined: a command loads what it needs, and is quick.
_PLACES = {
    "CheckReport": "check",
    "CopyReport": "copy",
    "Damage": "check",
    "DirectoryStore": "directory",
    "IndexStats": "stats",
    "Ingested": "ingest",
    "MemoryStore": "objects",
    "ObjectStore": "objects",
    "ReadableStore": "objects",
    "RepairReport": "repair",
    "Repository": "repository",
    "StoreStats": "stats",
    "Verified": "verified",
}

__getattr__ = late(__name__, _PLACES)
