"""A repository's config and its dedup domains: small sealed JSON objects, written once."""

import json
import secrets
import uuid
from dataclasses import asdict, dataclass
from typing import Any

from blake3 import blake3

from calotype.errors import InvalidInput, NotFound, StoreDamaged
from calotype.store.chunking import VERSIONS, Chunking
from calotype.store.digest import Domain, pack_name
from calotype.store.objects import ObjectStore, ReadableStore
from calotype.store.pack import MAX_CHUNK
from calotype.strict import read_json

CONFIG = "config"
DOMAINS = "domains/"
_FORMAT = "calotype repository"
_VERSION = 1
_LARGEST = 1 << 20  # bytes of an object


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a repository was created with."""

    id: str
    chunking: Chunking


def seal(content: dict[str, object]) -> bytes:
    """JSON in one line, and its BLAKE3 in the next."""
    line = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return line + b"\n" + blake3(line).hexdigest().encode() + b"\n"


def unseal(key: str, data: bytes) -> dict[str, Any]:
    """The inverse of :func:`seal`.

    Raises:
        StoreDamaged: these bytes were not sealed so.
    """
    line, _, rest = data.partition(b"\n")
    if rest != blake3(line).hexdigest().encode() + b"\n":
        raise StoreDamaged(f"object {key} does not match its checksum")
    try:
        content = read_json(line, limit=_LARGEST, what=f"object {key}")
    except InvalidInput as error:
        raise StoreDamaged(error.message) from None
    if not isinstance(content, dict):
        raise StoreDamaged(f"object {key} is not a JSON object")
    return content


def create(objects: ObjectStore, chunking: Chunking, domain: Domain | None = None) -> None:
    """Write the first domain (``default``, with a key of its own) and then the config, unless there."""
    if not _usable(chunking):
        raise InvalidInput("no repository can be cut like this")
    keep_domain(objects, domain or _fresh("default"))
    content: dict[str, object] = {
        "format": _FORMAT,
        "version": _VERSION,
        "id": str(uuid.uuid4()),
        "chunking": asdict(chunking),
    }
    objects.put(CONFIG, seal(content), if_absent=True)


def read(objects: ReadableStore) -> Parameters:
    """The repository's config.

    Raises:
        NotFound: this store holds no repository.
        InvalidInput: it was written by a newer version.
        StoreDamaged: its config is damaged.
    """
    try:
        content = unseal(CONFIG, objects.get(CONFIG))
    except NotFound:
        raise NotFound("there is no repository in this store") from None
    if content.get("format") != _FORMAT or content.get("version") != _VERSION:
        raise InvalidInput(
            f"this repository has format version {content.get('version')}; this program knows "
            f"version {_VERSION}",
            hint="use a newer version of Calotype",
        )
    try:
        raw = content["chunking"]
        chunking = Chunking(**{name: int(value) for name, value in raw.items()})
    except (AttributeError, KeyError, TypeError, ValueError):
        raise StoreDamaged("the repository's config names no chunking") from None
    if not _usable(chunking):
        raise StoreDamaged("the repository's config names an impossible chunking")
    return Parameters(str(content.get("id")), chunking)


def _usable(chunking: Chunking) -> bool:
    return (
        chunking.version in VERSIONS
        and 1 << 20 <= chunking.region <= 1 << 30
        and chunking.region % (1 << 20) == 0
        and 4096 <= chunking.file <= MAX_CHUNK
        and 4096 <= chunking.grid <= MAX_CHUNK
        and 4096 <= chunking.content * 4 <= MAX_CHUNK
        and all(n % 4096 == 0 for n in (chunking.file, chunking.grid))
    )


def add_domain(objects: ObjectStore, name: str) -> None:
    """Create a dedup domain with a key of its own, unless it is there."""
    keep_domain(objects, _fresh(name))


def keep_domain(objects: ObjectStore, domain: Domain) -> None:
    """Create a dedup domain with this key, unless one of that name is there."""
    objects.put(DOMAINS + domain.name, sealed_domain(domain), if_absent=True)


def sealed_domain(domain: Domain) -> bytes:
    """The object that holds a domain's key."""
    pack_name(domain.name)
    return seal({"name": domain.name, "key": domain.key.hex()})


def _fresh(name: str) -> Domain:
    return Domain(name, secrets.token_bytes(32))


def copy_domain(source: ReadableStore, objects: ObjectStore, name: str) -> None:
    """Give a store the key that ``source`` has for a domain, unless it has one of that name.

    Raises:
        NotFound: the source has no such domain.
        StoreDamaged: the source's object is damaged.
    """
    keep_domain(objects, domain(source, name))


def domain(objects: ReadableStore, name: str) -> Domain:
    """The dedup domain ``name``.

    Raises:
        NotFound: there is no such domain.
        StoreDamaged: its object is damaged.
    """
    key = DOMAINS + name
    content = unseal(key, objects.get(key))
    try:
        secret = bytes.fromhex(str(content["key"]))
    except (KeyError, ValueError):
        secret = b""
    if len(secret) != 32 or content.get("name") != name:
        raise StoreDamaged(f"object {key} holds no domain")
    return Domain(name, secret)
