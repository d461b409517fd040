"""The store: disk images as deduplicated, compressed, verified chunks in an object store."""

from calotype.store.directory import DirectoryStore
from calotype.store.ingest import Ingested
from calotype.store.objects import MemoryStore, ObjectStore, ReadableStore
from calotype.store.repository import Repository

__all__ = [
    "DirectoryStore",
    "Ingested",
    "MemoryStore",
    "ObjectStore",
    "ReadableStore",
    "Repository",
]
