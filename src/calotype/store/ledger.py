"""The ledger: which roots are live, who is at work on a store, and which packs are on their way out.

The store's objects are immutable; what changes is here, in transactions. Removing a pack that somebody
is about to rely on would lose an image, and four rules forbid it:

1. *Reprieve.* An ingest that finds a chunk in a condemned pack takes the condemnation back
   (:meth:`Ledger.meet`).
2. *Wait for the older.* A pack is deleted only when every operation that began before its condemnation has
   ended (:meth:`Ledger.ripe`): such an operation may have found the pack before it was condemned.
3. *Deleting is for ever.* A pack that is being deleted is marked so first (:meth:`Ledger.doom`), and no
   ingest relies on it any more.
4. *Fence.* A root is committed only by an operation that nobody has ended (:meth:`Ledger.commit`).

A lease that has run out does not end its operation: whoever waits for it does, in the ledger. So no rule
depends on clocks that agree; a clock that is wrong only makes somebody wait, or do work again.
"""

import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from calotype.errors import Conflict


class Lapsed(Exception):
    """The operation was ended by another one, because its lease had run out."""


class PackState(StrEnum):
    """Where a pack stands that is not simply in use."""

    CONDEMNED = "condemned"  # no live root needed it; an ingest may still reprieve it
    DELETING = "deleting"  # it goes; nobody may rely on it
    DELETED = "deleted"  # it is gone, and its id never returns


class Ledger(Protocol):
    """The mutable state of one store. Each method is one transaction; safe for threads and processes.

    Operations are numbered in the order in which they begin, by the counter that also numbers
    condemnations. Packs are named by their keys, roots by their Index ids.
    """

    @property
    def id(self) -> str:
        """The ledger's own UUID."""
        ...

    def bind(self, repository: str) -> None:
        """Make this the ledger of the repository with that id.

        Raises:
            Conflict: it is another repository's.
        """
        ...

    def begin(self, lease: float, *, prune: bool = False) -> int:
        """Begin an operation whose lease is ``lease`` seconds; its number.

        Raises:
            Conflict: ``prune`` is set, and another prune is at work.
        """
        ...

    def renew(self, operation: int, lease: float) -> None:
        """Extend the lease to ``lease`` seconds from now.

        Raises:
            Lapsed: the operation has been ended.
        """
        ...

    def end(self, operation: int) -> None:
        """End an operation; harmless when it has ended."""
        ...

    def meet(self, operation: int, packs: Collection[str]) -> set[str]:
        """Reprieve those of these packs that are condemned (rule 1).

        Returns:
            The packs that are being deleted or are gone: they must not be used (rule 3).
        """
        ...

    def commit(self, operation: int, root: str, data: bytes) -> None:
        """Make a root live, and end the operation. ``data`` are the root's bytes.

        Raises:
            Lapsed: the operation has been ended; nothing is changed (rule 4).
        """
        ...

    def adopt(self, root: str, data: bytes) -> None:
        """Make a root live that was written without this ledger, unless the ledger knows it."""
        ...

    def remove(self, root: str) -> None:
        """Make a root not live any more, known or not."""
        ...

    def root(self, root: str) -> bytes | None:
        """The bytes of a live root; None when it is not live or not known."""
        ...

    def roots(self) -> Mapping[str, bool]:
        """All roots that were ever committed or removed, and whether they are live."""
        ...

    def packs(self) -> Mapping[str, PackState]:
        """All packs that are condemned, being deleted, or deleted."""
        ...

    def condemn(self, prune: int, packs: Collection[str]) -> None:
        """Condemn those of these packs that have no state yet.

        Raises:
            Lapsed: the prune has been ended.
        """
        ...

    def reprieve(self, prune: int, packs: Collection[str]) -> None:
        """Take back the condemnation of those of these packs that are condemned.

        Raises:
            Lapsed: the prune has been ended.
        """
        ...

    def ripe(self, grace: float) -> Mapping[str, int]:
        """The packs that may be deleted if no live root needs them, and the numbers of their condemnations.

        They were condemned at least ``grace`` seconds ago, and every operation that began before has
        ended (rule 2). Operations whose leases have run out are ended here.
        """
        ...

    def doom(self, prune: int, ripe: Mapping[str, int]) -> set[str]:
        """Mark packs as being deleted, for ever (rule 3).

        Returns:
            Those of ``ripe`` whose condemnation is still the same.

        Raises:
            Lapsed: the prune has been ended.
        """
        ...

    def deleted(self, packs: Collection[str]) -> None:
        """Record that packs that were being deleted are gone."""
        ...


@dataclass(slots=True)
class _Operation:
    until: float
    prune: bool


@dataclass(slots=True)
class _Pack:
    state: PackState
    sequence: int
    since: float


