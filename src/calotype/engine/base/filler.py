"""The process that fills one base and serves it meanwhile; it runs in a sandbox.

It reads what is hostile until shown otherwise: the store's bytes, and the requests of QEMUs. So it sees the
store, the base's directory and its listening socket, and nothing else of this installation. It speaks to
its keeper in words on standard output, and ends when its standard input does.

What a guest reads comes first. If a boot profile is known, it is followed at once; if not, the boot is
recorded. The rest is fetched in the background when the boot is over and while no guest waits, or at full
speed when somebody waits for the whole file.
"""

import itertools
import json
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from calotype.disk.base import Extent
from calotype.disk.durable import write_private
from calotype.disk.nbd_server import NbdServer
from calotype.disk.view import RawSource
from calotype.engine.base.partial import Partial
from calotype.engine.context import Context
from calotype.errors import CalotypeError, InvalidInput, NotFound, StoreDamaged
from calotype.store import Repository, profile
from calotype.store.cache import uncached
from calotype.store.partial import PartialBase
from calotype.store.workers import spread

T = TypeVar("T")

log = logging.getLogger("calotype.base")

#: What the filler says to its keeper.
WHOLE, PROFILE, STALLED = "whole", "profile", "stalled"

_PATIENCE = 60.0  # seconds that a read waits for a store that does not answer
_GAP = 0.2  # seconds without a guest that waits, until the next batch of the rest is fetched
_SAVE = 2.0  # seconds between two maps
_TICK = 0.2
_AHEAD = 2 << 20  # bytes of a profile that a thread takes at once
_READERS = 4  # threads that follow a profile: a remote store answers late, but many at once
_BOOTED = 15.0  # seconds without new reads after which a boot is over, at least
_LONGEST = 600.0  # seconds that a boot is recorded at most
_LEAST = 1 << 20  # bytes; who has read less has not booted
_NICE = 10


def fill(context: Context, index: str, listener: socket.socket) -> None:
    """Serve the base of ``index``, and fill it, until standard input ends."""
    partial = Partial.of(context.home, index)
    path = context.base_path(index)
    if path.exists():  # whole already: VMs are still to be put on it
        whole = RawSource(path).open()
        NbdServer(listener, index, whole).start()
        say(WHOLE)
        while not ended():
            pass
        return
    lookup = context.home.cache / "lookup"
    # What is fetched is kept in the base itself, and no more is fetched than what it needs.
    repository = patiently(lambda: Repository(uncached(context.objects), lookup=lookup))
    base = patiently(lambda: repository.partial(index, partial.root))
    known = patiently(lambda: repository.boot_profile(index))
    filler = Filler(base, partial.root, known)
    server = NbdServer(listener, index, filler, ready=base.ready, note=filler.note)
    server.start()
    filler.run()


