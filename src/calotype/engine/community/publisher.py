"""The keys that sign what this installation shows to others, and the roots that name them.

``keys/community/`` holds one Ed25519 key for each role (mode 0600), every root that ever was signed, and the
numbers of the metadata that was. The root's keys stand in ``root/``: whoever takes them away (to a medium in
a safe) needs them again once a year, and when another key was lost.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import Root

from calotype.config import Home
from calotype.disk.durable import fsync_directory, write_private
from calotype.engine.operation import lock
from calotype.errors import Conflict, InvalidInput, NotFound
from calotype.public import metadata
from calotype.public.metadata import ROLES, Lifetimes, Role

_MAX_PEM = 1 << 14
_LOCK = "community-keys"


@dataclass(frozen=True, slots=True)
class Rotated:
    """A new root, and what it changed."""

    version: int
    fingerprint: str
    renewed: tuple[Role, ...]  # roles with a new key
    root_keys: tuple[Path, ...]  # private; to be kept elsewhere


class Publisher:
    """The signing side of one installation."""

    def __init__(self, home: Home, lifetimes: Lifetimes | None = None) -> None:
        self._home = home
        self._directory = home.keys / "community"
        self.root_directory = self._directory / "root"
        self.lifetimes = lifetimes or Lifetimes()

    @property
    def exists(self) -> bool:
        """Whether there is a root already."""
        return bool(self.roots)

    @cached_property
    def roots(self) -> Sequence[bytes]:
        """Every root that was signed, the first one first."""
        found: list[bytes] = []
        while (path := self._root_file(len(found) + 1)).exists():
            found.append(path.read_bytes())
        return found

    @property
    def root(self) -> Root:
        """The root that holds now.

        Raises:
            NotFound: nothing was ever published.
        """
        if not self.roots:
            raise NotFound(
                "this installation has no keys to publish with",
                hint="calotype community export TARGET makes them",
            )
        return metadata.read_root(self.roots[-1], "the own root")

    @property
    def fingerprint(self) -> str:
        """What others pin."""
        return metadata.fingerprint(self.root)

    @property
    def root_keys_here(self) -> bool:
        """Whether private keys of the root are on this machine."""
        return any(self.root_directory.glob("*.pem"))

    def create(self, *, root_keys: int = 1, threshold: int = 1) -> None:
        """Make keys and the first root, unless there are; ``threshold`` root keys must sign a root.

        Raises:
            InvalidInput: there are fewer keys than must sign.
        """
        self._home.prepare()
        with lock(self._home, _LOCK):
            self.__dict__.pop("roots", None)
            if not self.exists:
                self._rotate(ROLES, root_keys, threshold, ())

    def rotate(
        self,
        roles: Iterable[Role] = (),
        *,
        root_keys: int | None = None,
        threshold: int | None = None,
        extra: Sequence[Path] = (),
    ) -> Rotated:
        """Sign a new root: with new keys for these roles, and a new time at which it ends.

        Args:
            roles: whose keys are replaced; what the old ones sign is refused as soon as others see the root.
            root_keys: how many keys a new root role has; as many as before.
            threshold: how many of them must sign; as many as before.
            extra: private root keys that were kept elsewhere.

        Raises:
            NotFound: nothing was ever published.
            Conflict: too few of the present root's keys are here.
            InvalidInput: there are fewer keys than must sign, or a file is no key.
        """
        with lock(self._home, _LOCK):
            self.__dict__.pop("roots", None)
            role = self.root.roles["root"]
            wanted = tuple(r for r in ROLES if r in set(roles))
            if (root_keys, threshold) != (None, None) and "root" not in wanted:
                wanted = ("root", *wanted)
            return self._rotate(
                wanted, root_keys or len(role.keyids), threshold or role.threshold, extra
            )

    def _rotate(
        self, roles: Sequence[Role], root_keys: int, threshold: int, extra: Sequence[Path]
    ) -> Rotated:
        if not 1 <= threshold <= root_keys <= 16:
            raise InvalidInput(
                f"{threshold} of {root_keys} root keys cannot be asked for",
                hint="at least one key must sign, and no more than there are (at most 16)",
            )
        before = self.root if self.exists else None
        old = self._signers_of(before, extra) if before is not None else []
        files: list[tuple[Path, bytes]] = []
        signers: dict[Role, list[CryptoSigner]] = {}
        for role in ROLES:
            if role in roles:
                count = root_keys if role == "root" else 1
                signers[role] = [CryptoSigner.generate_ed25519() for _ in range(count)]
                files += [(self._key_file(role, s), s.private_bytes) for s in signers[role]]
        keys: dict[Role, list[Key]] = {}
        for role in ROLES:
            if role in signers:
                keys[role] = [s.public_key for s in signers[role]]
            elif before is not None:
                keys[role] = [before.keys[key_id] for key_id in before.roles[role].keyids]
        version = 1 if before is None else before.version + 1
        root = metadata.make_root(
            keys, threshold=threshold, version=version, lifetime=self.lifetimes.root
        )
        by_id = {s.public_key.keyid: s for s in [*old, *signers.get("root", [])]}
        signed = metadata.signed_by(root, list(by_id.values()))
        metadata.read_root(signed, "the new root")  # before anything is changed
        # New keys get names of their own first, so that whoever is killed here has the old ones.
        for path, pem in files:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, pem)
        self._root_file(version).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fsync_directory(self._directory)
        write_private(self._root_file(version), signed)
        self.__dict__.pop("roots", None)
        self._forget_others()
        fresh = tuple(path for path, _pem in files if path.parent == self.root_directory)
        return Rotated(version, self.fingerprint, tuple(roles), fresh)

    def _signers_of(self, root: Root, extra: Sequence[Path]) -> list[CryptoSigner]:
        """Enough of a root's keys to sign the next one."""
        found = {}
        for path in [*sorted(self.root_directory.glob("*.pem")), *extra]:
            signer = _read_key(path)
            if signer.public_key.keyid in root.roles["root"].keyids:
                found[signer.public_key.keyid] = signer
        needed = root.roles["root"].threshold
        if len(found) < needed:
            raise Conflict(
                f"{needed} root keys must sign a new root, and {len(found)} are here",
                hint="name those that are kept elsewhere with --root-key FILE",
            )
        return list(found.values())

    def signer(self, role: Role) -> CryptoSigner:
        """The key of a role other than root.

        Raises:
            NotFound: it is not here.
        """
        for key_id in self.root.roles[role].keyids:
            path = self._directory / f"{role}-{key_id[:16]}.pem"
            if path.exists():
                return _read_key(path)
        raise NotFound(
            f"the key of the role {role} is not in {self._directory}",
            hint=f"restore it, or make a new one: calotype community rotate {role}",
        )

    def next(self, role: Role) -> int:
        """A number for metadata of a role that no other was ever signed with."""
        with lock(self._home, _LOCK):
            path = self._directory / "numbers.json"
            numbers = json.loads(path.read_text()) if path.exists() else {}
            numbers[role] = int(numbers.get(role, 0)) + 1
            write_private(path, json.dumps(numbers).encode())
            return int(numbers[role])

    def require_current(self) -> None:
        """Refuse to sign under a root that ended.

        Raises:
            Conflict: it did.
        """
        if self.root.expires <= datetime.now(UTC):
            raise Conflict(
                f"the root ended on {self.root.expires:%Y-%m-%d}: nobody believes what it names",
                hint="calotype community rotate signs a new one with the root's keys",
            )

    def _root_file(self, version: int) -> Path:
        return self._directory / "roots" / f"{version}.root.json"

    def _key_file(self, role: Role, signer: CryptoSigner) -> Path:
        key_id = signer.public_key.keyid[:16]
        if role == "root":
            return self.root_directory / f"{key_id}.pem"
        return self._directory / f"{role}-{key_id}.pem"

    def _forget_others(self) -> None:
        """Remove the private keys that the present root does not name."""
        named = {key_id[:16] for key_id in self.root.keys}
        for path in [*self._directory.glob("*-*.pem"), *self.root_directory.glob("*.pem")]:
            if path.stem.rpartition("-")[2] not in named:
                path.unlink(missing_ok=True)


def _read_key(path: Path) -> CryptoSigner:
    try:
        with path.open("rb") as file:
            key = load_pem_private_key(file.read(_MAX_PEM), password=None)
    except OSError as error:
        raise InvalidInput(f"cannot read '{path}': {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"'{path}' is no private key in PEM without a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidInput(f"'{path}' is no Ed25519 key")
    return CryptoSigner(key)
