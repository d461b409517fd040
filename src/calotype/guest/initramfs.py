"""Which drivers of Hyper-V a guest's initramfs has: told from the names in it, without unpacking it."""

import gzip
import io
import lzma
import re
import zlib
from typing import Protocol

import zstandard

from calotype.guest.guest import Tree, glob, text

_FILES = ("/boot/initrd.img-*", "/boot/initramfs-*", "/boot/initrd-*")
_NOT = re.compile(r".*(rescue|kdump|fallback).*")
_NAME = re.compile(rb"/(hv_\w{1,32})\.ko\b")
_LONGEST = 64  # bytes of a name, with what stands around it
_LARGEST = 256 << 20  # bytes of an initramfs that are read
_MOST = 1 << 30  # bytes that come out of one
_PIECE = 1 << 20
_LARGEST_MICROCODE = 64 << 20
_LARGEST_WINDOW = 1 << 27
#: How an archive begins, and the name of its last entry.
_CPIO, _TRAILER = b"07070", b"TRAILER!!!"


class _Stream(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


def modules(tree: Tree) -> frozenset[str] | None:
    """The drivers that every initramfs has, or the kernel has built in; None where it cannot be told."""
    builtin = {
        name
        for path in glob(tree, "/lib/modules/*/modules.builtin")
        for name in re.findall(r"/(hv_\w+)\.ko", text(tree, path))
    }
    found = [
        _names(tree, path)
        for pattern in _FILES
        for path in glob(tree, pattern)
        if not _NOT.match(path)
    ]
    told = [names for names in found if names is not None]
    if not told or len(told) < len(found):
        return None
    return frozenset(builtin | set.intersection(*told))


def _names(tree: Tree, path: str) -> set[str] | None:
    """The drivers in one initramfs; None when it is packed in a way that is not known, or has no end."""
    raw = tree.read(path, _LARGEST) or b""
    stream = _stream(raw[_begin(raw) :])
    if stream is None:
        return None
    found: set[str] = set()
    tail = b""
    ended = False
    try:
        for _ in range(_MOST // _PIECE):
            piece = stream.read(_PIECE)
            if not piece:
                break
            found |= {name.decode() for name in _NAME.findall(tail + piece)}
            ended = ended or _TRAILER in tail + piece
            tail = piece[-_LONGEST:]
    except (zstandard.ZstdError, zlib.error, lzma.LZMAError, EOFError, OSError):
        return None
    return found if ended else None


def _begin(raw: bytes) -> int:
    """Where the main archive begins: after one of microcode, if there is one."""
    if not raw.startswith(_CPIO):
        return 0
    at = raw.find(_TRAILER, 0, _LARGEST_MICROCODE)
    rest = re.compile(rb"[^\0]").search(raw, at + len(_TRAILER)) if at >= 0 else None
    return rest.start() if rest is not None else 0


def _stream(raw: bytes) -> _Stream | None:
    """What reads the archive, a bounded piece at a time."""
    if raw.startswith(b"\x28\xb5\x2f\xfd"):
        packed = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        return packed.stream_reader(raw, read_across_frames=True)
    if raw.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=io.BytesIO(raw))
    if raw.startswith((b"\xfd7zXZ", b"\x5d\0\0")):
        return lzma.LZMAFile(io.BytesIO(raw))
    return io.BytesIO(raw) if raw.startswith(_CPIO) else None
