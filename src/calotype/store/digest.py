"""Digests and dedup domains: who may learn that two disks hold the same bytes."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from calotype.errors import InvalidInput
from calotype.store.objects import Bytes

Bytes32 = npt.NDArray[np.uint8]  # shape (n, 32): n digests
Ints = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]

DIGEST = 32  # bytes
_NAME = 64  # bytes that a domain's name takes in packs and roots


@dataclass(frozen=True, slots=True)
class Domain:
    """A set of images that share chunks: digests of two domains have nothing in common."""

    name: str
    key: bytes

    def digest(self, data: Bytes) -> bytes:
        """The keyed BLAKE3-256 of a chunk or leaf."""
        return blake3(data, key=self.key).digest()

    def digests(self, view: memoryview, spans: Iterable[tuple[int, int]]) -> list[bytes]:
        """The digests of the (start, end) spans of ``view``."""
        key = self.key
        return [blake3(view[start:end], key=key).digest() for start, end in spans]


def pack_name(name: str) -> bytes:
    """A domain's name as packs and roots hold it: ASCII, padded with NUL.

    Raises:
        InvalidInput: the name is empty, too long or not made of ``a-z 0-9 . _ -``.
    """
    raw = name.encode("ascii", "replace")
    if not 0 < len(raw) <= _NAME or not set(raw) <= set(b"abcdefghijklmnopqrstuvwxyz0123456789._-"):
        raise InvalidInput(f"{name!r} is not a name of a dedup domain")
    return raw.ljust(_NAME, b"\0")


def unpack_name(raw: bytes) -> str:
    """The inverse of :func:`pack_name`, as strict.

    Raises:
        InvalidInput: these bytes are not a name.
    """
    name = raw.rstrip(b"\0").decode("ascii", "replace")
    if pack_name(name) != raw:
        raise InvalidInput("not a name of a dedup domain")
    return name


def as_rows(digests: Iterable[bytes]) -> Bytes32:
    """Digests as an array of shape (n, 32)."""
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, DIGEST)
