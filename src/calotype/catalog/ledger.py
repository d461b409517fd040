"""The store's ledger in the catalogue's database (see :mod:`calotype.store.ledger` for what it must do).

Whoever writes takes a number first: that locks the ledger's row, so that writers have one order, which is
also the order of their numbers.
"""

import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

from sqlalchemy import Connection, delete, func, insert, select, update

from calotype.catalog.images import batches
from calotype.catalog.part import Transaction
from calotype.catalog.tables import ledger, ledger_operations, ledger_packs, ledger_roots
from calotype.store.ledger import Lapsed, PackState, another_prune, other_repository


class SqlLedger:
    """A ledger in SQL; a :class:`calotype.store.ledger.Ledger`."""

    def __init__(
        self, read: Transaction, write: Transaction, clock: Callable[[], float] = time.time
    ) -> None:
        """Use the database whose transactions ``read`` and ``write`` begin."""
        self._read = read
        self._write = write
        self._clock = clock

    @cached_property
    def id(self) -> str:
        """The ledger's own UUID, made when it is first asked for."""
        with self._read() as db:
            found = db.scalar(select(ledger.c.id))
        if found is None:
            with self._write() as db:
                found = db.scalar(select(ledger.c.id))
                if found is None:
                    found = str(uuid.uuid4())
                    db.execute(insert(ledger).values(id=found, repository=None, sequence=0))
        return str(found)

    def bind(self, repository: str) -> None:
        """Make this the ledger of the repository with that id."""
        mine = ledger.c.id == self.id
        with self._read() as db:
            bound = db.scalar(select(ledger.c.repository).where(mine))
        if bound is None:
            with self._write() as db:
                free = ledger.c.repository.is_(None)
                db.execute(update(ledger).where(mine, free).values(repository=repository))
                bound = db.scalar(select(ledger.c.repository).where(mine))
        if bound != repository:
            raise other_repository(repository)

    # -- operations

    def begin(self, lease: float, *, prune: bool = False) -> int:
        """Begin an operation."""
        number_of = ledger_operations.c.number
        with self._turn() as (db, number):
            if prune:
                self._expire(db, prunes=True)
                if db.scalar(select(number_of).where(ledger_operations.c.prune).limit(1)):
                    raise another_prune()
            until = self._clock() + lease
            db.execute(insert(ledger_operations).values(number=number, until=until, prune=prune))
            return number

    def renew(self, operation: int, lease: float) -> None:
        """Extend the lease."""
        mine = ledger_operations.c.number == operation
        with self._write() as db:
            until = self._clock() + lease
            if not db.execute(update(ledger_operations).where(mine).values(until=until)).rowcount:
                raise Lapsed

    def end(self, operation: int) -> None:
        """End an operation."""
        mine = ledger_operations.c.number == operation
        with self._read() as db:
            alive = db.scalar(select(ledger_operations.c.number).where(mine))
        if alive is not None:  # a commit ends it too
            with self._write() as db:
                db.execute(delete(ledger_operations).where(mine))

    def meet(self, operation: int, packs: Collection[str]) -> set[str]:
        """Reprieve what is condemned; return what must not be used."""
        del operation  # a zombie's reprieve only keeps a pack for longer
        with self._read() as db:
            states = _states(db, packs)
        if PackState.CONDEMNED in states.values():
            with self._turn() as (db, _number):
                _acquit(db, packs)
                states = _states(db, packs)
        return set(states)

    # -- roots

    def commit(self, operation: int, root: str, data: bytes) -> None:
        """Make a root live, and end the operation."""
        mine = ledger_operations.c.number == operation
        with self._turn() as (db, _number):
            if not db.execute(delete(ledger_operations).where(mine)).rowcount:
                raise Lapsed
            _put_root(db, root, data)

    def adopt(self, root: str, data: bytes) -> None:
        """Make an unknown root live."""
        with self._turn() as (db, _number):
            known = select(ledger_roots.c.index).where(ledger_roots.c.index == root)
            if db.scalar(known) is None:
                _put_root(db, root, data)

    def remove(self, root: str) -> None:
        """Make a root not live any more."""
        with self._turn() as (db, _number):
            _put_root(db, root, None)

    def root(self, root: str) -> bytes | None:
        """The bytes of a live root."""
        with self._read() as db:
            data = db.scalar(select(ledger_roots.c.data).where(ledger_roots.c.index == root))
        return None if data is None else bytes(data)

    def roots(self) -> Mapping[str, bool]:
        """All roots, and whether they are live."""
        live = ledger_roots.c.data.is_not(None)
        with self._read() as db:
            rows = db.execute(select(ledger_roots.c.index, live))
            return {index: bool(is_live) for index, is_live in rows}

    # -- packs

    def packs(self) -> Mapping[str, PackState]:
        """All packs that have a state."""
        with self._read() as db:
            rows = db.execute(select(ledger_packs.c.key, ledger_packs.c.state))
            return {key: PackState(state) for key, state in rows}

    def condemn(self, prune: int, packs: Collection[str]) -> None:
        """Condemn packs that have no state yet."""
        with self._turn() as (db, number):
            _require(db, prune)
            known = _states(db, packs)
            row = {"state": PackState.CONDEMNED, "number": number, "since": self._clock()}
            fresh = [{"key": key, **row} for key in packs if key not in known]
            if fresh:
                db.execute(insert(ledger_packs), fresh)

    def reprieve(self, prune: int, packs: Collection[str]) -> None:
        """Take back condemnations."""
        with self._turn() as (db, _number):
            _require(db, prune)
            _acquit(db, packs)

    def ripe(self, grace: float) -> Mapping[str, int]:
        """The packs that may be deleted if no live root needs them."""
        packs = ledger_packs.c
        with self._turn() as (db, _number):
            self._expire(db, prunes=False)
            lives = ledger_operations.c.prune.is_(False)
            oldest = db.scalar(select(func.min(ledger_operations.c.number)).where(lives))
            query = select(packs.key, packs.number).where(
                packs.state == PackState.CONDEMNED, packs.since <= self._clock() - grace
            )
            if oldest is not None:
                query = query.where(packs.number < oldest)
            return {row.key: row.number for row in db.execute(query)}

    def doom(self, prune: int, ripe: Mapping[str, int]) -> set[str]:
        """Mark packs as being deleted."""
        packs = ledger_packs.c
        with self._turn() as (db, _number):
            _require(db, prune)
            condemned = packs.state == PackState.CONDEMNED
            now = db.execute(select(packs.key, packs.number).where(condemned))
            doomed = {key for key, number in now if ripe.get(key) == number}
            _change(db, doomed, PackState.CONDEMNED, PackState.DELETING)
            return doomed

    def deleted(self, packs: Collection[str]) -> None:
        """Record that packs are gone."""
        with self._turn() as (db, _number):
            _change(db, packs, PackState.DELETING, PackState.DELETED)

    # -- transactions

    @contextmanager
    def _turn(self) -> Iterator[tuple[Connection, int]]:
        """A transaction that waits for all earlier ones, and its number."""
        mine = ledger.c.id == self.id
        with self._write() as db:
            number = db.execute(
                update(ledger)
                .where(mine)
                .values(sequence=ledger.c.sequence + 1)
                .returning(ledger.c.sequence)
            ).scalar_one()
            yield db, number

    def _expire(self, db: Connection, *, prunes: bool) -> None:
        operations = ledger_operations.c
        over = operations.until <= self._clock()
        db.execute(delete(ledger_operations).where(operations.prune.is_(prunes), over))


def _require(db: Connection, operation: int) -> None:
    mine = ledger_operations.c.number == operation
    if db.scalar(select(ledger_operations.c.number).where(mine)) is None:
        raise Lapsed


def _put_root(db: Connection, root: str, data: bytes | None) -> None:
    db.execute(delete(ledger_roots).where(ledger_roots.c.index == root))
    db.execute(insert(ledger_roots).values(index=root, data=data))


def _states(db: Connection, packs: Collection[str]) -> dict[str, PackState]:
    found = {}
    for some in batches(packs):
        query = select(ledger_packs.c.key, ledger_packs.c.state)
        for key, state in db.execute(query.where(ledger_packs.c.key.in_(some))):
            found[key] = PackState(state)
    return found


def _acquit(db: Connection, packs: Collection[str]) -> None:
    for some in batches(packs):
        condemned = ledger_packs.c.state == PackState.CONDEMNED
        db.execute(delete(ledger_packs).where(ledger_packs.c.key.in_(some), condemned))


def _change(db: Connection, packs: Collection[str], old: PackState, new: PackState) -> None:
    for some in batches(packs):
        which = (ledger_packs.c.key.in_(some), ledger_packs.c.state == old)
        db.execute(update(ledger_packs).where(*which).values(state=new))
