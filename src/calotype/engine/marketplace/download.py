"""Large files from publishers' servers: resumed wherever they were interrupted, and verified as a whole.

What is fetched grows in a ``.part`` file that is named by the digest which the whole must have, so every
mirror of a file continues what another one began. Beside it stands what the server said of the file, and
how much of it is on the disk for certain.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal, Self

from calotype.disk.durable import write_private
from calotype.engine.base.fetch import Remote, Validator, plain
from calotype.engine.context import Context
from calotype.errors import (
    CalotypeError,
    Conflict,
    InvalidInput,
    NotFound,
    TimedOut,
    ToolFailed,
    Untrusted,
)
from calotype.units import human_size, one_line

log = logging.getLogger("calotype.download")

#: Bytes between two moments at which what was written is made durable.
SYNC = 16 << 20
#: No disk image that anybody publishes is larger.
MAX_SIZE = 1 << 40
#: Bytes that are left free on the disk while a file comes of which nobody says how large it is.
SPARE = 1 << 30
#: Seconds for which a part is kept that nobody continues.
KEPT = 7 * 86400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A file, and where it can be had.

    Attributes:
        urls: The same file, the preferred place first.
        algorithm: What ``digest`` (hex) was made with.
        size: In bytes; ``None``: the server says.
        allow_addresses: Networks that may be reached although they are not public.
    """

    urls: tuple[str, ...]
    algorithm: Literal["sha256", "sha512"]
    digest: str
    size: int | None = None
    allow_addresses: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The last part of its first URL, for people."""
        return one_line(plain(self.urls[0]).rpartition("/")[2] or plain(self.urls[0]), 40)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole, verified file, and the URL that the last of it came from."""

    path: Path
    url: str


@contextmanager
def fetched(context: Context, wanted: Wanted) -> Iterator[Fetched]:
    """Have a file for as long as the block lasts; its end, unless by an exception, removes it.

    Two commands never fetch the same file at once: the second waits for the first.

    Raises:
        Untrusted: what the servers deliver has not the digest.
        ToolFailed: no server delivers; what arrived is kept, and the next call continues.
        InvalidInput: a URL is refused, or the file is too large.
    """
    directory = context.home.prepare().cache / "downloads"
    directory.mkdir(mode=0o700, exist_ok=True)
    part = _Part(directory / f"{wanted.algorithm}-{wanted.digest.lower()}")
    with _alone(context, wanted, part):
        _sweep(context, directory, part)
        here = part.whole.exists()
        url = (part.state.url or wanted.urls[0]) if here else _fetch(context, wanted, part)
        yield Fetched(part.whole, url)
        part.remove()


@contextmanager
def _alone(context: Context, wanted: Wanted, part: "_Part") -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(context.lock(part.lock, patience=0))
        except TimedOut:
            with context.progress.phase(f"waiting for another download of {wanted.name}"):
                stack.enter_context(context.lock(part.lock))
        yield


def _sweep(context: Context, directory: Path, own: "_Part") -> None:
    """Remove what nobody continued for long."""
    for path in directory.glob("*.json"):
        other = _Part(path.with_suffix(""))
        if other.whole == own.whole or time.time() - other.touched < KEPT:
            continue
        with suppress(TimedOut), context.lock(other.lock, patience=0):
            other.remove()


def _fetch(context: Context, wanted: Wanted, part: "_Part") -> str:
    """Fetch and verify a file from the first server that has it; the URL."""
    refusals: list[CalotypeError] = []
    for url in wanted.urls:
        try:
            _from(context, wanted, part, url)
        except (ToolFailed, NotFound, Untrusted, InvalidInput, Conflict) as error:
            refusals.append(error)
            if len(wanted.urls) > 1:
                log.warning("%s", one_line(error.message))
        else:
            return url
    raise next((e for e in refusals if isinstance(e, Untrusted)), refusals[-1])


def _from(context: Context, wanted: Wanted, part: "_Part", url: str) -> None:
    """Fetch a file from one server; what was put together of pieces has a second chance in one piece."""
    remote = Remote(url, allow=wanted.allow_addresses)
    _require_size(wanted, remote)
    start = part.continued(remote)
    try:
        _receive(context, wanted, part, remote, start)
        _verify(context, wanted, part, url)
    except (Untrusted, Conflict) as error:
        if isinstance(error, Untrusted) and start == 0:
            raise
        log.warning("%s; fetched again from the beginning", one_line(error.message))
        remote = Remote(url, allow=wanted.allow_addresses)
        _require_size(wanted, remote)
        _receive(context, wanted, part, remote, 0)
        _verify(context, wanted, part, url)


def _require_size(wanted: Wanted, remote: Remote) -> None:
    if wanted.size is not None and remote.size not in (None, wanted.size):
        raise Untrusted(
            f"{plain(remote.url)} has {remote.size} bytes, not the {wanted.size} that were announced",
            hint="the file changed or was tampered with: calotype marketplace catalog update, or try later",
        )
    if (remote.size or 0) > MAX_SIZE:
        raise InvalidInput(
            f"{plain(remote.url)} has {human_size(remote.size)}: no image is as large"
        )


