"""The installation's Ed25519 key: it signs reports in DSSE envelopes, and never leaves the home.

``keys/report.pem`` is the private key, made when something is first signed. Public keys that an
installation believes besides its own stand in ``keys/trusted/``, each named by its id; so do its own
former ones. An envelope is believed for a key that was named, never for one that it brings.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, Signature, SSlibKey

from calotype.config import Home
from calotype.disk.durable import fsync_directory, write_private
from calotype.engine.operation import lock
from calotype.errors import CalotypeError, InvalidInput, NotFound, ReportRefused
from calotype.strict import read_json

#: The largest envelope that is read, in bytes.
MAX_ENVELOPE = 64 << 20
_MAX_PEM = 1 << 14
_MAX_SIGNATURES = 32
_KEY_ID = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = 64  # bytes of an Ed25519 signature
_ENVELOPE = {"payload", "payloadType", "signatures"}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key; ``id`` is that of TUF and in-toto: SHA-256 of its canonical JSON."""

    id: str
    pem: str

    @classmethod
    def parse(cls, pem: bytes, where: str) -> "PublicKey":
        """The public key in a PEM file.

        Raises:
            InvalidInput: it is none, or not of Ed25519 (nothing else is ever accepted).
        """
        return cls.of(_load_public(pem, where))

    @classmethod
    def of(cls, key: Ed25519PublicKey) -> "PublicKey":
        """The key as it is shown and kept."""
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        return cls(SSlibKey.from_crypto(key).keyid, pem)

    def verifier(self) -> SSlibKey:
        """The key as the library wants it."""
        return SSlibKey.from_crypto(_load_public(self.pem.encode(), self.id))


@dataclass(frozen=True, slots=True)
class Signed:
    """What an envelope holds, and the keys that were named and have signed it."""

    payload: bytes
    keys: tuple[PublicKey, ...]
    others: tuple[str, ...]  # ids that it gives for signatures of keys that were not named


class Keys:
    """The keys of one installation."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.private = home.keys / "report.pem"
        self.trusted = home.keys / "trusted"

    def own(self) -> PublicKey:
        """The public part of the installation's key, which is made when there is none."""
        return PublicKey.of(self._key.public_key())

    def known(self) -> list[PublicKey]:
        """The keys that are believed here: the own one, if there is one, and those in ``trusted``."""
        found = [self.own()] if self.private.exists() else []
        found += [
            PublicKey.parse(path.read_bytes(), str(path))
            for path in sorted(self.trusted.glob("*.pem"))
        ]
        return list({key.id: key for key in found}.values())

    def sign(self, payload: bytes, payload_type: str) -> bytes:
        """The DSSE envelope of a payload, signed with the installation's key."""
        envelope = Envelope(payload, payload_type, {})
        envelope.sign(CryptoSigner(self._key))
        return json.dumps(envelope.to_dict(), indent=1).encode() + b"\n"

    def trust(self, key: PublicKey) -> None:
        """Believe what another installation signs."""
        self._home.prepare()
        with lock(self._home, "report-key"):
            self._keep(key)

    def forget(self, key_id: str) -> None:
        """Believe a key no longer.

        Raises:
            NotFound: it is not one that was trusted.
        """
        path = self.trusted / f"{key_id}.pem"
        if not _KEY_ID.fullmatch(key_id) or not path.exists():
            raise NotFound(
                f"no trusted key has the id '{key_id}'", hint="calotype keys list shows them"
            )
        path.unlink()
        fsync_directory(self.trusted)

    def rotate(self) -> PublicKey:
        """Make a new key; the old one is destroyed, and what it signed is still believed."""
        self.own()  # there is one, then
        with lock(self._home, "report-key"):
            self.__dict__.pop("_key", None)  # another command may have made a new one meanwhile
            self._keep(self.own())
            self._make()
        return self.own()

    def _keep(self, key: PublicKey) -> None:
        self.trusted.mkdir(mode=0o700, exist_ok=True)
        fsync_directory(self._home.keys)
        write_private(self.trusted / f"{key.id}.pem", key.pem.encode())

    def _make(self) -> None:
        write_private(self.private, CryptoSigner.generate_ed25519().private_bytes)
        self.__dict__.pop("_key", None)

    @cached_property
    def _key(self) -> Ed25519PrivateKey:
        self._home.prepare()
        if not self.private.exists():
            with lock(self._home, "report-key"):
                if not self.private.exists():
                    self._make()
        try:
            key = load_pem_private_key(self.private.read_bytes(), password=None)
        except (ValueError, TypeError) as error:
            raise CalotypeError(
                f"{self.private} is no private key",
                hint="restore it, or remove it to make a new one",
            ) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise CalotypeError(
                f"{self.private} is no Ed25519 key", hint="restore the one that was"
            )
        return key


