"""The signed metadata of a public tree: what The Update Framework calls root, targets, snapshot, timestamp.

Root names the keys of the others and itself; targets lists the documents by length and SHA-256; snapshot says
which targets are of one state, timestamp which snapshot is the newest. A reader holds them against each
other, so nobody without keys can show an older state, a mixture of two, or one that ended.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final, Literal

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    T,
    TargetFile,
    Targets,
    Timestamp,
)

from calotype.errors import InvalidInput, Untrusted
from calotype.strict import canonical, require_shallow

Role = Literal["root", "targets", "snapshot", "timestamp"]
ROLES: Final[tuple[Role, ...]] = ("root", "targets", "snapshot", "timestamp")

METADATA = "metadata/"
TARGETS = "targets/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lifetimes:
    """How long each role's signature is believed."""

    root: timedelta = timedelta(days=365)
    targets: timedelta = timedelta(days=30)
    snapshot: timedelta = timedelta(days=30)
    timestamp: timedelta = timedelta(days=2)


def make_root(
    keys: Mapping[Role, Sequence[Key]], *, threshold: int, version: int, lifetime: timedelta
) -> Root:
    """A root that gives each role these keys; ``threshold`` is how many must sign a root."""
    root = Root(version=version, expires=_expiry(lifetime), consistent_snapshot=True)
    for role in ROLES:
        for key in keys[role]:
            root.add_key(key, role)
    root.roles["root"].threshold = threshold
    return root


def make_targets(documents: Mapping[str, bytes], *, version: int, lifetime: timedelta) -> Targets:
    """The list of these documents by their names."""
    listed = {
        name: TargetFile.from_data(name, data, ["sha256"]) for name, data in documents.items()
    }
    return Targets(version=version, expires=_expiry(lifetime), targets=listed)


def make_snapshot(targets: int, data: bytes, *, version: int, lifetime: timedelta) -> Snapshot:
    """The state that has this version of the targets."""
    meta = {"targets.json": MetaFile.from_data(targets, data, ["sha256"])}
    return Snapshot(version=version, expires=_expiry(lifetime), meta=meta)


def make_timestamp(snapshot: int, data: bytes, *, version: int, lifetime: timedelta) -> Timestamp:
    """That this snapshot is the newest."""
    meta = MetaFile.from_data(snapshot, data, ["sha256"])
    return Timestamp(version=version, expires=_expiry(lifetime), snapshot_meta=meta)


def signed_by(content: T, signers: Sequence[Signer]) -> bytes:
    """The metadata with the signatures of all these keys."""
    metadata = Metadata(content)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def where_of(name: str, data: bytes) -> str:
    """The key of a target's object: names hold the SHA-256, so that no state overwrites another's."""
    directory, slash, base = name.rpartition("/")
    return f"{TARGETS}{directory}{slash}{sha256(data).hexdigest()}.{base}"


def read_root(data: bytes, what: str = "the root") -> Root:
    """A root that the keys which it names have signed.

    Raises:
        Untrusted: it is none, or they have not.
    """
    try:
        require_shallow(data, what)
        metadata = Metadata[Root].from_bytes(data)
        if not isinstance(metadata.signed, Root):
            raise Untrusted(f"{what} is other metadata than a root")
        _require_ids(metadata.signed, what)
        metadata.signed.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, InvalidInput, ValueError) as error:
        raise Untrusted(
            f"{what} does not hold: {error}",
            hint="ask the publisher for the address and the fingerprint of the tree",
        ) from None
    return metadata.signed


def _require_ids(root: Root, what: str) -> None:
    """Refuse root keys under other ids than their own: nobody else does, and fingerprints are of the ids."""
    for key_id in root.roles["root"].keyids:
        key = root.get_key(key_id)
        content = {"keytype": key.keytype, "scheme": key.scheme, "keyval": key.keyval}
        if sha256(canonical(content)).hexdigest() != key_id:
            raise InvalidInput(
                f"{what} has a root key under {key_id[:80]!r}, not the id of its key"
            )


def fingerprint(root: Root) -> str:
    """What people compare: SHA-256 (hex) over the ids of the root's keys and how many of them must sign.

    It stays when a root is renewed, and changes with the keys.
    """
    role = root.roles["root"]
    content = {"keyids": sorted(role.keyids), "threshold": role.threshold}
    return sha256(canonical(content)).hexdigest()


def _expiry(lifetime: timedelta) -> datetime:
    return (datetime.now(UTC) + lifetime).replace(microsecond=0)
