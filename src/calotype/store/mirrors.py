"""A repository's packs behind several mirrors that nobody trusts.

What packs there are comes from somebody who is trusted (a signed list); every byte that a mirror sends is
held against the pack's footer, frame by frame as it comes, and the footer against the pack's id. So a mirror
that lies is known by name at the first frame, is asked no more, and the rest comes from another. What was
verified stays in a spool until the work ends: whoever is interrupted fetches nothing twice.
"""

import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn, Protocol

import numpy as np
from blake3 import blake3

from calotype.errors import (
    CalotypeError,
    Conflict,
    NotFound,
    StoreUnavailable,
    ToolFailed,
    Untrusted,
)
from calotype.store.index import PREFIX as INDEXES
from calotype.store.objects import Bytes, ObjectWriter, Stored, missing, truncated
from calotype.store.pack import HEADER, TRAILER, Pack, parse
from calotype.store.pack import PREFIX as PACKS

#: Seconds that a mirror rests after each failure in a row; after the last one it is given up.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
#: What is asked for at once, in bytes: between these, and a small share of the whole, for what is on its way
#: is lost when somebody is interrupted.
_LEAST, _MOST, _SHARE = 256 << 10, 1 << 20, 1 / 256
_LARGEST_ROOT = 160 << 20  # bytes; that of 2^22 regions is smaller
_LEAST_FOOTER = 169  # bytes: of one chunk in one frame

Digest = bytes


class Mirror(Protocol):
    """One place that claims to hold the objects. Safe for several threads."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        ...

    def stream(self, key: str, start: int, end: int, size: int) -> Generator[bytes, None, None]:
        """The bytes ``[start, end)`` of an object of ``size`` bytes as they come, perhaps not all.

        Raises:
            NotFound: it has no such object.
            StoreUnavailable: it does not deliver now.
            Untrusted, ToolFailed: what it answers is not what was asked for.
        """
        ...


@dataclass(frozen=True, slots=True)
class Listed:
    """An object that is said to exist, by somebody who is trusted; sizes in bytes."""

    key: str
    size: int
    footer: int = 0  # of a pack: the length of its footer


@dataclass(slots=True)
class Use:
    """What one mirror did; ``problem`` says why it is asked no more."""

    name: str
    bytes: int = 0
    problem: str | None = None
    lied: bool = False


class _Piece(NamedTuple):
    """Bytes of an object that stand under one BLAKE3."""

    start: int
    end: int
    digest: Digest


@dataclass(slots=True)
class _State:
    """A mirror, as far as it is known by now; guarded by the store's lock."""

    mirror: Mirror
    use: Use
    active: int = 0
    failures: int = 0  # in a row
    rested: float = 0.0  # when it may be asked again
    lacks: set[str] = field(default_factory=set)


