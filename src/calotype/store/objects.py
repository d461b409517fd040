"""What a place for immutable objects must do, and the one that lives in memory.

Roles grow by embedding: whoever only reads asks for a :class:`ReadableStore`; the repository asks for an
:class:`ObjectStore`. Keys are short ASCII paths such as ``packs/3f…``.
"""

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from calotype.errors import Conflict, InvalidInput, NotFound, StoreDamaged

Bytes = bytes | bytearray | memoryview

_KEY = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}(/[a-z0-9][a-z0-9._-]{0,127}){0,3}")


class Stored(NamedTuple):
    """An object as a listing shows it; ``size`` in bytes."""

    key: str
    size: int


class ReadableStore(Protocol):
    """A place to read objects from. Safe to use from several threads at once."""

    def get(self, key: str) -> bytes:
        """The whole object.

        Raises:
            NotFound: there is no object of that key.
        """
        ...

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes of an object.

        Raises:
            NotFound: there is no object of that key.
            StoreDamaged: the object ends before ``offset + length``.
        """
        ...

    def size(self, key: str) -> int:
        """The object's size in bytes.

        Raises:
            NotFound: there is no object of that key.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[Stored]:
        """The objects whose keys start with ``prefix``, sorted by key."""
        ...

    def close(self) -> None:
        """Release what it holds; harmless when repeated."""
        ...


class ObjectWriter(Protocol):
    """An object that is being written; nobody sees it until it is committed."""

    def write(self, buffers: Sequence[Bytes]) -> None:
        """Append the buffers; they may be reused as soon as this returns."""
        ...

    def commit(self, key: str) -> None:
        """Make the object durable, then visible as ``key``, replacing an older one."""
        ...

    def abort(self) -> None:
        """Drop what was written; harmless after a commit."""
        ...


class ObjectStore(ReadableStore, Protocol):
    """A place that keeps objects: what it has acknowledged survives a power cut."""

    def put(self, key: str, data: Bytes | Iterable[Bytes], *, if_absent: bool = False) -> bool:
        """Keep ``data`` as ``key``, whole or not at all.

        Returns:
            False when ``if_absent`` is set and the key was taken (nothing is changed), else True.
        """
        ...

    def writer(self) -> ObjectWriter:
        """Start an object whose key is known only at its end."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; harmless when there is none."""
        ...

    def persist(self, prefix: str) -> None:
        """Return when every object that a listing of ``prefix`` shows survives a power cut."""
        ...

    def leftovers(self) -> Sequence[str]:
        """Names of unfinished objects whose writers are gone."""
        ...

    def sweep(self) -> Sequence[str]:
        """Remove the leftovers, and return their names."""
        ...


@runtime_checkable
class Cached(Protocol):
    """A store that may hand out what it kept earlier."""

    def fresh(self, key: str) -> ReadableStore:
        """The store behind it; what was kept of ``key`` is forgotten."""
        ...


def read_again(objects: ReadableStore, key: str) -> ReadableStore:
    """Where to read ``key`` once more, when what was read is not what it should be.

    It may have been damaged on its way, or in a cache.
    """
    return objects.fresh(key) if isinstance(objects, Cached) else objects


def check_key(key: str) -> str:
    """The key itself, if it is one.

    Raises:
        InvalidInput: the key has other characters than the store's own keys have.
    """
    if not _KEY.fullmatch(key):
        raise InvalidInput(f"{key!r} is not an object key")
    return key


def as_buffers(data: Bytes | Iterable[Bytes]) -> Iterable[Bytes]:
    """``data`` as a series of buffers."""
    return (data,) if isinstance(data, bytes | bytearray | memoryview) else data


def write_through(writer: ObjectWriter, key: str, data: Iterable[Bytes]) -> None:
    """Write a series of buffers as one object; nothing stays of it when that fails."""
    try:
        for buffer in data:
            writer.write((buffer,))
        writer.commit(key)
    finally:
        writer.abort()


def missing(key: str) -> NotFound:
    """The error for an object that is not there."""
    return NotFound(f"the store has no object {key}")


def truncated(key: str, wanted: int) -> StoreDamaged:
    """The error for an object that ends too early."""
    return StoreDamaged(
        f"object {key} ends before byte {wanted}", hint="run `calotype store check`"
    )


class MemoryStore:
    """Objects in memory: for tests, and for what need not stay."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes:
        """The whole object."""
        try:
            return self._objects[check_key(key)]
        except KeyError:
            raise missing(key) from None

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes of an object."""
        data = self.get(key)
        if offset < 0 or length < 0 or offset + length > len(data):
            raise truncated(key, offset + length)
        return data[offset : offset + length]

    def size(self, key: str) -> int:
        """The object's size in bytes."""
        return len(self.get(key))

    def list(self, prefix: str = "") -> Iterator[Stored]:
        """The objects whose keys start with ``prefix``, sorted by key."""
        with self._lock:
            found = sorted((k, len(v)) for k, v in self._objects.items() if k.startswith(prefix))
        return (Stored(key, size) for key, size in found)

    def put(self, key: str, data: Bytes | Iterable[Bytes], *, if_absent: bool = False) -> bool:
        """Keep ``data`` as ``key``."""
        whole = b"".join(as_buffers(data))
        with self._lock:
            if if_absent and key in self._objects:
                return False
            self._objects[check_key(key)] = whole
        return True

    def writer(self) -> "MemoryWriter":
        """Start an object whose key is known only at its end."""
        return MemoryWriter(self)

    def delete(self, key: str) -> None:
        """Remove an object."""
        with self._lock:
            self._objects.pop(check_key(key), None)

    def persist(self, prefix: str) -> None:
        """Nothing here outlives the process."""

    def leftovers(self) -> Sequence[str]:
        """Nothing: unfinished objects go with their writers."""
        return ()

    def sweep(self) -> Sequence[str]:
        """Nothing to remove."""
        return ()

    def close(self) -> None:
        """Nothing to release."""


class MemoryWriter:
    """An object of a :class:`MemoryStore` that is being written."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._data: bytearray | None = bytearray()

    def write(self, buffers: Sequence[Bytes]) -> None:
        """Append the buffers."""
        if self._data is None:
            raise Conflict("this object is already finished")
        for buffer in buffers:
            self._data += buffer

    def commit(self, key: str) -> None:
        """Make the object visible as ``key``."""
        if self._data is None:
            raise Conflict("this object is already finished")
        self._store.put(key, self._data)
        self._data = None

    def abort(self) -> None:
        """Drop what was written."""
        self._data = None
