"""Small objects made whole again: config, domains, roots, boot profiles and the ledger's binding.

An object that differs in one bit from what it was is its own second copy: it is the only one near that
matches its checksum. Others come from a second store, when it can be shown that they are the same.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress

from calotype.errors import CalotypeError, InvalidInput, NotFound, StoreDamaged
from calotype.store import parameters, profile
from calotype.store.digest import Domain
from calotype.store.index import PREFIX as INDEXES
from calotype.store.index import root_id
from calotype.store.objects import ObjectStore, ReadableStore
from calotype.store.pack import PREFIX as PACKS
from calotype.store.pack import load
from calotype.store.roots import BINDING
from calotype.store.scan import read as read_frames
from calotype.store.scan import rotten, stretches, verified

_SMALL = 8 << 10  # bytes of an object in which one flipped bit is looked for


def mend_parameters(
    objects: ObjectStore, source: ReadableStore | None = None, *, repository: str | None = None
) -> tuple[str, ...]:
    """Make whole what a repository is opened with: config, domains, ledger; the keys that now are.

    A config that needs the ``source`` is written with the id ``repository``, or else with the source's id.
    A domain is taken from the source only when its key fits what this store holds.
    """
    done = []
    if _damaged(lambda: parameters.read(objects)) and _config(objects, source, repository):
        done.append(parameters.CONFIG)
    stores = [objects] if source is None else [objects, source]
    keys = {stored.key for store in stores for stored in store.list(parameters.DOMAINS)}
    done += [key for key in sorted(keys) if _domain(objects, source, key)]
    data = content(objects, BINDING)
    if data is not None and not _sealed(BINDING, data) and mend_object(objects, None, BINDING):
        done.append(BINDING)
    return tuple(done)


def mend_object(objects: ObjectStore, source: ReadableStore | None, key: str) -> bool:
    """Make a root, a boot profile or a sealed object whole again; whether it is.

    A boot profile that nobody has is removed: it can be recorded again.
    """
    if key.startswith(INDEXES):
        index = key.removeprefix(INDEXES)
        return _replace(objects, source, key, lambda data: root_id(data) == index)
    if key.startswith(profile.PREFIX):
        if not _replace(objects, source, key, _is_profile):
            objects.delete(key)
        return True
    return _replace(objects, None, key, lambda data: _sealed(key, data))


def _replace(
    objects: ObjectStore, source: ReadableStore | None, key: str, right: Callable[[bytes], bool]
) -> bool:
    for data in (*one_bit(content(objects, key)), content(source, key)):
        if data is not None and right(data):
            objects.put(key, data)
            return True
    return False


def content(objects: ReadableStore | None, key: str) -> bytes | None:
    """An object, or None where there is none or it cannot be read."""
    if objects is None:
        return None
    try:
        return objects.get(key)
    except (NotFound, StoreDamaged):
        return None
    except OSError as error:
        rotten(error)
        return None


def one_bit(data: bytes | None) -> Iterator[bytes]:
    """A small object itself, and all that differ from it in one bit."""
    if data is None:
        return
    yield data
    for bit in range(len(data) * 8 if len(data) <= _SMALL else 0):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def _damaged(read: Callable[[], object]) -> bool:
    try:
        read()
    except (NotFound, StoreDamaged):
        return True
    except OSError as error:
        rotten(error)
        return True
    return False


def _sealed(key: str, data: bytes) -> bool:
    with suppress(StoreDamaged):
        parameters.unseal(key, data)
        return True
    return False


def _is_profile(data: bytes) -> bool:
    with suppress(StoreDamaged):
        profile.decode(data, 1 << 56)
        return True
    return False


def _config(objects: ObjectStore, source: ReadableStore | None, repository: str | None) -> bool:
    key = parameters.CONFIG
    if _replace(objects, None, key, lambda data: _sealed(key, data)):
        return True
    data = content(source, key)
    if data is None or source is None or _damaged(lambda: parameters.read(source)):
        return False
    fields = parameters.unseal(key, data)
    objects.put(key, parameters.seal(fields | {"id": repository or fields["id"]}))
    return True


def _domain(objects: ObjectStore, source: ReadableStore | None, key: str) -> bool:
    """Whether a domain that was damaged or missing is whole now."""
    name = key.removeprefix(parameters.DOMAINS)
    if not _damaged(lambda: parameters.domain(objects, name)):
        return False
    if _replace(objects, None, key, lambda data: _sealed(key, data)):
        return not _damaged(lambda: parameters.domain(objects, name))
    data = content(source, key)
    if data is None or source is None or _damaged(lambda: parameters.domain(source, name)):
        return False
    fits = _fits(objects, parameters.domain(source, name))
    # Where no pack can tell, a domain that is there but damaged has nothing to lose, one that is not there
    # was never here.
    if fits or (fits is None and any(s.key == key for s in objects.list(key))):
        objects.put(key, data)
        return True
    return False


def _fits(objects: ReadableStore, domain: Domain) -> bool | None:
    """Whether this key verifies a chunk of the domain's packs; None when there is none to try."""
    for stored in objects.list(PACKS):
        with suppress(NotFound, StoreDamaged, InvalidInput, OSError):
            pack = load(objects, stored.key, stored.size)
            if pack.domain != domain.name:
                continue
            for number, frame in read_frames(objects, next(stretches(pack))):
                try:
                    verified(pack, number, frame, None)
                except StoreDamaged:
                    continue
                try:
                    verified(pack, number, frame, domain)
                except CalotypeError:
                    return False
                return True
    return None
