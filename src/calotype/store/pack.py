"""A pack: frames of compressed chunks back to back, and a footer that says where each chunk is.

The layout is defined in docs/design/repository.md. Everything read back is parsed strictly: a table that
does not cover its bytes exactly is damage.
"""

import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from calotype.errors import InvalidInput, StoreDamaged
from calotype.store.digest import DIGEST, U32, Bytes32, Ints, pack_name, unpack_name
from calotype.store.objects import ReadableStore

PREFIX = "packs/"
HEADER = b"CALOPACK"
_FOOT = struct.Struct("<8sHBBIII64s")
_FOOT_MAGIC = b"CALOFOOT"
_TRAILER = struct.Struct("<Q32s8s")
TRAILER = _TRAILER.size  # bytes after the footer
_TRAILER_MAGIC = b"CALOTAIL"
_VERSION = 1

MAX_CHUNK = 256 << 10  # of a disk's data
_MAX_RAW = {0: 1 << 20, 1: 8 << 20}  # bytes of a frame before compression, by kind
_MAX_CHUNKS = 1 << 22
_TAIL_READ = 512 << 10


class Kind(IntEnum):
    """What a pack's chunks are: pieces of disks, or leaves."""

    DATA = 0
    LEAF = 1


class Codec(IntEnum):
    """How a frame is stored."""

    RAW = 0
    ZSTD = 1


class FrameRow(NamedTuple):
    """What a footer says of a frame: consecutive new chunks, compressed together. Sizes in bytes."""

    stored: int
    raw: int
    codec: Codec
    checksum: bytes  # BLAKE3 of the stored bytes
    digests: Sequence[bytes]
    lengths: Sequence[int]


class Frame(NamedTuple):
    """A frame on its way into a pack."""

    row: FrameRow
    data: bytes  # as stored


@dataclass(frozen=True, eq=False)
class Pack:
    """A sealed pack's footer, parsed. Arrays have one element for each chunk or each frame."""

    id: str
    kind: Kind
    domain: str
    level: int  # of zstd, at which all its frames were compressed; 0: not said
    size: int  # of the object, in bytes
    foot: bytes  # the footer; the arrays are views of it
    digests: Bytes32
    lengths: U32  # of chunks, raw
    frame_stored: U32
    frame_raw: U32
    frame_chunks: U32
    frame_codec: npt.NDArray[np.uint8]
    frame_checksum: Bytes32

    @property
    def key(self) -> str:
        """The object's key."""
        return PREFIX + self.id

    @classmethod
    def gone(cls, key: str) -> "Pack":
        """What stands for a pack that was deleted: nothing."""
        rows = np.zeros((0, DIGEST), dtype=np.uint8)
        u32 = np.zeros(0, dtype=np.uint32)
        return cls(
            id=key.removeprefix(PREFIX),
            kind=Kind.DATA,
            domain="",
            level=0,
            size=0,
            foot=b"",
            digests=rows,
            lengths=u32,
            frame_stored=u32,
            frame_raw=u32,
            frame_chunks=u32,
            frame_codec=np.zeros(0, dtype=np.uint8),
            frame_checksum=rows,
        )

    @cached_property
    def frame_offset(self) -> Ints:
        """Where each frame starts in the object."""
        return _starts(self.frame_stored) + len(HEADER)

    @cached_property
    def frame_first(self) -> Ints:
        """The number of each frame's first chunk."""
        return _starts(self.frame_chunks)

    def chunks_of(self, frame: int) -> slice:
        """The chunks of a frame."""
        first = int(self.frame_first[frame])
        return slice(first, first + int(self.frame_chunks[frame]))

    def row(self, frame: int) -> FrameRow:
        """What the footer says of a frame."""
        chunks = self.chunks_of(frame)
        return FrameRow(
            stored=int(self.frame_stored[frame]),
            raw=int(self.frame_raw[frame]),
            codec=Codec(int(self.frame_codec[frame])),
            checksum=self.frame_checksum[frame].tobytes(),
            digests=[digest.tobytes() for digest in self.digests[chunks]],
            lengths=self.lengths[chunks].tolist(),
        )

    @cached_property
    def chunk_frame(self) -> Ints:
        """The number of the frame that holds each chunk."""
        return np.repeat(np.arange(len(self.frame_chunks)), self.frame_chunks)

    @cached_property
    def chunk_offset(self) -> Ints:
        """Where each chunk starts in its raw frame."""
        starts = _starts(self.lengths)
        return starts - starts[self.frame_first][self.chunk_frame]

    @cached_property
    def chunk_stored(self) -> npt.NDArray[np.float64]:
        """Each chunk's share of its frame's stored bytes."""
        ratio = self.frame_stored / self.frame_raw
        return self.lengths * ratio[self.chunk_frame]


