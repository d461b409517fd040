"""A store that repeats what failed for the moment: exponential backoff with full jitter.

Only :class:`calotype.errors.StoreUnavailable` is repeated. An attempt whose answer was lost may have been
done: reads, deletes and plain puts are the same twice, and of a conditional put the bytes that are there
tell.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from calotype.errors import NotFound, StoreUnavailable
from calotype.store.objects import (
    Bytes,
    ObjectStore,
    ObjectWriter,
    Stored,
    as_buffers,
    write_through,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long to repeat; times in seconds."""

    attempts: int = 8
    total: float = 120  # no attempt starts later than this after the first
    first: float = 0.1  # the longest pause before the second attempt; it doubles each time
    longest: float = 10


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, as tests may replace it."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random  # in [0, 1)


class RetryStore:
    """Another store, patiently. Safe to use from several threads at once."""

    def __init__(
        self, inner: ObjectStore, patience: Patience | None = None, clock: Clock | None = None
    ) -> None:
        self.inner = inner
        self._patience = patience or Patience()
        self._clock = clock or Clock()

    def patiently(self, attempt: Callable[[], T]) -> T:
        """What ``attempt`` returns, as soon as it returns.

        Raises:
            StoreUnavailable: it failed for the moment, too often or for too long.
        """
        patience, clock = self._patience, self._clock
        start = clock.now()
        tried = 0
        while True:
            try:
                return attempt()
            except StoreUnavailable as error:
                tried += 1
                pause = min(patience.longest, patience.first * 2 ** (tried - 1)) * clock.jitter()
                spent = clock.now() - start
                if tried >= patience.attempts or spent + pause > patience.total:
                    raise StoreUnavailable(
                        f"{error.message} ({tried} attempts in {spent:.0f} s)", hint=error.hint
                    ) from None
                clock.sleep(pause)

    def get(self, key: str) -> bytes:
        """The whole object."""
        return self.patiently(lambda: self.inner.get(key))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes of an object."""
        return self.patiently(lambda: self.inner.get_range(key, offset, length))

    def size(self, key: str) -> int:
        """The object's size in bytes."""
        return self.patiently(lambda: self.inner.size(key))

    def list(self, prefix: str = "") -> Iterator[Stored]:
        """The objects whose keys start with ``prefix``, sorted by key."""
        return iter(self.patiently(lambda: tuple(self.inner.list(prefix))))

    def put(self, key: str, data: Bytes | Iterable[Bytes], *, if_absent: bool = False) -> bool:
        """Keep ``data`` as ``key``."""
        if if_absent:
            return self._put_if_absent(key, b"".join(as_buffers(data)))
        if isinstance(data, bytes | bytearray | memoryview):
            return self.patiently(lambda: self.inner.put(key, data))
        write_through(self.writer(), key, as_buffers(data))
        return True

    def _put_if_absent(self, key: str, data: bytes) -> bool:
        doubtful = False

        def attempt() -> bool:
            nonlocal doubtful
            try:
                if self.inner.put(key, data, if_absent=True):
                    return True
                # An attempt whose answer was lost has put it: nobody else has these bytes, or all have.
                return doubtful and self.inner.get(key) == data
            except StoreUnavailable:
                doubtful = True
                raise
            except NotFound:  # put by another, and deleted since
                raise StoreUnavailable(f"{key} was deleted while it was put") from None

        return self.patiently(attempt)

    def writer(self) -> ObjectWriter:
        """Start an object whose key is known only at its end."""
        return _RetryWriter(self, self.inner.writer())

    def delete(self, key: str) -> None:
        """Remove an object."""
        self.patiently(lambda: self.inner.delete(key))

    def persist(self, prefix: str) -> None:
        """Return when what a listing of ``prefix`` shows survives a power cut."""
        self.patiently(lambda: self.inner.persist(prefix))

    def leftovers(self) -> Sequence[str]:
        """Names of unfinished objects whose writers are gone."""
        return self.patiently(self.inner.leftovers)

    def sweep(self) -> Sequence[str]:
        """Remove the leftovers, and return their names."""
        return self.patiently(self.inner.sweep)

    def close(self) -> None:
        """Release what it holds."""
        self.inner.close()


class _RetryWriter:
    """An object that is being written; its commit is repeated, since it replaces what is there."""

    def __init__(self, store: RetryStore, inner: ObjectWriter) -> None:
        self._store = store
        self._inner = inner

    def write(self, buffers: Sequence[Bytes]) -> None:
        """Append the buffers."""
        self._inner.write(buffers)

    def commit(self, key: str) -> None:
        """Make the object durable and visible as ``key``."""
        self._store.patiently(lambda: self._inner.commit(key))

    def abort(self) -> None:
        """Drop what was written."""
        self._inner.abort()