class MemoryLedger:
    """A ledger in memory, for tests and for stores that need not stay."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._id = str(uuid.uuid4())
        self._clock = clock
        self._lock = threading.RLock()
        self._sequence = 0
        self._repository: str | None = None
        self._operations: dict[int, _Operation] = {}
        self._packs: dict[str, _Pack] = {}
        self._roots: dict[str, bytes | None] = {}

    @property
    def id(self) -> str:
        """The ledger's own UUID."""
        return self._id

    def bind(self, repository: str) -> None:
        """Make this the ledger of the repository with that id."""
        with self._lock:
            if self._repository not in {None, repository}:
                raise other_repository(repository)
            self._repository = repository

    def begin(self, lease: float, *, prune: bool = False) -> int:
        """Begin an operation."""
        with self._lock:
            if prune:
                self._expire(prunes=True)
                if any(o.prune for o in self._operations.values()):
                    raise another_prune()
            number = self._next()
            self._operations[number] = _Operation(self._clock() + lease, prune)
            return number

    def renew(self, operation: int, lease: float) -> None:
        """Extend the lease."""
        with self._lock:
            self._holds(operation)
            self._operations[operation].until = self._clock() + lease

    def end(self, operation: int) -> None:
        """End an operation."""
        with self._lock:
            self._operations.pop(operation, None)

    def meet(self, operation: int, packs: Collection[str]) -> set[str]:
        """Reprieve what is condemned; return what must not be used."""
        del operation  # a zombie's reprieve only keeps a pack for longer
        with self._lock:
            self._acquit(packs)
            return {key for key in packs if key in self._packs}

    def commit(self, operation: int, root: str, data: bytes) -> None:
        """Make a root live, and end the operation."""
        with self._lock:
            self._holds(operation)
            self._roots[root] = data
            del self._operations[operation]

    def adopt(self, root: str, data: bytes) -> None:
        """Make an unknown root live."""
        with self._lock:
            self._roots.setdefault(root, data)

    def remove(self, root: str) -> None:
        """Make a root not live any more."""
        with self._lock:
            self._roots[root] = None

    def root(self, root: str) -> bytes | None:
        """The bytes of a live root."""
        with self._lock:
            return self._roots.get(root)

    def roots(self) -> Mapping[str, bool]:
        """All roots, and whether they are live."""
        with self._lock:
            return {root: data is not None for root, data in self._roots.items()}

    def packs(self) -> Mapping[str, PackState]:
        """All packs that have a state."""
        with self._lock:
            return {key: pack.state for key, pack in self._packs.items()}

    def condemn(self, prune: int, packs: Collection[str]) -> None:
        """Condemn packs that have no state yet."""
        with self._lock:
            self._holds(prune)
            number = self._next()
            for key in packs:
                condemned = _Pack(PackState.CONDEMNED, number, self._clock())
                self._packs.setdefault(key, condemned)

    def reprieve(self, prune: int, packs: Collection[str]) -> None:
        """Take back condemnations."""
        with self._lock:
            self._holds(prune)
            self._acquit(packs)

    def ripe(self, grace: float) -> Mapping[str, int]:
        """The packs that may be deleted if no live root needs them."""
        with self._lock:
            self._expire(prunes=False)
            oldest = min((n for n, o in self._operations.items() if not o.prune), default=None)
            return {
                key: pack.sequence
                for key, pack in self._packs.items()
                if pack.state is PackState.CONDEMNED
                and pack.since <= self._clock() - grace
                and (oldest is None or oldest > pack.sequence)
            }

    def doom(self, prune: int, ripe: Mapping[str, int]) -> set[str]:
        """Mark packs as being deleted."""
        with self._lock:
            self._holds(prune)
            doomed = set()
            for key, number in ripe.items():
                pack = self._packs.get(key)
                if pack and pack.state is PackState.CONDEMNED and pack.sequence == number:
                    pack.state = PackState.DELETING
                    doomed.add(key)
            return doomed

    def deleted(self, packs: Collection[str]) -> None:
        """Record that packs are gone."""
        with self._lock:
            for key in packs:
                if key in self._packs and self._packs[key].state is PackState.DELETING:
                    self._packs[key].state = PackState.DELETED

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _holds(self, operation: int) -> None:
        if operation not in self._operations:
            raise Lapsed

    def _expire(self, *, prunes: bool) -> None:
        now = self._clock()
        for number, operation in list(self._operations.items()):
            if operation.prune is prunes and operation.until <= now:
                del self._operations[number]

    def _acquit(self, packs: Collection[str]) -> None:
        for key in packs:
            if key in self._packs and self._packs[key].state is PackState.CONDEMNED:
                del self._packs[key]


def other_repository(repository: str) -> Conflict:
    """The error for a ledger that is asked about two stores."""
    return Conflict(
        f"this installation's catalogue belongs to another store, not to {repository}",
        hint="use the store that it was made with, or another installation for this one",
    )


def another_prune() -> Conflict:
    """The error for a second prune at once."""
    return Conflict(
        "another prune or repair is at work on this store",
        hint="wait until it has ended; one that was killed counts as ended after two minutes",
    )