def footer(kind: Kind, domain: str, rows: Sequence[FrameRow], level: int = 0) -> bytes:
    """The footer of a pack of these frames.

    It holds a random number, so that the id of a pack that was deleted does not come back.
    """
    chunks = sum(len(r.digests) for r in rows)
    nonce = secrets.randbits(32)
    name = pack_name(domain)
    head = _FOOT.pack(_FOOT_MAGIC, _VERSION, kind, level, chunks, len(rows), nonce, name)
    lengths = [n for r in rows for n in r.lengths]
    columns = (
        lengths,
        [r.stored for r in rows],
        [r.raw for r in rows],
        [len(r.digests) for r in rows],
    )
    return b"".join(
        [
            head,
            *(d for r in rows for d in r.digests),
            *(np.array(column, dtype="<u4").tobytes() for column in columns),
            bytes(r.codec for r in rows),
            *(r.checksum for r in rows),
        ]
    )


def trailer(foot: bytes) -> tuple[str, bytes]:
    """A footer's id, and what follows it so that it can be found from the end."""
    digest = blake3(foot)
    return digest.hexdigest(), _TRAILER.pack(len(foot), digest.digest(), _TRAILER_MAGIC)


@runtime_checkable
class KnowsFooters(Protocol):
    """A store that need not be asked for a pack's end to find its footer there."""

    def footer(self, key: str) -> bytes:
        """The footer of a pack, whose BLAKE3 is the pack's id."""
        ...


def load(objects: ReadableStore, key: str, size: int) -> Pack:
    """Read and check the footer of the pack ``key`` of ``size`` bytes.

    Raises:
        StoreDamaged: its trailer or footer is not what a pack has, or its name is not its content.
        NotFound: it is gone.
    """
    if isinstance(objects, KnowsFooters):
        return parse(objects.footer(key), key.removeprefix(PREFIX), size)
    least = len(HEADER) + _FOOT.size + _TRAILER.size
    if size < least:
        raise _damaged(key, "is too short")
    tail = objects.get_range(key, size - min(size, _TAIL_READ), min(size, _TAIL_READ))
    length, digest, magic = _TRAILER.unpack(tail[-_TRAILER.size :])
    if magic != _TRAILER_MAGIC or not _FOOT.size <= length <= size - least + _FOOT.size:
        raise _damaged(key, "has no valid trailer")
    start = size - _TRAILER.size - length
    if length + _TRAILER.size <= len(tail):
        foot = tail[-_TRAILER.size - length : -_TRAILER.size]
    else:
        foot = objects.get_range(key, start, length)
    if blake3(foot).digest() != digest:
        raise _damaged(key, "has a footer that does not match its checksum")
    if key != PREFIX + digest.hex():
        raise _damaged(key, "is not named by its content")
    return parse(foot, digest.hex(), size)