def _receive(context: Context, wanted: Wanted, part: "_Part", remote: Remote, start: int) -> None:
    """Append to a part what is missing; what nobody could continue is not kept."""
    try:
        _append(context, wanted, part, remote, start)
    except BaseException:
        if remote.size is None:
            part.remove()
        raise


def _append(context: Context, wanted: Wanted, part: "_Part", remote: Remote, start: int) -> None:
    known = wanted.size or remote.size
    limit = known or MAX_SIZE
    with part.growing(remote, start) as grow:
        _require_room(part.path, SPARE if known is None else known - start)
        with context.progress.phase(f"downloading {wanted.name}", known) as advance:
            at = start
            advance(at)
            for block in remote.stream(start):
                if known is None and at // SYNC != (at + len(block)) // SYNC:
                    _require_room(part.path, SPARE)
                at += len(block)
                if at > limit:
                    raise Untrusted(
                        f"{plain(remote.url)} sends more than the {limit} bytes announced"
                    )
                grow(block)
                advance(len(block))


def _require_room(path: Path, missing: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if missing > free:
        raise InvalidInput(
            f"{human_size(missing)} are needed to fetch it, and {human_size(free)} are free",
            hint="make room, or set CALOTYPE_HOME to a directory with more",
        )


def _verify(context: Context, wanted: Wanted, part: "_Part", url: str) -> None:
    """Make a part that has the digest a whole file; remove any other."""
    digest = hashlib.new(wanted.algorithm)
    size = part.path.stat().st_size
    with (
        part.path.open("rb") as file,
        context.progress.phase("checking the download", size) as advance,
    ):
        while block := file.read(1 << 20):
            digest.update(block)
            advance(len(block))
    if digest.hexdigest() != wanted.digest.lower():
        part.remove()
        raise Untrusted(
            f"{plain(url)} has {wanted.algorithm} {digest.hexdigest()}, not {wanted.digest.lower()}: "
            "it was removed",
            hint="the file changed or was tampered with: calotype marketplace catalog update, or try later",
        )
    part.path.rename(part.whole)


@dataclass(frozen=True, slots=True)
class _State:
    """What is known of a part: the server's words, and as many bytes as survive a power cut."""

    url: str = ""
    size: int | None = None
    place: str = ""
    tag: str | None = None
    synced: int = 0
    boot: str = ""

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """The state that was written, or ``None``."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None


class _Part:
    """A file that is being fetched: ``whole`` is where it stands when it was verified."""

    def __init__(self, whole: Path) -> None:
        self.whole = whole
        self.path = whole.with_suffix(".part")
        self._beside = whole.with_suffix(".json")
        self.lock = f"download-{whole.name}"

    @property
    def state(self) -> _State:
        """What is known of it."""
        return _State.load(self._beside) or _State()

    @property
    def touched(self) -> float:
        """When something arrived last."""
        paths = (self.path, self.whole, self._beside)
        return max((p.stat().st_mtime for p in paths if p.exists()), default=0.0)

    def continued(self, remote: Remote) -> int:
        """How many bytes are here and can be kept, when the rest comes from ``remote``."""
        state = _State.load(self._beside)
        if state is None or not self.path.exists():
            return 0
        # Everything that was written is here unless the machine went down.
        here = self.path.stat().st_size
        here = here if state.boot == _boot() else min(here, state.synced)
        changed = remote.size != state.size or (
            remote.validator.contradicts(Validator(state.place, state.tag))
        )
        if changed:
            log.warning(
                "%s was changed since %s of it were fetched: it is fetched from the beginning",
                one_line(plain(remote.url)),
                human_size(here),
            )
            return 0
        return here if remote.ranges and remote.size is not None else 0

    @contextmanager
    def growing(self, remote: Remote, start: int) -> Iterator[Callable[[bytes], None]]:
        """Append to the first ``start`` bytes; all of it is durable at the end, however that comes."""
        if start == 0:
            self.remove()  # before the state: a state never speaks of another file's bytes
        state = _State(remote.url, remote.size, *remote.validator, start, _boot())
        self._write(state)
        with open(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
            file.truncate(start)
            file.seek(start)
            growing = _Growing(file, lambda synced: self._write(replace(state, synced=synced)))
            try:
                yield growing.append
            finally:
                growing.sync()

    def remove(self) -> None:
        """Remove everything of it."""
        for path in (self.path, self.whole, self._beside):
            path.unlink(missing_ok=True)

    def _write(self, state: _State) -> None:
        write_private(self._beside, json.dumps(asdict(state)).encode())


def _boot() -> str:
    """Which start of this machine it is."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(time.time())  # never the same: only what was synced counts


class _Growing:
    """A file that is appended to, and synced from time to time."""

    def __init__(self, file: BinaryIO, synced: Callable[[int], None]) -> None:
        self._file = file
        self._synced = synced
        self._since = 0

    def append(self, block: bytes) -> None:
        """Write a block."""
        self._file.write(block)
        self._since += len(block)
        if self._since >= SYNC:
            self.sync()

    def sync(self) -> None:
        """Make durable what was written, and then say so."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced(self._file.tell())
        self._since = 0
