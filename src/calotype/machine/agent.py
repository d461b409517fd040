"""The QEMU guest agent of a running VM. What it says is the guest's word, no more."""

import base64
import contextlib
import itertools
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from calotype.errors import Conflict, GuestError, TimedOut, ToolFailed
from calotype.machine.channel import Channel, connect
from calotype.machine.layout import Layout
from calotype.machine.qmp import Qmp

#: Bytes of a file moved by one call to the agent.
_BLOCK = 1 << 20

#: What helps when no agent answers.
HINT = "install and enable qemu-guest-agent in the guest, or wait until it has booted"


class Completed(NamedTuple):
    """How a command in the guest ended: its status (negative: the signal), and what it printed."""

    status: int
    stdout: bytes
    stderr: bytes


class Conversation(Channel):
    """A connection to an agent that is known to listen."""

    def __init__(self, path: Path, timeout: float) -> None:
        with _as_guest_error():
            client = connect(path, timeout)
        super().__init__(client, "the guest agent")
        try:
            self._synchronise(time.monotonic() + timeout)
        except BaseException:
            self.close()
            raise

    def send(self, message: bytes, deadline: float) -> None:
        """Send ``message``; every failure is the guest's."""
        with _as_guest_error():
            super().send(message, deadline)

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next answer; every failure is the guest's."""
        with _as_guest_error():
            return super().receive(deadline)

    def _synchronise(self, deadline: float) -> None:
        # 0xff ends a half-read command of an earlier client; the token tells stale answers apart.
        token = secrets.randbits(53)
        request = {"execute": "guest-sync-delimited", "arguments": {"id": token}}
        self.send(b"\xff" + json.dumps(request).encode() + b"\n", deadline)
        while self.receive(deadline).get("return") != token:
            pass

    def execute(
        self, command: str, arguments: dict[str, Any] | None = None, *, timeout: float = 10.0
    ) -> Any:
        """Run ``command`` of the agent and return its result.

        Raises:
            GuestError: the agent refused, or did not answer within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        self.tell(command, arguments, deadline)
        answer = self.receive(deadline)
        if "return" in answer:
            return answer["return"]
        error = answer.get("error")
        reason = error.get("desc") if isinstance(error, dict) else "no reason given"
        raise GuestError(f"the guest agent refused {command}: {reason}")

    def tell(self, command: str, arguments: dict[str, Any] | None, deadline: float) -> None:
        """Send ``command`` and do not wait for an answer."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        self.send(json.dumps(request).encode() + b"\n", deadline)


def connected(layout: Layout) -> bool:
    """Whether a process in the guest has opened the agent's channel; false when the VM is off."""
    try:
        with Qmp.open(layout.query) as qmp:
            entries = qmp.execute("query-chardev")
    except (ToolFailed, OSError):
        return False
    return any(entry["label"] == "agent" and entry["frontend-open"] for entry in entries)


