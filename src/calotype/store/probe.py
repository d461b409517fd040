"""What a server can do, found out by doing it: some accept a condition or a range and ignore it."""

import secrets
import threading
import time

from calotype.errors import InvalidInput, NotFound, StoreDamaged
from calotype.store.objects import ObjectStore
from calotype.store.parameters import seal, unseal

_DONE = "probed"  # written when a server passed, so that the next start does not ask again
_VERSION = 1
_VALID = 30 * 24 * 3600  # seconds; servers are changed and upgraded
_RACERS = 4


def ensure(store: ObjectStore, name: str) -> None:
    """Probe the server, unless it passed lately. ``store`` holds nothing but what this module puts there.

    Raises:
        InvalidInput: it cannot keep a repository; the message says why.
    """
    if _passed(store):
        return
    probe(store, name)
    store.put(_DONE, seal({"version": _VERSION, "time": int(time.time())}))


def _passed(store: ObjectStore) -> bool:
    try:
        mark = unseal(_DONE, store.get(_DONE))
        return bool(mark["version"] == _VERSION and 0 <= time.time() - mark["time"] < _VALID)
    except (NotFound, StoreDamaged, KeyError, TypeError):
        return False


def probe(store: ObjectStore, name: str) -> None:
    """Put, put again on a condition, race, read a range, list, delete: each must do what it says.

    Raises:
        InvalidInput: one does not.
    """
    key = f"probe/{secrets.token_hex(8)}"
    first = secrets.token_bytes(64)
    try:
        if not _put(store, key, first, name):
            raise _unfit(name, "an object that was never put is there")
        if _put(store, key, first[::-1], name) or store.get(key) != first:
            raise _unfit(name, "it ignores that an object should be created only if it is absent")
        if store.get_range(key, 5, 7) != first[5:12]:
            raise _unfit(name, "it ignores ranges")
        if [s.size for s in store.list(key)] != [len(first)]:
            raise _unfit(name, "its listing does not show what was just put")
        _race(store, f"{key}-race", name)
        store.delete(key)
        if _there(store, key) or any(s.key == key for s in store.list("probe/")):
            raise _unfit(name, "it keeps what was deleted")
    finally:
        store.delete(key)
        store.delete(f"{key}-race")


def _race(store: ObjectStore, key: str, name: str) -> None:
    ready = threading.Barrier(_RACERS)
    won: list[bytes] = []
    failed: list[Exception] = []

    def put(data: bytes) -> None:
        try:
            ready.wait()
            if store.put(key, data, if_absent=True):
                won.append(data)
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that asked
            failed.append(error)

    racers = [threading.Thread(target=put, args=(b"%d" % n,)) for n in range(_RACERS)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    if failed:
        raise failed[0]
    if won != [store.get(key)]:
        raise _unfit(name, "of several that create one object at once, more than one succeeds")


def _put(store: ObjectStore, key: str, data: bytes, name: str) -> bool:
    try:
        return store.put(key, data, if_absent=True)
    except NotFound:
        raise _unfit(name, "it does not take objects there") from None


def _there(store: ObjectStore, key: str) -> bool:
    try:
        store.size(key)
    except NotFound:
        return False
    return True


def _unfit(name: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"{name}: this server cannot keep a repository: {why}",
        hint="Calotype needs S3 or Azure Blob with conditional creation, ranges and current listings",
    )
