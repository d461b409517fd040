"""Commands of Calotype that are killed (``SIGKILL``) right before their Nth call that changes a file.

A warm interpreter forks for each command, so that one takes no start-up. The fork hands every call of the
kernel that changes a file to its parent (seccomp's user notification: SQLite's calls and those of all
threads and children included), which counts them and kills at the Nth.
"""

import ctypes
import errno
import fcntl
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

#: Numbers on x86-64 of the calls that change a file, or make it durable.
CALLS = {
    "pwrite64": 18,
    "writev": 20,
    "fsync": 74,
    "fdatasync": 75,
    "ftruncate": 77,
    "rename": 82,
    "mkdir": 83,
    "rmdir": 84,
    "link": 86,
    "unlink": 87,
    "symlink": 88,
    "mkdirat": 258,
    "unlinkat": 263,
    "renameat": 264,
    "linkat": 265,
    "pwritev": 296,
    "renameat2": 316,
    "pwritev2": 328,
}
_OPENAT, _O_CREAT = 257, 0o100
_SECCOMP = 317
_NOTIF_RECV, _NOTIF_SEND = 0xC0502100, 0xC0182101
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_X86_64 = 0xC000003E
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended: its exit status, negative when it was killed, and its counted calls."""

    status: int
    calls: int

    @property
    def killed(self) -> bool:
        """Whether it got to its Nth call."""
        return self.status == -signal.SIGKILL


class Tripwire:
    """A warm interpreter that runs commands. A context manager."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def run(self, home: Path, *arguments: object, at: int = 0) -> Outcome:
        """Run a command; kill it right before its call number ``at`` (0: never)."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        order = {"home": str(home), "arguments": [str(a) for a in arguments], "at": at}
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the warm interpreter died"
        return Outcome(**json.loads(answer))


# -- the warm interpreter


def serve() -> None:
    """Run the commands that come on standard input, one a line."""
    for name in ("image", "vm", "inplace", "disk", "store", "exits"):
        importlib.import_module(f"calotype.cli.{name}")
    for name in ("calotype.catalog.migrate", "sqlalchemy.dialects.sqlite.pysqlite"):
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin:
        outcome = _one(**json.loads(line))
        answers.write(json.dumps({"status": outcome.status, "calls": outcome.calls}) + "\n")
        answers.flush()


def _one(home: str, arguments: list[str], at: int) -> Outcome:
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        _child(theirs, home, arguments)
    theirs.close()
    _data, (listener, *_), _flags, _address = socket.recv_fds(ours, 1, 1)
    ours.close()
    try:
        calls = _watch(child, listener, at)
        return Outcome(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), calls)
    finally:
        os.close(listener)


def _child(parent: socket.socket, home: str, arguments: list[str]) -> None:
    status = 70
    try:
        os.setsid()
        os.environ["CALOTYPE_HOME"] = home
        from calotype.cli import run  # noqa: PLC0415 (with the rest of Calotype, in the server alone)

        listener = _filtered()
        socket.send_fds(parent, [b"!"], [listener])
        os.close(listener)
        parent.close()
        status = run(arguments)
    finally:
        sys.stderr.flush()
        os._exit(status)


def _filtered() -> int:
    """Hand this process's calls to whoever reads the descriptor that is returned."""
    numbers = list(CALLS.values())
    program = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _X86_64), (_RETURN, 0, 0, _ALLOW)]
    program.append((_LOAD, 0, 0, 0))
    rest = len(numbers)
    for position, number in enumerate(numbers):
        program.append((_EQUAL, rest - position + 2, 0, number))
    program.append((_EQUAL, 0, 3, _OPENAT))
    program.append((_LOAD, 0, 0, 16 + 2 * 8))  # openat's flags
    program.append((_ANY_BIT, 0, 1, _O_CREAT))
    return _install([*program, (_RETURN, 0, 0, _NOTIFY), (_RETURN, 0, 0, _ALLOW)])


def _install(program: list[tuple[int, int, int, int]]) -> int:
    code = b"".join(struct.pack("<HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(buffer))
    if os.geteuid():
        _libc.prctl(
            38, 1, 0, 0, 0
        )  # no new privileges: who is not root must renounce them for this
    listener = _libc.syscall(_SECCOMP, 1, 1 << 3, ctypes.create_string_buffer(header))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(listener)


def _watch(child: int, listener: int, at: int) -> int:
    """Let the calls of a process and all its threads and children go on; kill it at one."""
    gone = os.pidfd_open(child)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(gone, select.POLLIN)
    calls = 0
    try:
        while True:
            ready: dict[int, Any] = dict(poll.poll())
            if ready.get(listener, 0) & select.POLLIN:
                calls += 1
                if calls != at:
                    _go_on(
                        listener
                    )  # after the kill too: what it started may be needed for it to end
                elif not _kill(listener, child):
                    at += 1  # whoever was about to call had ended
            elif gone in ready:
                return calls
            elif listener in ready:
                poll.unregister(listener)  # nobody is left who could call
    finally:
        os.close(gone)


def _kill(listener: int, child: int) -> bool:
    """Kill a process right before the call that waits; False when its caller has ended already."""
    call = _next(listener)
    if call is None:
        return False
    identifier, thread = call
    own = os.getpgid(thread) == child
    os.killpg(child, signal.SIGKILL)
    if not own:
        _answer(listener, identifier)
    return True


def _go_on(listener: int) -> None:
    call = _next(listener)
    if call is not None:
        _answer(listener, call[0])


def _next(listener: int) -> tuple[int, int] | None:
    """The call that waits, and the thread that makes it; None when that has ended."""
    call = bytearray(80)
    try:
        fcntl.ioctl(listener, _NOTIF_RECV, call)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
    identifier, thread = struct.unpack_from("<QI", call)
    return identifier, thread


def _answer(listener: int, identifier: int) -> None:
    """Let a call go on."""
    try:
        fcntl.ioctl(listener, _NOTIF_SEND, struct.pack("<QqiI", identifier, 0, 0, 1))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


if __name__ == "__main__":
    serve()
