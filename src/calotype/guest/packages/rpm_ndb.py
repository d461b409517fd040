"""rpm's ndb (Packages.db of SUSE): slots that name runs of blocks, each with a package's header."""

import struct
from collections.abc import Iterator

from calotype.errors import GuestError

_HEADER, _SLOT, _BLOB = struct.Struct("<4I16x"), struct.Struct("<4I"), struct.Struct("<4I")
_MAGIC, _SLOT_MAGIC, _BLOB_MAGIC = 0x506D7052, 0x746F6C53, 0x53626C42  # RpmP, Slot, BlbS
_PAGE, _BLOCK = 4096, 16


def blobs(data: bytes) -> Iterator[bytes]:
    """The headers of the installed packages.

    Raises:
        GuestError: this is no such database, or a damaged one.
    """
    if len(data) < _PAGE or _HEADER.unpack_from(data)[:2] != (_MAGIC, 0):
        raise GuestError("Packages.db is no ndb database")
    pages = _HEADER.unpack_from(data)[3]
    if pages * _PAGE > len(data):
        raise GuestError("Packages.db makes no sense")
    room = len(data)  # no byte belongs to two packages
    for at in range(_HEADER.size, pages * _PAGE, _SLOT.size):
        magic, package, block, count = _SLOT.unpack_from(data, at)
        if magic != _SLOT_MAGIC:
            raise GuestError("Packages.db has a damaged slot")
        if not package:
            continue
        start = block * _BLOCK
        room -= count * _BLOCK
        if room < 0 or start + _BLOB.size > len(data):
            raise GuestError("Packages.db has a slot that leads nowhere")
        head, number, _, length = _BLOB.unpack_from(data, start)
        if head != _BLOB_MAGIC or number != package or length > count * _BLOCK:
            raise GuestError("Packages.db has a damaged package")
        yield data[start + _BLOB.size : start + _BLOB.size + length]
