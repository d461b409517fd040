"""Operations of a process: leases that are renewed in the background for as long as the work takes."""

import logging
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from calotype.errors import CalotypeError
from calotype.store.ledger import Lapsed, Ledger

log = logging.getLogger("calotype.store")

SECONDS = 120.0  # how long an operation outlives its process
_RENEWALS = 4  # in each lease


class Lease:
    """An operation of this process in a ledger; without a ledger, one that nobody knows of."""

    def __init__(self, ledger: Ledger | None, operation: int, seconds: float = SECONDS) -> None:
        self.operation = operation
        self._seconds = seconds
        self._ledger = ledger

    def meet(self, packs: Collection[str]) -> set[str]:
        """Announce that this operation relies on packs; the keys of those that it must not use."""
        return self._ledger.meet(self.operation, packs) if self._ledger is not None else set()

    def hold(self) -> None:
        """Make sure that nobody has ended this operation.

        Raises:
            Lapsed: the lease ran out, and another operation has gone on without this one.
        """
        if self._ledger is not None:
            self._ledger.renew(self.operation, self._seconds)

    def commit(self, root: str, data: bytes) -> None:
        """Make a root live.

        Raises:
            Lapsed: the lease ran out, and another operation has gone on without this one.
        """
        if self._ledger is not None:
            self._ledger.commit(self.operation, root, data)


@contextmanager
def leased(
    ledger: Ledger | None, *, prune: bool = False, seconds: float = SECONDS
) -> Iterator[Lease]:
    """Hold an operation, renewed by a thread; it is ended at the latest when the block ends."""
    if ledger is None:
        yield Lease(None, 0)
        return
    operation = ledger.begin(seconds, prune=prune)
    stop = threading.Event()
    renewals = threading.Thread(
        target=_renew,
        args=(lambda: ledger.renew(operation, seconds), stop, seconds / _RENEWALS),
        name="calotype-lease",
        daemon=True,
    )
    renewals.start()
    try:
        yield Lease(ledger, operation, seconds)
    finally:
        stop.set()
        renewals.join()
        ledger.end(operation)


def _renew(renew: Callable[[], None], stop: threading.Event, interval: float) -> None:
    while not stop.wait(interval):
        try:
            renew()
        except Lapsed:
            return  # the commit will say so
        except CalotypeError as error:
            log.warning("the lease of this operation was not renewed: %s", error.message)
