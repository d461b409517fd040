"""Packs being written: workers append frames, a full pack is sealed beside the next one."""

import threading
from collections.abc import Callable, Sequence

from calotype.store.objects import ObjectStore, ObjectWriter
from calotype.store.pack import HEADER, PREFIX, Frame, FrameRow, Kind, Pack, footer, parse, trailer

SEALED_AT = 128 << 20  # stored bytes
_CHUNKS_AT = 1 << 16  # chunks, so that a footer stays small however well its chunks compress


class PackWriter:
    """Puts frames of one kind and domain into packs. Safe to use from several threads at once.

    With ``first``, the first pack is sealed when it has so many stored bytes, and each one after it at twice
    as many as the one before, up to the usual size: what is lost when a process is killed is what is in an
    unsealed pack. ``level`` is that of zstd at which every frame is compressed, where that is to be known.
    """

    def __init__(
        self,
        objects: ObjectStore,
        kind: Kind,
        domain: str,
        on_sealed: Callable[[Pack], None],
        *,
        first: int = SEALED_AT,
        level: int = 0,
    ) -> None:
        self._objects = objects
        self._kind = kind
        self._domain = domain
        self._on_sealed = on_sealed
        self._lock = threading.Lock()
        self._open: _OpenPack | None = None
        self._limit = first
        self._level = level
        self.stored_bytes = 0  # of everything appended, before footers

    def append(self, frames: Sequence[Frame]) -> None:
        """Append frames; whoever fills a pack also seals it."""
        if not frames:
            return
        full: _OpenPack | None = None
        with self._lock:
            if self._open is None:
                self._open = _OpenPack(self._objects.writer())
            self._open.append(frames)
            self.stored_bytes += sum(f.row.stored for f in frames)
            if self._open.size >= min(self._limit, SEALED_AT) or self._open.chunks >= _CHUNKS_AT:
                full, self._open = self._open, None
                self._limit *= 2
        if full is not None:
            self._seal(full)

    def finish(self) -> None:
        """Seal what is open."""
        with self._lock:
            last, self._open = self._open, None
        if last is not None:
            self._seal(last)

    def abort(self) -> None:
        """Drop what is open; sealed packs stay, and the next ingest of the same bytes uses them."""
        with self._lock:
            last, self._open = self._open, None
        if last is not None:
            last.writer.abort()

    def _seal(self, full: "_OpenPack") -> None:
        try:
            self._on_sealed(full.seal(self._kind, self._domain, self._level))
        finally:
            full.writer.abort()


class _OpenPack:
    def __init__(self, writer: ObjectWriter) -> None:
        self.writer = writer
        self.size = len(HEADER)
        self.chunks = 0
        self._rows: list[FrameRow] = []
        writer.write([HEADER])

    def append(self, frames: Sequence[Frame]) -> None:
        self.writer.write([f.data for f in frames])
        self.size += sum(f.row.stored for f in frames)
        self.chunks += sum(len(f.row.digests) for f in frames)
        self._rows += [f.row for f in frames]

    def seal(self, kind: Kind, domain: str, level: int) -> Pack:
        foot = footer(kind, domain, self._rows, level)
        name, tail = trailer(foot)
        self.writer.write([foot, tail])
        self.writer.commit(PREFIX + name)
        return parse(foot, name, self.size + len(foot) + len(tail))
