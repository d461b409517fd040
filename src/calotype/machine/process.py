"""The process of a VM, found by the socket that it listens on: no pid is ever written down."""

import contextlib
import os
import select
import signal
import socket
from pathlib import Path
from typing import Self

from calotype.machine.channel import connect, peer


class Process:
    """A live QEMU, held by a descriptor that never comes to mean another process."""

    def __init__(self, pidfd: int, pid: int) -> None:
        self._pidfd = pidfd
        self.pid = pid

    @classmethod
    def find(cls, path: Path) -> Self | None:
        """The process that listens on the Unix socket at ``path``; ``None``: there is none.

        What a reboot or a kill left behind does not listen. Only the owner of the socket's
        directory counts.
        """
        try:
            client = connect(path)
        except OSError:
            return None
        with client:
            pid, uid = peer(client)
            if uid != path.parent.stat().st_uid:
                return None
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                return None
            # A connection that still stands: the descriptor is that of the process that listens.
            if _closed(client):
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


def _closed(client: socket.socket) -> bool:
    try:
        return not client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
