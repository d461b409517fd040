"""Talking to QEMU and to the agent: framing, stale answers, silence, hostile peers, long paths."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from calotype.errors import GuestError, TimedOut, ToolFailed
from calotype.machine.agent import Agent
from calotype.machine.channel import MAX_LINE, Channel, connect, peer
from calotype.machine.layout import Layout
from calotype.machine.qmp import Qmp


@contextmanager
def listening(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """A server on ``path`` that hands every client to ``serve``, one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    directory = os.open(path.parent, os.O_PATH)
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"/proc/self/fd/{directory}/{path.name}")
    server.listen(1)

    def loop() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                try:
                    serve(client)
                except OSError:
                    continue

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        os.close(directory)
        thread.join(10)
        assert not thread.is_alive()


def lines(client: socket.socket) -> Iterator[dict[str, Any]]:
    with client.makefile("rb") as file:
        for line in file:
            yield json.loads(line.rpartition(b"\xff")[2])


def reply(client: socket.socket, *messages: dict[str, Any]) -> None:
    client.sendall(b"".join(json.dumps(message).encode() + b"\r\n" for message in messages))


def monitor(client: socket.socket) -> None:
    """A monitor that knows a few commands, and speaks of events in between."""
    reply(client, {"QMP": {"version": {}, "capabilities": []}})
    for request in lines(client):
        number = request["id"]
        match request["execute"]:
            case "qmp_capabilities":
                reply(client, {"return": {}, "id": number})
            case "fail":
                reply(client, {"error": {"class": "X", "desc": "no way"}, "id": number})
            case "vanish":
                return
            case "silence":
                continue
            case name:
                reply(
                    client,
                    {"event": "STALE", "data": {"n": 1}},
                    {"return": "of another", "id": -1},
                    {"return": [name, request.get("arguments")], "id": number},
                    {"event": "DONE", "data": {"n": 2}},
                )


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """A directory whose name alone is longer than a socket's address may be."""
    path = tmp_path / ("x" * 200)
    path.mkdir()
    return path


def test_qmp_answers_events_and_refusals(long: Path) -> None:
    with listening(long / "m.sock", monitor), Qmp.open(long / "m.sock") as qmp:
        assert qmp.execute("echo", {"a": 1}) == ["echo", {"a": 1}]
        assert qmp.wait("DONE", timeout=5)["data"] == {"n": 2}
        assert qmp.wait("STALE", "DONE", timeout=5)["data"] == {"n": 1}  # it came before
        with pytest.raises(TimedOut):
            qmp.wait("DONE", timeout=0.01)
        qmp.execute("echo")
        with pytest.raises(TimedOut):
            qmp.wait("DONE", timeout=0.05, match=lambda data: data["n"] == 3)
        with pytest.raises(ToolFailed, match="refused fail: no way"):
            qmp.execute("fail")
        with pytest.raises(TimedOut):
            qmp.execute("silence", timeout=0.05)
        with pytest.raises(ToolFailed, match="gone away"):
            qmp.execute("vanish")


@pytest.mark.parametrize("greeting", [b"{}\n", b"hello\n", b"[1]\n", b'"QMP"\n', b"", b"{" * 9999])
def test_what_is_no_monitor_is_refused(tmp_path: Path, greeting: bytes) -> None:
    server = listening(tmp_path / "m.sock", lambda client: client.sendall(greeting))
    with server, pytest.raises(ToolFailed):
        Qmp.open(tmp_path / "m.sock", 5)


def test_deep_json_does_not_end_the_reader() -> None:
    ours, theirs = socket.socketpair()
    with theirs, Channel(ours, "it") as channel:
        theirs.sendall(b"[" * 100_000 + b"\n")
        with pytest.raises(ToolFailed, match="JSON"):
            channel.receive(time.monotonic() + 5)


def test_a_line_without_end_is_given_up() -> None:
    ours, theirs = socket.socketpair()

    def flood() -> None:
        block = b"x" * (1 << 20)
        try:
            while True:
                theirs.sendall(block)
        except OSError:
            pass

    thread = threading.Thread(target=flood)
    with Channel(ours, "it") as channel:
        thread.start()
        with pytest.raises(ToolFailed, match="without an end"):
            channel.receive(time.monotonic() + 60)
        assert len(channel._buffer) < MAX_LINE + (1 << 20)
    thread.join()
    theirs.close()


