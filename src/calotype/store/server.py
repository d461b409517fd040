"""Stores on servers, put together: the connection, patience, a look at what the server can do, the cache."""

from pathlib import Path

from calotype.errors import InvalidInput
from calotype.store import azure, s3
from calotype.store.cache import CacheStore
from calotype.store.location import Location
from calotype.store.objects import ObjectStore
from calotype.store.probe import ensure
from calotype.store.remote import Connection, RemoteStore, Timeouts
from calotype.store.retry import Patience, RetryStore

_ASIDE = ".calotype"  # below it the store keeps what is its own
_AT_START = Patience(attempts=4, total=30, longest=4)  # somebody waits and sees nothing yet


def open_server(
    location: Location,
    *,
    cache: Path | None,
    cache_bytes: int,
    timeouts: Timeouts | None = None,
    patience: Patience | None = None,
) -> ObjectStore:
    """The store at ``location``, ready for use.

    Raises:
        InvalidInput: the server, its bucket or the credentials cannot be used.
        StoreUnavailable: the server does not answer.
    """
    times = timeouts or Timeouts()
    spool = None
    if cache is not None:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        spool = cache
    ensure(
        RetryStore(RemoteStore(connect(location, times, _ASIDE), spool=spool), _AT_START),
        location.name,
    )
    store = RetryStore(RemoteStore(connect(location, times), spool=spool), patience)
    if cache is None:
        return store
    name = f"{location.name} {location.options.get('endpoint', '')}"
    return CacheStore(store, cache, cache_bytes, name=name)


def connect(location: Location, timeouts: Timeouts, below: str = "") -> Connection:
    """A connection to the server; with ``below`` to a directory of the place."""
    if location.scheme == "s3":
        return s3.connect(location, timeouts, below)
    if location.scheme == "az":
        return azure.connect(location, timeouts, below)
    raise InvalidInput(f"{location.scheme}: is no server")
