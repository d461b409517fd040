"""What the parts of the catalogue have in common."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from sqlalchemy import Connection

from calotype.catalog.access import Access

Transaction = Callable[[], AbstractContextManager[Connection]]


class Part:
    """A part of the catalogue, for one caller; each method is one transaction."""

    def __init__(self, read: Transaction, write: Transaction, access: Access) -> None:
        """Use the database whose transactions ``read`` and ``write`` begin."""
        self._read = read
        self._write = write
        self._access = access
