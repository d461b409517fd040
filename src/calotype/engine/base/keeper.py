"""The process that looks after one partial base: it outlives the command that started it.

It holds the listening socket, so that a filler that dies is replaced without a VM losing its way. When the
base is whole it gets its final name, each running VM is put on the file, and both processes end. It reads
nothing that the store or a guest has written, but for a boot profile, which is checked.
"""

import logging
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from calotype.config import Home, Settings
from calotype.engine.base.partial import Partial
from calotype.engine.operation import lock
from calotype.errors import CalotypeError
from calotype.run import Limits, Sandbox, kill_group, spawn

if TYPE_CHECKING:  # its imports take longer than a filler needs to start
    from calotype.engine.base.bases import Base
    from calotype.engine.context import Context
    from calotype.machine import DiskSpec

log = logging.getLogger("calotype.base")

_TICK = 0.5  # seconds
_AGAIN = 15.0  # seconds until VMs that a failing store has stopped go on
_SLOWEST = 30.0  # seconds between two starts of a filler that keeps dying
_ENDING = 10.0  # seconds that a filler may take to end
_OPEN_FILES = 4096

#: What a client of a remote store reads of the host.
_RESOLVE = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl", "/etc/pki")


class Keeper:
    """Looks after the base of ``index``; ``build`` makes the context, once it is needed."""

    def __init__(
        self, home: Home, index: str, listener: int, build: "Callable[[], Context]"
    ) -> None:
        self._home = home
        self._index = index
        self._listener = listener
        self._build = build
        self._partial = Partial.of(home, index)
        self._inode = self._partial.root.stat().st_ino
        self._base = home.bases / f"{index}.raw"
        self._whole = False
        self._resume_at: float | None = None

    @cached_property
    def context(self) -> "Context":
        """This installation."""
        return self._build()

    def run(self) -> None:
        """Until the base is whole and every VM is on it, or nobody needs it any more."""
        wait = 0.1
        while self._wanted():
            started = time.monotonic()
            with self._filler() as filler:
                if self._attend(filler):
                    return
            lived = time.monotonic() - started
            wait = 0.1 if lived > _SLOWEST else min(wait * 2, _SLOWEST)
            log.warning("the filler of %s ended; a new one starts", self._index)
            time.sleep(wait)

    def _attend(self, filler: "subprocess.Popen[bytes]") -> bool:
        """Do what the filler says; true when there is nothing left to do, false when it died."""
        assert filler.stdout is not None  # noqa: S101 (a pipe; for the type checker)
        heard = b""
        with selectors.DefaultSelector() as selector:
            selector.register(filler.stdout, selectors.EVENT_READ)
            while self._wanted():
                if selector.select(_TICK):
                    data = os.read(filler.stdout.fileno(), 4096)
                    if not data:
                        return False
                    *said, heard = (heard + data).split(b"\n")
                    for word in said:
                        self._hear(word[:64])
                    heard = heard[-64:]
                if self._whole and self._hand_over():
                    return True
                if self._resume_at is not None and time.monotonic() > self._resume_at:
                    self._resume()
        return True

    def _hear(self, word: bytes) -> None:
        if word == b"whole":
            if not self._base.exists():
                self._publish()
            self._whole = True
        elif word == b"profile":
            with suppress(CalotypeError, OSError):
                self._keep_profile()
        elif word == b"stalled" and self._resume_at is None:
            self._resume_at = time.monotonic() + _AGAIN

    def _publish(self) -> None:
        from calotype.engine.base.bases import publish  # noqa: PLC0415 (see above)

        publish(self._partial.root / "data", self._base)

    def _keep_profile(self) -> None:
        from calotype.store import profile  # noqa: PLC0415 (see above)

        path = self._partial.root / "profile"
        if path.stat().st_size <= profile.MAX_ENCODED:
            repository = self.context.repository
            extents = profile.decode(path.read_bytes(), repository.size(self._index))
            repository.keep_boot_profile(self._index, extents)

    def _hand_over(self) -> bool:
        """Put every VM on the file; true when none is left and none can come."""
        if not self._each(self.context.driver.hand_over, self._base):
            return False
        with lock(self._home, f"base-{self._index}"):
            if not self._partial.unused():
                return False
            # A VM that was started meanwhile has told the catalogue before it let go of the base.
            if not self._each(self.context.driver.hand_over, self._base):
                return False
            shutil.rmtree(self._partial.root, ignore_errors=True)
        return True

    def _resume(self) -> None:
        """Let VMs go on that wait for a store; they stop again if it still fails."""
        self._resume_at = None
        self._each(self.context.driver.reconnect, self._partial.base)

    def _each(self, do: "Callable[[Path, DiskSpec], None]", base: "Base") -> bool:
        """Do something with each disk on this base; false when a VM was busy."""
        from calotype.engine.base.bases import disk_specification  # noqa: PLC0415 (see above)

        done = True
        for disk in self.context.system.every_disk():
            if disk.index != self._index or disk.vm_id is None:
                continue
            try:
                spec = disk_specification(self.context, disk, base)
                do(self.context.vm_path(disk.vm_id), spec)
            except (CalotypeError, OSError) as error:
                log.info("disk %s: %s", disk.id, error)
                done = False
        return done

    def _wanted(self) -> bool:
        """Whether the directory is still there."""
        try:
            return self._partial.root.stat().st_ino == self._inode
        except OSError:
            return False

    @contextmanager
    def _filler(self) -> "Iterator[subprocess.Popen[bytes]]":
        """A filler; at the end it is told to end, and writes down what it has."""
        process = spawn(
            [sys.executable, "-P", "-m", "calotype.daemon", "fill", *self._arguments()],
            sandbox=self._sandbox(),
            limits=Limits(wall=None, open_files=_OPEN_FILES),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.stderr.buffer,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            pass_fds=(self._listener,),
        )
        with process:
            try:
                yield process
            finally:
                assert process.stdin is not None  # noqa: S101 (a pipe; for the type checker)
                process.stdin.close()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_ENDING)
                kill_group(process)

    def _arguments(self) -> list[str]:
        return [str(self._home.root), self._index, str(self._listener)]

    def _sandbox(self) -> Sandbox:
        """What a filler sees: the interpreter, the store, the network, the base's directory."""
        code = {sys.prefix, sys.base_prefix, *sys.path}
        seen = [Path(path) for path in code] + [self._home.store, self._home.config, self._base]
        seen += [*map(Path, _RESOLVE), *self._local_store()]
        read_only = [p for p in seen if p.exists() and not p.is_relative_to("/usr")]
        lookup = self._home.cache / "lookup"  # what it says is verified when it is used
        lookup.mkdir(mode=0o700, exist_ok=True)
        read_write = [self._partial.root, lookup]
        return Sandbox(
            read_only={str(path): str(path) for path in sorted(read_only)},
            read_write={str(path): str(path) for path in read_write},
            network=True,
            environment=True,
        )

    def _local_store(self) -> list[Path]:
        url: str = Settings.load(self._home.config).values["store.url"]
        path = Path(url.removeprefix("file://"))
        return [path] if path.is_absolute() else []


def keep(home: Home, index: str, held: int, listener: int, build: "Callable[[], Context]") -> None:
    """Look after a base; ``held`` is the lock that says so, which falls with this process."""
    signal.signal(signal.SIGTERM, _terminate)
    os.ftruncate(held, 0)
    os.pwrite(held, str(os.getpid()).encode(), 0)
    keeper = Keeper(home, index, listener, build)
    with suppress(KeyboardInterrupt):
        keeper.run()


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise KeyboardInterrupt
