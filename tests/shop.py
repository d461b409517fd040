"""Somebody who signs public trees, rightly or not, without an installation behind it."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from calotype.public import metadata
from calotype.public.metadata import METADATA, ROLES, Role

DAY = timedelta(days=1)
ENDED = timedelta(days=-1)


class Shop:
    """Keys for each role, and a directory that holds what was signed with them."""

    def __init__(self, tree: Path, *, root_keys: int = 1, threshold: int = 1) -> None:
        self.tree = tree
        self.threshold = threshold
        self.keys: dict[Role, list[CryptoSigner]] = {role: [fresh()] for role in ROLES}
        self.keys["root"] = [fresh() for _ in range(root_keys)]
        self.root = 0
        self.sign_root()

    def put(self, key: str, data: bytes) -> bytes:
        """Write a file of the tree."""
        path = self.tree / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return data

    def sign_root(
        self,
        signers: Sequence[CryptoSigner] | None = None,
        *,
        version: int | None = None,
        at: int | None = None,
        life: timedelta = DAY,
    ) -> bytes:
        """A root with the present keys, signed by these (else the present) root keys, at its place."""
        self.root += 1
        number = self.root if version is None else version
        public = {role: [key.public_key for key in keys] for role, keys in self.keys.items()}
        root = metadata.make_root(public, threshold=self.threshold, version=number, lifetime=life)
        data = metadata.signed_by(root, list(signers or self.keys["root"]))
        self.put(f"{METADATA}root.json", data)
        return self.put(f"{METADATA}{at or self.root}.root.json", data)

    def publish(
        self,
        documents: Mapping[str, bytes] | None = None,
        *,
        number: int = 1,
        targets: int | None = None,
        snapshot: int | None = None,
        life: Mapping[Role, timedelta] | None = None,
        keys: Mapping[Role, list[CryptoSigner]] | None = None,
    ) -> None:
        """Sign documents as state ``number``; single roles may have other numbers, lives and keys."""
        documents = documents if documents is not None else {"packs.json": b"{}"}
        lives = dict.fromkeys(ROLES, DAY) | dict(life or {})
        signers = self.keys | dict(keys or {})
        for name, data in documents.items():
            self.put(metadata.where_of(name, data), data)
        of_targets = targets if targets is not None else number
        listed = metadata.signed_by(
            metadata.make_targets(documents, version=of_targets, lifetime=lives["targets"]),
            signers["targets"],
        )
        self.put(f"{METADATA}{of_targets}.targets.json", listed)
        of_snapshot = snapshot if snapshot is not None else number
        state = metadata.signed_by(
            metadata.make_snapshot(
                of_targets, listed, version=of_snapshot, lifetime=lives["snapshot"]
            ),
            signers["snapshot"],
        )
        self.put(f"{METADATA}{of_snapshot}.snapshot.json", state)
        newest = metadata.signed_by(
            metadata.make_timestamp(
                of_snapshot, state, version=number, lifetime=lives["timestamp"]
            ),
            signers["timestamp"],
        )
        self.put(f"{METADATA}timestamp.json", newest)


def fresh() -> CryptoSigner:
    """A new Ed25519 key."""
    return CryptoSigner.generate_ed25519()
