"""How long work reports itself: one protocol, and the silent implementation."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Receives phases of work and how far each one is."""

    def phase(
        self, label: str, total: int | None = None, *, unit: str = "B"
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Open a phase of ``total`` units (``None``: unknown); call the result with units done."""
        ...


class Silent:
    """Reports nothing."""

    @contextmanager
    def phase(
        self, label: str, total: int | None = None, *, unit: str = "B"
    ) -> Iterator[Callable[[int], None]]:
        """Open a phase that nobody sees."""
        del label, total, unit
        yield lambda _n: None


SILENT: Progress = Silent()