def find_footer(end: bytes, name: str) -> bytes | None:
    """The footer of the pack ``name`` whose trailer is damaged, in the bytes at its end.

    It is what starts like a footer and has the pack's name as its BLAKE3.
    """
    before = end[: -_TRAILER.size]
    at = before.rfind(_FOOT_MAGIC)
    while at >= 0 and blake3(before[at:]).hexdigest() != name:
        at = before.rfind(_FOOT_MAGIC, 0, at)
    return before[at:] if at >= 0 else None


def parse(foot: bytes, name: str, size: int) -> Pack:
    """The pack ``name`` of ``size`` bytes, from the bytes of its footer.

    Raises:
        StoreDamaged: no pack of this size has this footer.
    """
    key = PREFIX + name
    if len(foot) < _FOOT.size:
        raise _damaged(key, "has a footer of the wrong length")
    magic, version, kind, level, chunks, frames, _nonce, padded = _FOOT.unpack_from(foot)
    if magic != _FOOT_MAGIC:
        raise _damaged(key, "has no valid footer")
    if version != _VERSION:
        raise InvalidInput(
            f"pack {key} has format version {version}", hint="use a newer version of Calotype"
        )
    if kind not in iter(Kind) or not 0 < frames <= chunks <= _MAX_CHUNKS:
        raise _damaged(key, "has an impossible footer")
    if len(foot) != _FOOT.size + chunks * (DIGEST + 4) + frames * (DIGEST + 13):
        raise _damaged(key, "has a footer of the wrong length")
    fields = _Fields(foot, _FOOT.size)
    try:
        domain = unpack_name(padded)
    except InvalidInput as error:
        raise _damaged(key, f"names no domain ({error.message})") from None
    pack = Pack(
        id=name,
        kind=Kind(kind),
        domain=domain,
        level=level,
        size=size,
        foot=foot,
        digests=fields.rows(chunks),
        lengths=fields.u32(chunks),
        frame_stored=fields.u32(frames),
        frame_raw=fields.u32(frames),
        frame_chunks=fields.u32(frames),
        frame_codec=fields.u8(frames),
        frame_checksum=fields.rows(frames),
    )
    _check_tables(pack)
    if len(HEADER) + int(pack.frame_stored.sum(dtype=np.int64)) + len(foot) + _TRAILER.size != size:
        raise _damaged(key, "has frames that do not cover it")
    return pack


def _check_tables(pack: Pack) -> None:
    raw, stored, count = pack.frame_raw, pack.frame_stored, pack.frame_chunks
    zstd = pack.frame_codec == Codec.ZSTD
    if (
        not pack.lengths.all()
        or not count.all()
        or not stored.all()
        or int(count.sum(dtype=np.int64)) != len(pack.lengths)
        or bool((pack.frame_codec > max(Codec)).any())
        or bool((raw > _MAX_RAW[pack.kind]).any())
        or bool((stored > raw).any())
        or bool((~zstd & (stored != raw)).any())
    ):
        raise _damaged(pack.key, "has an impossible table")
    sums = np.add.reduceat(pack.lengths.astype(np.int64), pack.frame_first)
    if not np.array_equal(sums, raw.astype(np.int64)):
        raise _damaged(pack.key, "has chunks that do not cover their frames")


class _Fields:
    """Takes arrays from a footer, one after the other."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def _take(self, length: int) -> memoryview:
        self._at += length
        return memoryview(self._data)[self._at - length : self._at]

    def rows(self, count: int) -> Bytes32:
        return np.frombuffer(self._take(count * DIGEST), dtype=np.uint8).reshape(-1, DIGEST)

    def u32(self, count: int) -> U32:
        return np.frombuffer(self._take(count * 4), dtype="<u4")

    def u8(self, count: int) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self._take(count), dtype=np.uint8)


def _starts(lengths: U32) -> Ints:
    ends = np.cumsum(lengths, dtype=np.int64)
    return ends - lengths


def _damaged(key: str, what: str) -> StoreDamaged:
    return StoreDamaged(f"{key} {what}", hint="run `calotype store check`")
