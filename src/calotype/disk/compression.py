"""``.gz``, ``.xz`` and ``.zst`` around a disk image: known by their first bytes, unpacked with bounds."""

import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

import zstandard

from calotype.disk.draft import PIECE, scratch_file, write_sparse
from calotype.disk.window import Window
from calotype.errors import DiskRefused
from calotype.progress import SILENT, Progress


class Packing(StrEnum):
    """A compression around a whole file, by its usual suffix."""

    GZIP = "gz"
    XZ = "xz"
    ZSTD = "zst"


_MAGIC: Final = {
    Packing.GZIP: b"\x1f\x8b\x08",
    Packing.XZ: b"\xfd7zXZ\0",
    Packing.ZSTD: b"\x28\xb5\x2f\xfd",
}
#: So many bytes tell the compression.
HEAD: Final = 6
_INPUT: Final = 64 << 10
#: zstandard cannot bound what a piece of input unpacks to; 1 KiB of run-length blocks is 32 MiB.
_ZSTD_INPUT: Final = 1 << 10
_OUTPUT: Final = 1 << 20
_MEMORY: Final = 128 << 20  # xz -9 needs 65 MiB, zstd --long=27 needs 128 MiB
_ERRORS: Final = (zlib.error, lzma.LZMAError, zstandard.ZstdError)


class _Unpacker(Protocol):
    """One member of a packed file; :class:`lzma.LZMADecompressor` is the model."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    def __init__(self) -> None:
        self._stream = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        return not self._stream.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._stream.decompress(self._stream.unconsumed_tail + data, max_length)


class _Zstd:
    needs_input = True

    def __init__(self) -> None:
        self._stream = zstandard.ZstdDecompressor(max_window_size=_MEMORY).decompressobj()

    @property
    def eof(self) -> bool:
        return bool(self._stream.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._stream.unused_data)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        del max_length
        return bytes(self._stream.decompress(data))


def _xz() -> _Unpacker:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)


_UNPACKERS: Final[Mapping[Packing, Callable[[], _Unpacker]]] = {
    Packing.GZIP: _Gzip,
    Packing.XZ: _xz,
    Packing.ZSTD: _Zstd,
}


def packing(window: Window) -> Packing | None:
    """The compression that a file's first bytes name."""
    return packing_of(window.read(0, min(window.size, HEAD)))


def packing_of(head: bytes) -> Packing | None:
    """The compression that the first :data:`HEAD` bytes of a file name."""
    return next((kind for kind, magic in _MAGIC.items() if head.startswith(magic)), None)


def unpack(
    window: Window, kind: Packing, directory: Path, *, limit: int, progress: Progress = SILENT
) -> Window:
    """Unpack a file into a nameless sparse file in ``directory``.

    Args:
        window: the packed file.
        kind: its compression.
        directory: where the unpacked bytes go.
        limit: the most bytes that it may unpack to.
        progress: told of packed bytes.

    Returns:
        A window on the unpacked file, which is gone when the window is closed.

    Raises:
        DiskRefused: it is damaged, truncated, followed by other bytes, needs too much memory, or
            unpacks to more than ``limit``.
    """
    with ExitStack() as stack:
        fd = stack.enter_context(scratch_file(directory))
        advance = stack.enter_context(progress.phase(f"unpacking {kind}", window.size))
        keep(_blocks(window, advance), kind, fd, limit=limit)
        return Window.open(fd)


