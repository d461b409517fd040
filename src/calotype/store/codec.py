"""Frames in and out: zstd level 3, or raw where that gains too little."""

import threading

import zstandard
from blake3 import blake3

from calotype.errors import StoreDamaged
from calotype.store.objects import Bytes
from calotype.store.pack import Codec, Frame, FrameRow

LEVEL = 3
_WORTH = 0.97  # compressed frames above this share of their raw size are stored raw
TARGET = 128 << 10  # raw bytes of a frame
_FULL = 192 << 10  # a chunk that would take a frame beyond this starts the next one

_local = threading.local()


class FrameBuilder:
    """Gathers new chunks into frames. One for each worker; not shared."""

    def __init__(self, level: int = LEVEL) -> None:
        self._level = level
        self._views: list[Bytes] = []
        self._digests: list[bytes] = []
        self._size = 0
        self._done: list[Frame] = []

    def add(self, digest: bytes, data: Bytes) -> None:
        """Add a chunk; its buffer must stay unchanged until :meth:`take` or :meth:`finish`."""
        if self._size and self._size + len(data) > _FULL:
            self._close()
        self._views.append(data)
        self._digests.append(digest)
        self._size += len(data)
        if self._size >= TARGET:
            self._close()

    def take(self) -> list[Frame]:
        """The frames that are complete; the rest is copied, so that buffers may be reused."""
        self._views = [bytes(view) for view in self._views]
        done, self._done = self._done, []
        return done

    def finish(self) -> list[Frame]:
        """All frames, the last one however short."""
        if self._size:
            self._close()
        return self.take()

    def _close(self) -> None:
        lengths = [len(view) for view in self._views]
        self._done.append(encode(b"".join(self._views), self._digests, lengths, self._level))
        self._views, self._digests, self._size = [], [], 0


def encode(raw: bytes, digests: list[bytes], lengths: list[int], level: int = LEVEL) -> Frame:
    """One frame of the chunks that ``raw`` is made of, compressed at a zstd level."""
    compressors = _local.__dict__.setdefault("compressors", {})
    if level not in compressors:
        compressors[level] = zstandard.ZstdCompressor(level=level)
    packed: bytes = compressors[level].compress(raw)
    codec = Codec.ZSTD
    if len(packed) > len(raw) * _WORTH:
        packed, codec = raw, Codec.RAW
    row = FrameRow(len(packed), len(raw), codec, blake3(packed).digest(), digests, lengths)
    return Frame(row, packed)


def decode(stored: Bytes, codec: int, raw: int) -> bytes:
    """The ``raw`` bytes of a frame; never more, whatever the stored bytes say.

    Raises:
        StoreDamaged: these are not the bytes of such a frame.
    """
    if codec == Codec.RAW:
        if len(stored) != raw:
            raise StoreDamaged("a frame has the wrong length")
        return bytes(stored)
    decompressor = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    try:
        if zstandard.frame_content_size(stored) != raw:
            raise StoreDamaged("a frame has the wrong length")
        data: bytes = decompressor.decompress(stored, max_output_size=raw, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise StoreDamaged(f"a frame cannot be decompressed ({error})") from None
    if len(data) != raw:
        raise StoreDamaged("a frame has the wrong length")
    return data
