"""The directory of a base that is not whole, and the life of the process that fills it.

data, map   the file, and what of it is there
socket      where the server speaks NBD
server      locked for as long as the server lives; the number of its process
users       locked, shared, by commands that are about to start a VM on it
hurry       there when somebody waits for the whole file
profile     what the boot has read, when it is over and none was known
stats.json  what was fetched so far
problem     why the server gave up
log         what the server printed
"""

import fcntl
import os
import shutil
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from calotype.config import Home, Settings
from calotype.machine.spec import LazyBase
from calotype.run import Limits, spawn, which

_POLL = 0.05
_BACKLOG = 512
_ENDING = 30.0  # seconds until a server that does not end is killed
_LOCK = struct.Struct("hhqqi4x")  # struct flock


@dataclass(frozen=True, slots=True)
class Partial:
    """The directory ``root``; it need not be there."""

    root: Path

    @classmethod
    def of(cls, home: Home, index: str) -> Self:
        """That of an Index."""
        return cls(home.bases / f"{index}.partial")

    @classmethod
    def all(cls, home: Home) -> list[Self]:
        """Those of this host."""
        return [cls(path) for path in sorted(home.bases.glob("*.partial"))]

    @property
    def index(self) -> str:
        """The Index."""
        return self.root.name.removesuffix(".partial")

    @property
    def base(self) -> LazyBase:
        """How a VM reaches it."""
        return LazyBase(self.root / "socket", self.index)

    def exists(self) -> bool:
        """Whether the base was begun."""
        return self.root.exists()

    def use(self) -> int:
        """Keep the server from ending, until the descriptor is closed or the process ends."""
        descriptor = _open(self.root / "users")
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return descriptor

    def unused(self) -> bool:
        """Whether no command is about to start a VM on it."""
        descriptor = _open(self.root / "users")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    def alive(self) -> bool:
        """Whether its server lives."""
        try:
            descriptor = os.open(self.root / "server", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:  # asked without taking it, so that nobody who wants it is disturbed
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK))
            return bool(_LOCK.unpack(answer)[0] != fcntl.F_UNLCK)
        finally:
            os.close(descriptor)

    def serve(self, home: Home) -> bool:
        """Start the server unless it lives (false); then its socket takes connections."""
        lock = _open(self.root / "server")
        try:
            try:
                fcntl.fcntl(lock, fcntl.F_OFD_SETLK, _lock(fcntl.F_WRLCK))
            except BlockingIOError:
                return False
            (self.root / "problem").unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                self._listen(listener)
                self._spawn(home, lock, listener.fileno())
        finally:
            os.close(lock)
        return True

    def stop(self) -> None:
        """End the server; what it has fetched stays."""
        deadline = time.monotonic() + _ENDING
        while self.alive():  # one that has just been started may not know its number yet
            self._signal(signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
            time.sleep(_POLL)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(OSError, ValueError):
            pidfd = os.pidfd_open(int((self.root / "server").read_text(encoding="ascii")))
            try:
                if self.alive():  # so that the number is still the server's
                    signal.pidfd_send_signal(pidfd, number)
            finally:
                os.close(pidfd)

    def remove(self) -> None:
        """End the server, and remove all that it has fetched."""
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    def _listen(self, listener: socket.socket) -> None:
        """Listen at the socket's name, which is taken over in one step."""
        directory = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            new = self.root / "socket.new"
            new.unlink(missing_ok=True)
            listener.bind(
                f"/proc/self/fd/{directory}/socket.new"
            )  # the kernel takes 107 bytes only
            new.chmod(0o666)  # a VM's own user connects; the directories above keep all others away
            listener.listen(_BACKLOG)
            new.rename(self.root / "socket")
        finally:
            os.close(directory)

    def _spawn(self, home: Home, lock: int, listener: int) -> None:
        with open(self.root / "log", "ab") as log:
            process = spawn(
                [
                    *(which("setsid"), "--fork", sys.executable, "-P", "-m", "calotype.daemon"),
                    *("keep", str(home.root), self.index, str(lock), str(listener)),
                ],
                limits=Limits(wall=None),
                stdout=log,
                stderr=log,
                env=_environment(home),
                pass_fds=(lock, listener),
            )
        process.wait()


def _environment(home: Home) -> dict[str, str]:
    """Ours; a store that is named relative to this directory is found from another one, too."""
    url: str = Settings.load(home.config).values["store.url"]
    local = bool(url) and ":" not in url
    return {**os.environ} | ({"CALOTYPE_STORE": os.path.abspath(url)} if local else {})


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _lock(kind: int) -> bytes:
    """The whole of a file, to be locked by an open descriptor: whoever inherits it holds the lock."""
    return _LOCK.pack(kind, os.SEEK_SET, 0, 0, 0)