def test_nobody_a_file_and_a_link_are_no_sockets(tmp_path: Path) -> None:
    for name in ("none", "file", "link"):
        if name == "file":
            (tmp_path / name).touch()
        if name == "link":
            (tmp_path / name).symlink_to(tmp_path / "m.sock")
        refused = FileNotFoundError if name == "none" else ConnectionRefusedError
        with listening(tmp_path / "m.sock", monitor), pytest.raises(refused):
            connect(tmp_path / name)
        (tmp_path / "m.sock").unlink()


def test_a_full_queue_is_not_waited_for(tmp_path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s"))
    server.listen(0)
    with server:
        first = connect(tmp_path / "s")
        assert peer(first) == (os.getpid(), os.geteuid())
        started = time.monotonic()
        with pytest.raises(TimedOut):
            connect(tmp_path / "s", 0.2)
        assert 0.1 < time.monotonic() - started < 5
        first.close()


class FakeAgent:
    """An agent that keeps files in a dictionary, and runs one command: ``echo``."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[dict[str, Any]] = []
        self.stale = b""

    def serve(self, client: socket.socket) -> None:
        client.sendall(self.stale)
        for request in lines(client):
            self.requests.append(request)
            answer = self.answer(request["execute"], request.get("arguments", {}))
            if answer is not None:
                client.sendall((b"\xff" if "sync" in request["execute"] else b"") + answer)

    def answer(self, command: str, arguments: dict[str, Any]) -> bytes | None:
        match command:
            case "guest-sync-delimited":
                result: Any = arguments["id"]
            case "guest-exec":
                if arguments["path"] != "echo":
                    return b'{"error": {"class": "GenericError", "desc": "no such file"}}\n'
                result = {"pid": 7}
            case "guest-exec-status":
                result = {"exited": True, "exitcode": 3, "out-data": "b3V0"}
            case "guest-shutdown":
                return None
            case _:
                result = "nonsense"
        return json.dumps({"return": result}).encode() + b"\n"


@pytest.fixture
def fake(long: Path) -> Iterator[tuple[FakeAgent, Agent]]:
    served = FakeAgent()
    with listening(Layout(long).agent, served.serve):
        yield served, Agent(long, patience=2.0)


def test_agent_runs_commands(fake: tuple[FakeAgent, Agent]) -> None:
    served, agent = fake
    assert agent.ping(2.0)
    assert agent.run(["echo", "a"], stdin=b"in") == (3, b"out", b"")
    execute = next(r for r in served.requests if r["execute"] == "guest-exec")
    assert execute["arguments"] == {
        "path": "echo",
        "arg": ["a"],
        "capture-output": True,
        "input-data": "aW4=",
    }
    with pytest.raises(GuestError, match="no such file"):
        agent.run(["nothing"])
    agent.shutdown()
    agent.wait(2.0)


def test_agent_skips_what_earlier_clients_left(fake: tuple[FakeAgent, Agent]) -> None:
    served, agent = fake
    served.stale = b'{"return": 12}\n{"return": {}}\n{"half'
    assert agent.run(["echo"]).status == 3


@pytest.mark.parametrize("stale", [b"garbage\n", b"[]\n", b"\xfe\xfe\n"])
def test_an_agent_that_babbles_is_no_agent(fake: tuple[FakeAgent, Agent], stale: bytes) -> None:
    served, agent = fake
    served.stale = stale
    assert not agent.ping(1.0)
    with pytest.raises(GuestError):
        agent.run(["echo"])


def test_nonsense_of_the_guest_is_an_error_of_the_guest(fake: tuple[FakeAgent, Agent]) -> None:
    _, agent = fake
    with pytest.raises(GuestError):
        agent.read_file("/x")
    with pytest.raises(GuestError):
        agent.write_file("/x", b"")
    assert agent.interfaces() == []


def test_a_silent_or_absent_agent(tmp_path: Path) -> None:
    agent = Agent(tmp_path, patience=0.1)
    with pytest.raises(GuestError, match="does not run"):
        agent.run(["echo"])
    assert not agent.ping(0.1)
    Layout(tmp_path).run.mkdir()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(Layout(tmp_path).agent))
    server.listen(1)
    with server:
        with pytest.raises(GuestError, match="does not answer") as raised:
            agent.run(["echo"])
        assert raised.value.hint is not None
        with pytest.raises(GuestError):
            agent.wait(0.1)
        assert not agent.ping(0.1)  # the queue is full by now
