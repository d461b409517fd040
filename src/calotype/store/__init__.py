"""The store: disk images as deduplicated, compressed, verified chunks in an object store."""

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
