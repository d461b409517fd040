"""OpenPGP keys and signatures (version 4, Ed25519) with any time, expiry and hash; as RFC 4880 has them."""

import base64
import hashlib
import struct
import textwrap
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_OID = bytes.fromhex("092b06010401da470f01")
_HASHES = {"sha1": 2, "sha256": 8, "sha512": 10}
BORN = 1_600_000_000


@dataclass
class Signer:
    """A key; ``lifetime`` in seconds, from 2020-09-13."""

    name: str = "Publisher <publisher@example.org>"
    lifetime: int | None = None
    secret: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def public(self) -> bytes:
        """The body of the key's packet."""
        raw = self.secret.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return struct.pack(">BIB", 4, BORN, 22) + _OID + _mpi(b"\x40" + raw)

    @property
    def fingerprint(self) -> str:
        body = self.public
        return hashlib.sha1(b"\x99" + struct.pack(">H", len(body)) + body).hexdigest().upper()

    @property
    def armored(self) -> str:
        name = self.name.encode()
        body = self.public
        text = b"\x99" + struct.pack(">H", len(body)) + body
        text += b"\xb4" + struct.pack(">I", len(name)) + name
        extra = _sub(27, b"\x03")
        if self.lifetime is not None:
            extra += _sub(9, struct.pack(">I", self.lifetime))
        own = self.signature(0x13, text, BORN, "sha512", extra)
        packets = packet(6, body) + packet(13, name) + own
        return armor("PUBLIC KEY BLOCK", packets)

    def detached(
        self, data: bytes, *, at: int = BORN + 1000, hashed: str = "sha512", lifetime: int = 0
    ) -> bytes:
        extra = _sub(3, struct.pack(">I", lifetime)) if lifetime else b""
        return self.signature(0x00, data, at, hashed, extra)

    def version3(self, data: bytes, *, at: int = BORN + 1000) -> bytes:
        """A detached signature as openSUSE's build service makes them: of version 3, in an armor."""
        hashed = struct.pack(">BI", 0x00, at)
        digest = hashlib.sha512(data + hashed).digest()
        raw = self.secret.sign(digest)
        body = b"\x03\x05" + hashed + bytes.fromhex(self.fingerprint)[-8:] + bytes([22, 10])
        body += digest[:2] + _mpi(raw[:32]) + _mpi(raw[32:])
        return armor("SIGNATURE", packet(2, body)).encode()

    def clear(self, data: bytes, *, at: int = BORN + 1000, hashed: str = "sha512") -> bytes:
        """Clearsigned; ``data`` is lines without trailing blanks."""
        lines = data.decode().removesuffix("\n").split("\n")
        signed = "\r\n".join(lines).encode()
        shown = "\n".join("- " + line if line.startswith("-") else line for line in lines)
        signature = armor("SIGNATURE", self.signature(0x01, signed, at, hashed, b""))
        head = f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: {hashed.upper()}\n\n"
        return (head + shown + "\n" + signature).encode()

    def signature(
        self, kind: int, data: bytes, at: int, hashed: str = "sha512", extra: bytes = b""
    ) -> bytes:
        """A signature packet of any kind over these bytes."""
        subpackets = _sub(33, b"\x04" + bytes.fromhex(self.fingerprint))
        subpackets += _sub(2, struct.pack(">I", at)) + extra
        head = struct.pack(">BBBBH", 4, kind, 22, _HASHES[hashed], len(subpackets)) + subpackets
        digest = hashlib.new(
            hashed, data + head + b"\x04\xff" + struct.pack(">I", len(head))
        ).digest()
        raw = self.secret.sign(digest)
        issuer = _sub(16, bytes.fromhex(self.fingerprint)[-8:])
        body = (
            head
            + struct.pack(">H", len(issuer))
            + issuer
            + digest[:2]
            + _mpi(raw[:32])
            + _mpi(raw[32:])
        )
        return packet(2, body)


def armor(kind: str, data: bytes) -> str:
    text = "\n".join(textwrap.wrap(base64.b64encode(data).decode(), 64))
    return f"-----BEGIN PGP {kind}-----\n\n{text}\n-----END PGP {kind}-----\n"


def _mpi(data: bytes) -> bytes:
    number = int.from_bytes(data, "big")
    return struct.pack(">H", number.bit_length()) + number.to_bytes(
        (number.bit_length() + 7) // 8, "big"
    )


def _sub(kind: int, data: bytes) -> bytes:
    return bytes([len(data) + 1, kind]) + data


def packet(tag: int, body: bytes) -> bytes:
    return bytes([0xC0 | tag, 255]) + struct.pack(">I", len(body)) + body