def read_key(path: Path) -> PublicKey:
    """The public key in a PEM file.

    Raises:
        InvalidInput: it cannot be read, or is no Ed25519 public key.
    """
    try:
        with path.open("rb") as file:
            return PublicKey.parse(file.read(_MAX_PEM), str(path))
    except OSError as error:
        raise InvalidInput(f"cannot read '{path}': {error.strerror}") from error


def open_envelope(data: bytes, payload_type: str, keys: Iterable[PublicKey]) -> Signed:
    """What an envelope holds, if one of ``keys`` signed it; what other keys signed proves nothing.

    Every signature of a key that was named must be right: one bad one refuses the envelope.

    Raises:
        ReportRefused: it was changed, or no key that was named has signed it.
        InvalidInput: it is no DSSE envelope, or holds something else.
    """
    payload, signatures = _take_apart(data, payload_type)
    by_id = {key.id: key for key in keys}
    named = {key_id: by_id[key_id] for key_id in signatures if key_id in by_id}
    others = tuple(key_id for key_id in signatures if key_id not in by_id)
    if not named:
        raise ReportRefused(
            f"it says that it is signed by key {', '.join(others)}, which you have not named: "
            "nobody can say by whom",
            hint="get the signer's public key from the signer, and name it with --key",
        )
    for key in named.values():
        _require(key, signatures[key.id], payload, payload_type)
    return Signed(payload, tuple(named.values()), others)


def _require(key: PublicKey, signature: bytes, payload: bytes, payload_type: str) -> None:
    envelope = Envelope(payload, payload_type, {key.id: Signature(key.id, signature.hex())})
    try:
        envelope.verify([key.verifier()], 1)
    except VerificationError as error:
        raise ReportRefused(
            f"the signature of key {key.id} does not match: it was changed after it was signed"
        ) from error


def _take_apart(data: bytes, payload_type: str) -> tuple[bytes, dict[str, bytes]]:
    """Payload, and signatures by key id, of an envelope that says no more than it must."""
    envelope = read_json(data, limit=MAX_ENVELOPE, what="the envelope")
    if not isinstance(envelope, dict) or envelope.keys() != _ENVELOPE:
        raise InvalidInput(
            "it is no DSSE envelope", hint="a report of Calotype ends in .report.json"
        )
    if envelope["payloadType"] != payload_type:
        raise InvalidInput(f"the envelope does not hold {payload_type}")
    listed = envelope["signatures"]
    if not isinstance(listed, list) or len(listed) > _MAX_SIGNATURES:
        raise InvalidInput("the envelope has no list of signatures, or too many")
    if not listed:
        raise ReportRefused("it is not signed", hint="anybody can have written it")
    signatures: dict[str, bytes] = {}
    for item in listed:
        key_id, signature = _signature(item)
        if key_id in signatures:
            raise InvalidInput(f"the envelope has two signatures of key {key_id}")
        signatures[key_id] = signature
    return _base64(envelope["payload"]), signatures


def _signature(item: Any) -> tuple[str, bytes]:
    if not isinstance(item, dict) or item.keys() != {"keyid", "sig"}:
        raise InvalidInput("a signature of the envelope has not the form of one")
    key_id, signature = item["keyid"], _base64(item["sig"])
    if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
        raise InvalidInput("a signature of the envelope names no key")
    if len(signature) != _SIGNATURE:
        raise ReportRefused("a signature of the envelope is no Ed25519 signature")
    return key_id, signature


def _base64(text: Any) -> bytes:
    """The bytes of the one way to write them: no stray characters, no spare bits."""
    if not isinstance(text, str):
        raise InvalidInput("the envelope has something else where Base64 should be")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput("the envelope holds what is no Base64") from None
    if base64.b64encode(data).decode() != text:
        raise InvalidInput("the envelope holds what is no canonical Base64")
    return data


def _load_public(pem: bytes, where: str) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        secret = b"PRIVATE KEY" in pem
        raise InvalidInput(
            f"'{where}' is {'a private key' if secret else 'no public key in PEM'}",
            hint="name the public one: calotype keys show prints it" if secret else None,
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidInput(f"'{where}' is no Ed25519 key", hint="reports are signed with Ed25519")
    return key
