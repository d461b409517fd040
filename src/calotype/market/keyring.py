"""OpenPGP public keys: the fingerprints of the primary keys in an armored file."""

import hashlib
from collections.abc import Iterator

from calotype.errors import InvalidInput
from calotype.market.offer import Key
from calotype.market.signature import dearmored

_PUBLIC_KEY = 6  # the packet's tag
#: Version of the key packet -> how its fingerprint is made (RFC 9580, 5.5.4): hash, prefix, bytes of length.
_FINGERPRINTS = {4: ("sha1", b"\x99", 2), 6: ("sha256", b"\x9b", 4)}
MAX = 1 << 18  # bytes of an armored file


def keys(armored: str) -> tuple[Key, ...]:
    """Each primary key of an armored file, under its fingerprint.

    Raises:
        InvalidInput: there is none, or the file is damaged or too large.
    """
    if len(armored) > MAX:
        raise InvalidInput(f"the keyring is larger than {MAX} bytes")
    data = dearmored(armored)
    found = tuple(
        Key(fingerprint=_fingerprint(body), armored=armored)
        for tag, body in _packets(data)
        if tag == _PUBLIC_KEY
    )
    if not found:
        raise InvalidInput("the keyring holds no public key")
    return found


def _fingerprint(body: bytes) -> str:
    known = _FINGERPRINTS.get(body[0] if body else 0)
    if known is None:
        raise InvalidInput("the keyring holds a key of a version that is not known: 4 and 6 are")
    algorithm, prefix, width = known
    return hashlib.new(algorithm, prefix + len(body).to_bytes(width) + body).hexdigest().upper()


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The tag and the body of each packet (RFC 9580, 4.2)."""
    at = 0
    while at < len(data):
        first = data[at]
        if not first & 0x80:
            raise InvalidInput("the keyring is damaged")
        if first & 0x40:
            tag, (start, length) = first & 0x3F, _new_length(data, at + 1)
        else:
            tag, width = (first >> 2) & 0x0F, 1 << (first & 3)
            if width == 8:
                raise InvalidInput("the keyring is damaged: a packet has no length")
            start = at + 1 + width
            length = int.from_bytes(data[at + 1 : start])
        body = data[start : start + length]
        if len(body) != length:
            raise InvalidInput("the keyring is cut off")
        yield tag, body
        at = start + length


def _new_length(data: bytes, at: int) -> tuple[int, int]:
    """Where a packet's body begins, and its length, in the new format; partial lengths are for data only."""
    first = data[at] if at < len(data) else 0
    if first < 192:
        return at + 1, first
    if first < 224:
        second = data[at + 1] if at + 1 < len(data) else 0
        return at + 2, ((first - 192) << 8) + second + 192
    if first < 255:
        raise InvalidInput("the keyring is damaged: a key comes in parts")
    return at + 5, int.from_bytes(data[at + 1 : at + 5])