def keep(
    blocks: Iterable[bytes],
    kind: Packing | None,
    fd: int,
    *,
    limit: int,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write a stream to the fresh file ``fd``, unpacked, with holes for its zeros.

    Args:
        blocks: the stream, in pieces of any size.
        kind: its compression; ``None``: it is written as it is.
        fd: the file, empty.
        limit: the most bytes that may come of it.
        check: called now and then while it is written.

    Raises:
        DiskRefused: as :func:`unpack` does.
    """
    size, pending = 0, bytearray()
    for block in blocks if kind is None else _unpacked(blocks, kind):
        pending += block
        if size + len(pending) > limit:
            raise DiskRefused(
                f"it unpacks to more than {limit} bytes",
                hint="raise the limit, or unpack it where there is room",
            )
        if len(pending) >= _OUTPUT:  # whole pieces at whole places: so holes stay holes
            size += _flush(fd, size, pending, len(pending) // PIECE * PIECE)
            check()
    size += _flush(fd, size, pending, len(pending))
    os.ftruncate(fd, size)


def _flush(fd: int, offset: int, pending: bytearray, count: int) -> int:
    with memoryview(pending) as view:
        write_sparse(fd, offset, view[:count])
    del pending[:count]
    return count


def _blocks(window: Window, advance: Callable[[int], None]) -> Iterator[bytes]:
    for offset in range(0, window.size, _OUTPUT):
        block = window.read(offset, min(_OUTPUT, window.size - offset))
        yield block
        advance(len(block))


def _unpacked(blocks: Iterable[bytes], kind: Packing) -> Iterator[bytes]:
    """Blocks of all members; each is at most ``_OUTPUT`` long (zstd: 32 MiB in the worst case)."""
    feed = _Feed(blocks, _ZSTD_INPUT if kind is Packing.ZSTD else _INPUT)
    members = 0
    while feed.more():
        try:
            yield from _member(_UNPACKERS[kind](), feed, kind)
        except _ERRORS as error:
            what = f"something that is no {kind} follows its end" if members else f"damaged {kind}"
            hint = "fetch it again and compare its checksum"
            if "emory" in str(error):  # zstd: "too much memory", lzma: "Memory usage limit"
                hint = "pack it again with a window of at most 128 MiB (zstd --long=27, xz -9)"
            raise DiskRefused(f"{what} ({error})", hint=hint) from None
        if kind is Packing.XZ:
            feed.skip_padding()
        members += 1


def _member(unpacker: _Unpacker, feed: "_Feed", kind: Packing) -> Iterator[bytes]:
    while not unpacker.eof:
        data = b""
        if unpacker.needs_input and not (data := feed.take()):
            raise DiskRefused(
                f"the {kind} file is truncated", hint="fetch it again and compare its checksum"
            )
        if block := unpacker.decompress(data, _OUTPUT):
            yield block
    feed.give_back(unpacker.unused_data)


class _Feed:
    """A stream in pieces of at most ``piece`` bytes; what a member leaves over is given back."""

    def __init__(self, blocks: Iterable[bytes], piece: int) -> None:
        self._blocks = iter(blocks)
        self._piece = piece
        self._held = memoryview(b"")

    def more(self) -> bool:
        while not self._held:
            block = next(self._blocks, None)
            if block is None:
                return False
            self._held = memoryview(block)
        return True

    def take(self) -> bytes:
        self.more()
        data, self._held = self._held[: self._piece], self._held[self._piece :]
        return bytes(data)

    def give_back(self, data: bytes) -> None:
        if data:
            self._held = memoryview(data + bytes(self._held))

    def skip_padding(self) -> None:
        """Zeros in fours may follow an xz stream."""
        while self.more():
            while len(self._held) < 4 and (block := next(self._blocks, None)) is not None:
                self._held = memoryview(bytes(self._held) + block)
            if self._held[:4] != bytes(4):
                return
            self._held = self._held[4:]


def pack(source: int, target: int, kind: Packing, *, progress: Progress = SILENT) -> None:
    """Pack the whole file ``source`` (a descriptor) into ``target``."""
    size = os.fstat(source).st_size
    packer = _PACKERS[kind]()
    with (
        progress.phase(f"packing {kind}", size) as advance,
        open(target, "wb", closefd=False) as out,
    ):
        for offset in range(0, size, _OUTPUT):
            block = os.pread(source, _OUTPUT, offset)
            out.write(packer.compress(block))
            advance(len(block))
        out.write(packer.flush())


class _Packer(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _gzip_packer() -> _Packer:
    return zlib.compressobj(6, wbits=31)


def _xz_packer() -> _Packer:
    return lzma.LZMACompressor(preset=3)


def _zstd_packer() -> _Packer:
    packer: _Packer = zstandard.ZstdCompressor(level=3, write_checksum=True).compressobj()
    return packer


_PACKERS: Final[Mapping[Packing, Callable[[], _Packer]]] = {
    Packing.GZIP: _gzip_packer,
    Packing.XZ: _xz_packer,
    Packing.ZSTD: _zstd_packer,
}