class Filler:
    """Fills the base in one directory; a :class:`calotype.disk.base.Disk` whose reads are patient."""

    def __init__(self, base: PartialBase, directory: Path, known: Sequence[Extent]) -> None:
        self._base = base
        self._directory = directory
        self._known = known
        self._seen = profile.Recorder(base.size)
        self._booting = True
        self._started = self._demand = self._fresh = time.monotonic()
        self._stop = threading.Event()
        self._early = 0
        self._followed = False

    @property
    def size(self) -> int:
        """The virtual size in bytes."""
        return self._base.size

    def extents(self) -> Iterator[Extent]:
        """As the Index tells them."""
        return iter(patiently(lambda: list(self._base.extents())))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read, and wait for a store that does not answer for a while."""
        if self._base.ready(offset, len(buffer)):
            self._base.read_into(offset, buffer)
            return
        self._demand = time.monotonic()
        try:
            patiently(lambda: self._base.read_into(offset, buffer))
        except Exception:
            say(STALLED)
            raise
        finally:
            self._demand = time.monotonic()

    def note(self, offset: int, length: int) -> None:
        """A guest reads."""
        before = self._seen.bytes
        self._seen.note(offset, length)
        if self._seen.bytes > before:
            self._fresh = time.monotonic()

    def close(self) -> None:
        """The base stays open until the process ends."""

    def run(self) -> None:
        """Fill until standard input ends."""
        for target in (self._follow, self._hydrate):
            threading.Thread(target=self._guarded, args=(target,), daemon=True).start()
        saved, told = time.monotonic(), False
        while not ended():
            if self._booting:
                self._watch_boot()
            if self._base.whole and not told:
                self._base.finish()
                told = True
                self._tell()
                say(WHOLE)
            elif time.monotonic() - saved > _SAVE:
                self._base.save()
                self._tell()
                saved = time.monotonic()
        self._stop.set()
        self._base.save()
        self._tell()

    def _guarded(self, work: Callable[[], None]) -> None:
        """Background work: what fails for now is tried again, and so is what is damaged, but not as often."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not self._stop.is_set():
            try:
                work()
            except StoreDamaged as error:
                log.warning("%s", error)
                write_private(self._directory / "problem", error.message.encode(), durable=False)
                self._stop.wait(_PATIENCE)
            except (CalotypeError, OSError) as error:
                log.warning("%s", error)
                self._stop.wait(1.0)
            else:
                return

    def _follow(self) -> None:
        """Fetch what a boot will read, in its order."""

        def work(next_runs: Callable[[], list[Extent] | None]) -> None:
            while (runs := next_runs()) is not None:
                self._base.fetch_all(runs)

        spread(_batches(self._known), work, _READERS)
        self._base.save()
        self._followed = True
        self._tell()

    def _hydrate(self) -> None:
        """Fetch all that is left, while no guest waits."""

        def work(next_region: Callable[[], int | None]) -> None:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
            while (region := next_region()) is not None:
                self._base.fill(region, lambda: self._wait(_GAP))

        self._wait(_GAP)
        self._early = self._base.fetched
        spread(self._base.regions, work)

    def _wait(self, quiet: float) -> None:
        """Until no guest has waited for so many seconds, or somebody waits for the whole."""
        while not (self._directory / "hurry").exists() and not self._stop.is_set():
            left = self._demand + quiet - time.monotonic()
            if left <= 0 and not self._booting:
                return
            self._stop.wait(_TICK if self._booting else min(left, _TICK))

    def _watch_boot(self) -> None:
        """Keep what was recorded, once the boot is over."""
        now = time.monotonic()
        lasted = now - self._started
        quiet = max(_BOOTED, lasted / 2)  # a slow host's guests pause for longer
        if now - self._fresh > quiet or lasted > _LONGEST or self._seen.full:
            if not self._known and self._seen.bytes >= _LEAST:
                extents = profile.encode(self._seen.extents())
                write_private(self._directory / "profile", extents, durable=False)
                say(PROFILE)
            self._booting = False

    def _tell(self) -> None:
        counts = {
            "size": self._base.size,
            "read": self._seen.bytes,  # by guests; each byte once
            "fetched": self._base.fetched,  # both after decompression
            "fetched_before_hydration": self._early or self._base.fetched,
            "profile": sum(extent.length for extent in self._known),
            "followed": self._followed,
            "whole": self._base.whole,
            "seconds": round(time.monotonic() - self._started, 3),
        }
        write_private(self._directory / "stats.json", json.dumps(counts).encode(), durable=False)


def _batches(runs: Sequence[Extent]) -> Iterator[list[Extent]]:
    """Runs of a profile in their order, some at once."""
    batch: list[Extent] = []
    for run in runs:
        for at in range(run.offset, run.end, _AHEAD):
            batch.append(Extent(at, min(_AHEAD, run.end - at), zero=False))
            if sum(piece.length for piece in batch) >= _AHEAD:
                yield batch
                batch = []
    if batch:
        yield batch


def patiently(work: Callable[[], T]) -> T:
    """The result of ``work``, tried again while the store does not answer."""
    deadline = time.monotonic() + _PATIENCE
    for attempt in itertools.count():
        try:
            return work()
        except (StoreDamaged, NotFound, InvalidInput):
            raise
        except (CalotypeError, OSError) as error:
            if time.monotonic() > deadline:
                raise
            log.warning("%s", error)
            time.sleep(min(0.1 * 2**attempt, 5.0))
    raise AssertionError


def say(word: str) -> None:
    """Tell the keeper."""
    with suppress(OSError):
        os.write(1, f"{word}\n".encode())


def ended() -> bool:
    """Whether the keeper has ended, or wants an end; waits for a moment."""
    return bool(select.select([0], [], [], _TICK)[0])