class MirrorStore:
    """The listed objects, read from mirrors. Safe to use from several threads at once.

    Args:
        mirrors: where they are; the work is spread over those that deliver.
        listed: packs and roots that exist.
        given: objects that are known without asking anybody.
        spool: a directory for what was fetched and verified.
        footers: a directory where footers stay, for those who come again.

    Raises:
        Untrusted: an object is listed with a size that it cannot have.
    """

    def __init__(
        self,
        mirrors: Sequence[Mirror],
        listed: Iterable[Listed],
        given: Mapping[str, bytes],
        *,
        spool: Path,
        footers: Path,
        pauses: Sequence[float] | None = None,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._states = [_State(mirror, Use(mirror.name)) for mirror in mirrors]
        self._listed = {one.key: one for one in listed}
        for one in self._listed.values():
            _require_possible(one)
        self._given = dict(given)
        whole = sum(one.size for one in self._listed.values())
        self._request = min(max(_LEAST, int(whole * _SHARE)), _MOST)
        self._spool = _Spool(spool)
        self._footers = footers
        footers.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._pauses = PAUSES if pauses is None else pauses
        self._wait = wait
        self._lock = threading.Lock()
        self._packs: dict[str, Pack] = {}

    @property
    def resumed(self) -> int:
        """Bytes that an earlier attempt had left in the spool, as far as they were wanted again."""
        return self._spool.found

    @property
    def uses(self) -> Sequence[Use]:
        """What each mirror did."""
        return [state.use for state in self._states]

    # -- reading

    def get(self, key: str) -> bytes:
        """The whole object: one that was given, or a root.

        Raises:
            NotFound: there is no object of that key.
            StoreUnavailable: no mirror delivers it.
            Untrusted: every mirror lies about it.
        """
        if key in self._given:
            return self._given[key]
        if not key.startswith(INDEXES):
            raise missing(key)
        size = self.size(key)
        self._bring(key, [_Piece(0, size, bytes.fromhex(key.removeprefix(INDEXES)))])
        return self._spool.read(key, 0, size)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Bytes of a pack's frames.

        Raises:
            NotFound: there is no pack of that key.
            StoreDamaged: these bytes are not in its frames.
            StoreUnavailable: no mirror delivers them.
            Untrusted: every mirror lies about them.
        """
        pack = self._pack(key)
        ends = pack.frame_offset + pack.frame_stored
        if offset < int(pack.frame_offset[0]) or not 0 <= length <= int(ends[-1]) - offset:
            raise truncated(key, offset + length)
        first = int(np.searchsorted(ends, offset, side="right"))
        last = int(np.searchsorted(pack.frame_offset, offset + length, side="left"))
        frames = [
            _Piece(int(pack.frame_offset[n]), int(ends[n]), pack.frame_checksum[n].tobytes())
            for n in range(first, last)
        ]
        self._bring(key, frames)
        return self._spool.read(key, offset, length)

    def footer(self, key: str) -> bytes:
        """The footer of a pack.

        Raises:
            NotFound: there is no pack of that key.
            StoreUnavailable: no mirror delivers it.
            Untrusted: every mirror lies about it.
        """
        return self._pack(key).foot

    def _pack(self, key: str) -> Pack:
        with self._lock:
            if (pack := self._packs.get(key)) is not None:
                return pack
        if not key.startswith(PACKS):
            raise missing(key)
        size, name = self.size(key), key.removeprefix(PACKS)
        foot = self._kept(name)
        if foot is None:
            end = size - TRAILER
            start = end - self._listed[key].footer
            self._bring(key, [_Piece(start, end, bytes.fromhex(name))])
            foot = self._spool.read(key, start, end - start)
            self._keep(name, foot)
        pack = parse(foot, name, size)
        with self._lock:
            return self._packs.setdefault(key, pack)

    def _kept(self, name: str) -> bytes | None:
        with suppress(OSError):
            foot = (self._footers / name).read_bytes()
            if blake3(foot).hexdigest() == name:
                return foot
        return None

    def _keep(self, name: str, foot: bytes) -> None:
        path = self._footers / name
        with suppress(OSError):  # a full disk: it is fetched again
            part = path.with_name(f"{name}.{threading.get_native_id()}")
            part.write_bytes(foot)
            part.rename(path)

    def size(self, key: str) -> int:
        """The object's size in bytes, as it was listed.

        Raises:
            NotFound: there is no object of that key.
        """
        if key in self._given:
            return len(self._given[key])
        if key not in self._listed:
            raise missing(key)
        return self._listed[key].size

    def list(self, prefix: str = "") -> Iterator[Stored]:
        """The objects whose keys start with ``prefix``, sorted by key."""
        sizes = {key: len(data) for key, data in self._given.items()}
        sizes |= {one.key: one.size for one in self._listed.values()}
        return iter(sorted(Stored(k, n) for k, n in sizes.items() if k.startswith(prefix)))

    def close(self) -> None:
        """There is nothing to release."""

    # -- fetching

    def _bring(self, key: str, pieces: Sequence[_Piece]) -> None:
        """Have these pieces, in ascending order, verified in the spool."""
        absent = [piece for piece in pieces if not self._spool.has(key, piece)]
        for run in _requests(absent, self._request):
            left = run
            while left:
                left = self._ask(key, left)

    def _ask(self, key: str, pieces: Sequence[_Piece]) -> Sequence[_Piece]:
        """Ask one mirror for adjoining pieces; those that are still missing then.

        Raises:
            StoreUnavailable, Untrusted: there is no mirror left to ask.
        """
        state = self._choose(key)
        done = 0
        try:
            for piece, data in self._verified(state, key, pieces):
                self._spool.write(key, piece, data)
                done += 1
        except NotFound:
            with self._lock:
                state.lacks.add(key)
        except (Untrusted, ToolFailed) as error:
            with self._lock:
                state.use.problem = error.message
                state.use.lied = isinstance(error, Untrusted)
        except StoreUnavailable as error:
            self._rest(state, error, progress=done > 0)
        else:
            with self._lock:
                state.failures = 0
        finally:
            with self._lock:
                state.active -= 1
        return pieces[done:]

    def _verified(
        self, state: _State, key: str, pieces: Sequence[_Piece]
    ) -> Iterator[tuple[_Piece, bytes]]:
        """The pieces as one mirror sends them, each after its BLAKE3 matched."""
        start, end = pieces[0].start, pieces[-1].end
        todo = iter(pieces)
        piece = next(todo, None)
        held = bytearray()
        with closing(state.mirror.stream(key, start, end, self.size(key))) as blocks:
            for block in blocks:
                with self._lock:
                    state.use.bytes += len(block)
                held += block
                while piece is not None and len(held) >= piece.end - piece.start:
                    data = bytes(held[: piece.end - piece.start])
                    del held[: len(data)]
                    if blake3(data).digest() != piece.digest:
                        raise Untrusted(
                            f"what it sent as bytes {piece.start} to {piece.end - 1} of {key} "
                            "does not match the signed list"
                        )
                    yield piece, data
                    piece = next(todo, None)
                if piece is None and held:
                    raise Untrusted(f"it sent more of {key} than it was asked for")
        if piece is not None:
            raise StoreUnavailable("the connection ended too early")

    def _choose(self, key: str) -> _State:
        """The mirror to ask next: of those that are not resting the least busy one; it counts as busy.

        Raises:
            StoreUnavailable, Untrusted: none is left.
        """
        while True:
            with self._lock:
                left = [s for s in self._states if s.use.problem is None and key not in s.lacks]
                if not left:
                    raise self._nobody(key)
                now = time.monotonic()
                ready = [s for s in left if s.rested <= now]
                if ready:
                    chosen = min(ready, key=lambda s: (s.active + s.failures, s.use.bytes))
                    chosen.active += 1
                    return chosen
                pause = min(s.rested for s in left) - now
            self._wait(pause)

    def _rest(self, state: _State, error: CalotypeError, *, progress: bool) -> None:
        """Leave a mirror alone for a while after a failure, or for ever after too many in a row."""
        with self._lock:
            if progress:
                state.failures = 0
            if state.failures >= len(self._pauses):
                state.use.problem = error.message
                return
            state.rested = time.monotonic() + self._pauses[state.failures]
            state.failures += 1

    def _nobody(self, key: str) -> CalotypeError:
        told = "; ".join(
            f"{s.use.name}: {s.use.problem or f'it has no {key}'}" for s in self._states
        )
        if self._states and all(s.use.lied for s in self._states):
            return Untrusted(
                f"no mirror can be believed: {told}",
                hint="nothing of that was used; name another mirror, and tell the publisher",
            )
        return StoreUnavailable(
            f"no mirror delivers {key}: {told or 'none is known'}",
            hint="what came is kept, and the same command goes on there: try again later, after "
            "`calotype community update`, or with another mirror",
        )

    # -- what mirrors do not do

    def put(self, key: str, data: Bytes | Iterable[Bytes], *, if_absent: bool = False) -> bool:
        """Nothing is written to mirrors."""
        del data, if_absent
        _refuse(key)

    def writer(self) -> ObjectWriter:
        """Nothing is written to mirrors."""
        _refuse("an object")

    def delete(self, key: str) -> None:
        """Nothing is deleted from mirrors."""
        _refuse(key)

    def persist(self, prefix: str) -> None:
        """There is nothing to make durable."""

    def leftovers(self) -> Sequence[str]:
        """There are none."""
        return ()

    def sweep(self) -> Sequence[str]:
        """There is nothing to remove."""
        return ()


class _Spool:
    """Verified pieces in sparse files, one for each object; what is in them is believed by its BLAKE3."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._right: set[tuple[str, int]] = set()  # objects and the starts of pieces
        self.found = 0  # bytes of pieces that somebody had left here

    def has(self, key: str, piece: _Piece) -> bool:
        """Whether the piece is here and right."""
        if (key, piece.start) in self._right:
            return True
        data = self.read(key, piece.start, piece.end - piece.start)
        if len(data) != piece.end - piece.start or blake3(data).digest() != piece.digest:
            return False
        with self._lock:
            self._right.add((key, piece.start))
            self.found += len(data)
        return True

    def write(self, key: str, piece: _Piece, data: bytes) -> None:
        """Keep a piece that is right."""
        with self._opened(key) as file:
            file.seek(piece.start)
            file.write(data)
        with self._lock:
            self._right.add((key, piece.start))

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Bytes that are here."""
        with self._opened(key) as file:
            file.seek(offset)
            return file.read(length)

    def _opened(self, key: str) -> BinaryIO:
        """An object's file, opened for each need: there are more objects than descriptors."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        return os.fdopen(os.open(self._directory / key.replace("/", "-"), flags, 0o600), "r+b")


def _requests(pieces: Sequence[_Piece], size: int) -> Iterator[Sequence[_Piece]]:
    """Pieces as runs that adjoin, each of about ``size`` bytes."""
    run: list[_Piece] = []
    for piece in pieces:
        if run and (piece.start != run[-1].end or piece.end - run[0].start > size):
            yield run
            run = []
        run.append(piece)
    if run:
        yield run


def _require_possible(one: Listed) -> None:
    if one.key.startswith(INDEXES):
        possible = one.size <= _LARGEST_ROOT
    else:
        possible = _LEAST_FOOTER <= one.footer <= one.size - TRAILER - len(HEADER)
    if not possible:
        raise Untrusted(
            f"{one.key} is listed with a size that cannot be",
            hint="tell the publisher; nothing of it was used",
        )


def _refuse(what: str) -> NoReturn:
    raise Conflict(f"{what} cannot be changed on a mirror", hint="the publisher changes it")