class Agent:
    """The guest agent of the VM in ``directory``; each call is a conversation of its own.

    Every call raises :class:`GuestError` when no agent answers within ``patience`` seconds.
    """

    def __init__(self, directory: Path, *, patience: float = 10.0) -> None:
        self._layout = Layout(directory)
        self._patience = patience

    @contextlib.contextmanager
    def conversation(self, patience: float | None = None) -> Iterator[Conversation]:
        """Talk to the agent; others wait meanwhile.

        Raises:
            GuestError: no agent answers, or the VM does not run.
        """
        patience = self._patience if patience is None else patience
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._layout.lock(patience + 10.0, "agent.lock"))
                talk = stack.enter_context(Conversation(self._layout.agent, patience))
            except OSError:
                raise GuestError("the VM does not run") from None
            except Conflict as error:
                raise GuestError("another command talks to the guest agent") from error
            yield talk

    def ping(self, timeout: float = 3.0) -> bool:
        """Whether an agent answers within ``timeout`` seconds; false also when the VM is off."""
        try:
            with self.conversation(timeout):
                return True
        except GuestError:
            return False

    def wait(self, timeout: float) -> None:
        """Wait until an agent answers.

        Raises:
            GuestError: none did within ``timeout`` seconds, or the VM does not run.
        """
        deadline = time.monotonic() + timeout
        while True:
            # Short conversations leave room for other commands.
            left = deadline - time.monotonic()
            try:
                with self.conversation(min(3.0, max(0.1, left))):
                    return
            except GuestError as error:
                if not isinstance(error.__cause__, TimedOut) or left <= 3.0:
                    raise

    def run(
        self, argv: Sequence[str], *, timeout: float = 60.0, stdin: bytes | None = None
    ) -> Completed:
        """Run a command in the guest to its end, as root.

        Raises:
            GuestError: there is no such command, or the agent may not run any.
            TimedOut: it runs longer than ``timeout`` seconds (and goes on running).
        """
        deadline = time.monotonic() + timeout
        arguments: dict[str, Any] = {
            "path": argv[0],
            "arg": list(argv[1:]),
            "capture-output": True,
        }
        if stdin is not None:
            arguments["input-data"] = base64.b64encode(stdin).decode("ascii")
        with self.conversation() as talk:
            pid = _field(talk.execute("guest-exec", arguments), "pid", int)
        for pause in itertools.chain((0.02, 0.05, 0.1, 0.2), itertools.repeat(0.4)):
            with self.conversation() as talk:
                status = talk.execute("guest-exec-status", {"pid": pid})
            if _field(status, "exited", bool):
                code = status.get("exitcode", -status.get("signal", 1))
                return Completed(int(code), _data(status, "out-data"), _data(status, "err-data"))
            if time.monotonic() + pause > deadline:
                break
            time.sleep(pause)  # the agent has no event for a command's end
        raise TimedOut(f"{argv[0]} in the guest did not end within {timeout:g} s")

    def script(
        self, script: str, *, timeout: float = 60.0, shell: Sequence[str] = ("/bin/sh", "-s")
    ) -> Completed:
        """Run a shell script in the guest, as root; see :meth:`run`."""
        return self.run(shell, timeout=timeout, stdin=script.encode())

    def read_file(self, path: str, *, limit: int = 16 << 20) -> bytes:
        """The bytes of a file in the guest.

        Raises:
            GuestError: there is no such file, or it is longer than ``limit`` bytes.
        """
        content = bytearray()
        with self.conversation() as talk, _opened(talk, path, "r") as handle:
            while True:
                answer = talk.execute("guest-file-read", {"handle": handle, "count": _BLOCK})
                content += _data(answer, "buf-b64")
                if len(content) > limit:
                    raise GuestError(f"{path} in the guest is longer than {limit} bytes")
                if answer.get("eof") or not answer.get("count"):
                    return bytes(content)

    def write_file(self, path: str, content: bytes) -> None:
        """Write a file in the guest, as root."""
        with self.conversation() as talk, _opened(talk, path, "w") as handle:
            for offset in range(0, len(content), _BLOCK):
                block = base64.b64encode(content[offset : offset + _BLOCK]).decode("ascii")
                arguments = {"handle": handle, "buf-b64": block}
                written = _field(talk.execute("guest-file-write", arguments), "count", int)
                if written != len(content[offset : offset + _BLOCK]):
                    raise GuestError(f"{path} in the guest was not written to its end")
            talk.execute("guest-file-flush", {"handle": handle})

    def interfaces(self) -> list[dict[str, Any]]:
        """The guest's network interfaces, as the agent lists them."""
        with self.conversation() as talk:
            answer = talk.execute("guest-network-get-interfaces")
        return answer if isinstance(answer, list) else []

    def shutdown(self, mode: str = "powerdown") -> None:
        """Ask the guest to power off, ``halt`` or ``reboot``; returns before it has done so."""
        with self.conversation() as talk:
            talk.tell("guest-shutdown", {"mode": mode}, time.monotonic() + self._patience)
            try:
                answer = talk.receive(time.monotonic() + 0.3)
            except GuestError:
                return  # only a refusal is answered
            if "error" in answer:
                raise GuestError(f"the guest refuses to {mode}: {answer['error']}")

    def thaw(self) -> None:
        """Thaw the guest's file systems; harmless when they are not frozen."""
        with self.conversation() as talk:
            talk.execute("guest-fsfreeze-thaw")


@contextlib.contextmanager
def _as_guest_error() -> Iterator[None]:
    try:
        yield
    except TimedOut as error:
        raise GuestError("the guest agent does not answer", hint=HINT) from error
    except ToolFailed as error:
        raise GuestError(error.message) from error


@contextlib.contextmanager
def _opened(talk: Conversation, path: str, mode: str) -> Iterator[int]:
    handle = talk.execute("guest-file-open", {"path": path, "mode": mode})
    if not isinstance(handle, int):
        raise GuestError("the guest agent gives no file handle")
    try:
        yield handle
    finally:
        with contextlib.suppress(GuestError):
            talk.execute("guest-file-close", {"handle": handle})


def _field(answer: Any, name: str, kind: type[int]) -> int:
    value = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(value, kind):
        raise GuestError(f"the guest agent's answer lacks {name}")
    return value


def _data(answer: Any, name: str) -> bytes:
    value = answer.get(name, "") if isinstance(answer, dict) else ""
    try:
        return base64.b64decode(value)
    except (ValueError, TypeError) as error:
        raise GuestError("the guest agent sends damaged data") from error
