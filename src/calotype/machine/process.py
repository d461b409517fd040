"""The process of a VM. It inherits a lock, so that the kernel knows best whether it lives.

What a reboot or a kill leaves behind holds no lock, and so is never taken for a VM.
"""

import contextlib
import fcntl
import os
import select
import signal
from pathlib import Path
from typing import Self

from calotype.errors import TimedOut
from calotype.machine.channel import connect, peer
from calotype.machine.layout import Layout


class Process:
    """A live QEMU, held by a descriptor that never comes to mean another process."""

    def __init__(self, pidfd: int, pid: int) -> None:
        self._pidfd = pidfd
        self.pid = pid

    @classmethod
    def find(cls, layout: Layout) -> Self | None:
        """The process of the VM; ``None``: it does not run. A process that hangs is found too."""
        if not alive(layout):
            return None
        pid = _listener(layout.query) or _written(layout.pid)
        if pid is None:
            return None
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        # The lock is still held: so the descriptor is not that of a later process.
        if not alive(layout):
            os.close(pidfd)
            return None
        return cls(pidfd, pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self._pidfd)

    def wait(self, timeout: float) -> bool:
        """Wait until the process has ended; false after ``timeout`` seconds."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def kill(self) -> None:
        """Kill it, and wait until it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self.wait(60.0)


def hold(layout: Layout) -> int:
    """Take the lock; the descriptor is for the VM's process to inherit (it can only be read)."""
    layout.alive.touch(mode=0o600)
    descriptor = os.open(layout.alive, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def alive(layout: Layout) -> bool:
    """Whether a process holds the lock."""
    try:
        descriptor = os.open(layout.alive, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _listener(path: Path) -> int | None:
    """The process that listens on the socket, if it belongs to the owner of its directory."""
    try:
        with connect(path, 1.0) as client:
            pid, uid = peer(client)
            return pid if uid == path.parent.stat().st_uid else None
    except (OSError, TimedOut):
        return None


def _written(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
