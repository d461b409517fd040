"""Sysprep over the guest agent. The other end is a stand-in that speaks QGA: nothing here is Windows."""

import base64
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_machine_talk import lines, listening

from calotype.engine.generalize import sysprep
from calotype.engine.generalize.sysprep_preflight import command, parse
from calotype.errors import GuestError, NotAllowed
from calotype.machine.agent import Agent
from calotype.machine.layout import Layout

APPX = (
    b"2026-01-02 03:04:05, Error                 SYSPRP Package Contoso.App_1.0_x64__abc was installed "
    b"for a user, but not provisioned for all users. This package will not function properly in the "
    b"sysprep image.\r\n"
    b"2026-01-02 03:04:05, Error                 SYSPRP Failed to remove apps for the current user: "
    b"0x80073cf2.\r\n"
)
OLD = b"2025-01-01 00:00:00, Error                 SYSPRP something of last year, 0x80070005\r\n"


def facts(**changes: Any) -> dict[str, Any]:
    """What the pre-flight's script says of a server that is ready."""
    ready = {
        "windows": r"C:\Windows",
        "product": "Windows Server 2022 Datacenter",
        "build": 20348,
        "state": "IMAGE_STATE_COMPLETE",
        "features": ["FileAndStorage-Services", "Web-Server"],
        "apps": [],
        "pending": None,  # as PowerShell writes an empty list that a function returned
        "bitlocker": [],
        "rearms": 1001,
        "skiprearm": 0,
        "role": 2,
        "upgraded": 0,
        "cdrom": 1,
        "answers": [],
        "running": 0,
        "failed": [],
    }
    return ready | changes


class StandIn:
    """A guest agent of a Windows that behaves as documented, and as told.

    ``ends`` is Sysprep's status after a few looks (None: it never ends), ``off`` whether it then shuts
    the VM down, ``log`` what it writes, ``deaf`` whether the agent dies when Sysprep has started.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.facts = facts()
        self.ends: int | None = 0
        self.shuts_down = True
        self.before = b""
        self.log = b""
        self.deaf = False
        self.started: dict[str, Any] | None = None
        self.off = False
        self._looks = 0
        self._kind: dict[int, str] = {}

    def serve(self, client: socket.socket) -> None:
        if self.deaf and self.started:
            return
        for request in lines(client):
            name, arguments = request["execute"], request.get("arguments", {})
            result = arguments["id"] if "sync" in name else self.answer(name, arguments)
            mark = b"\xff" if "sync" in name else b""
            client.sendall(mark + json.dumps({"return": result}).encode() + b"\n")

    def answer(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if name == "guest-exec":
            program = arguments["path"].rpartition("\\")[2]
            if program == "sysprep.exe":
                self.started = arguments
            pid = len(self._kind) + 1
            self._kind[pid] = program
            return {"pid": pid}
        assert name == "guest-exec-status", name
        program = self._kind[arguments["pid"]]
        if program == "sysprep.exe":
            self._looks += 1
            if self.ends is None or self._looks < 3:
                return {"exited": False}
            self.off = self.shuts_down and self.ends == 0
            return {"exited": True, "exitcode": self.ends}
        output = json.dumps(self.facts).encode() if program == "powershell.exe" else self._log()
        return {
            "exited": True,
            "exitcode": 0 if output else 1,
            "out-data": base64.b64encode(output).decode(),
        }

    def _log(self) -> bytes:
        return self.before + (self.log if self.started else b"")


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[StandIn]:
    stand_in = StandIn(Agent(tmp_path, patience=1.0))
    with listening(Layout(tmp_path).agent, stand_in.serve):
        yield stand_in


def run(guest: StandIn, *, timeout: float = 10.0, force: bool = False) -> sysprep.SysprepReport:
    return sysprep.run(
        guest.agent, lambda: guest.off, timeout=timeout, force=force, pause=0.01, grace=0.2
    )


def test_success_is_the_vms_shutdown(guest):
    report = run(guest)
    assert report.product == "Windows Server 2022 Datacenter"
    assert (report.obstacles, report.log_line) == ((), "")
    assert guest.started["path"] == r"C:\Windows\System32\Sysprep\sysprep.exe"
    assert guest.started["arg"] == ["/generalize", "/oobe", "/shutdown", "/mode:vm", "/quiet"]


def test_an_agent_that_dies_of_the_shutdown_is_no_failure(guest):
    guest.deaf = True

    def stopped() -> bool:
        return guest.started is not None

    agent = guest.agent
    report = sysprep.run(agent, stopped, timeout=10, pause=0.01, grace=0.2)
    assert report.log_line == ""


def test_failure_quotes_the_line_and_names_the_cure(guest):
    guest.ends, guest.log, guest.before = 1, APPX, OLD
    with pytest.raises(GuestError) as caught:
        run(guest)
    assert "failed (status 1)" in caught.value.message
    assert "Contoso.App_1.0_x64__abc was installed for a user" in caught.value.message
    assert "last year" not in caught.value.message
    assert caught.value.hint is not None
    assert "Remove-AppxPackage" in caught.value.hint
    assert "restore" in caught.value.hint


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        (
            b"SYSPRP BitLocker-Sysprep: BitLocker is on for the OS volume. (0x80310039)",
            "BitLocker is on",
        ),
        (b"SYSPRP Exit code of RemoveAllApps thread was 0x3cf2.", "0x80073cf2"),
        (b"SYSPRP LaunchDll: returned error code 0x80070005", "access was denied"),
        (b"SYSPRP RunExternalDlls: error 0xc004d307", "rearmed"),
        (
            b"SYSPRP Sysprep_Clean_Validate_Opk: reserved storage in use 0x800F0975",
            "reserved storage",
        ),
    ],
)
def test_known_causes_are_translated(guest, line, meaning):
    guest.ends = 1
    guest.log = b"2026-01-02 03:04:05, Error                 " + line + b"\r\n"
    with pytest.raises(GuestError, match=meaning):
        run(guest)


def test_control_characters_of_the_log_are_written_out(guest):
    guest.ends = 1
    guest.log = b"2026-01-02 03:04:05, Error                 SYSPRP \x1b]0;own\x07\r\n"
    with pytest.raises(GuestError) as caught:
        run(guest)
    assert caught.value.message.isprintable()
    assert "\\u001b" in caught.value.message


def test_an_end_without_a_shutdown(guest):
    guest.shuts_down, guest.log = False, APPX
    with pytest.raises(GuestError, match="ended, but the VM was not shut down: a Store app"):
        run(guest)


def test_a_hang_ends_with_the_limit(guest):
    guest.ends, guest.log = None, APPX
    with pytest.raises(GuestError, match=r"did not end in time.*Contoso"):
        run(guest, timeout=0.5)


def test_an_agent_that_dies_midway_and_a_vm_that_goes_on(guest):
    guest.deaf = True
    with pytest.raises(GuestError, match="did not end in time"):
        run(guest, timeout=0.5)


def test_an_error_that_sysprep_went_on_after_is_reported(guest):
    guest.log = b"2026-01-02 03:04:05, Error                 SYSPRP a small thing\r\n"
    assert "a small thing" in run(guest).log_line


# The pre-flight


@pytest.mark.parametrize(
    ("changes", "what", "cure", "fatal"),
    [
        ({"apps": ["Contoso.App_1.0"]}, "Contoso.App_1.0", "Remove-AppxPackage", True),
        ({"apps": "Contoso.App_1.0"}, "Contoso.App_1.0", "Remove-AppxPackage", True),
        ({"pending": "servicing"}, "Component Based Servicing", "restart Windows", True),
        ({"pending": ["update", "renames"]}, "Windows Update", "restart Windows", True),
        ({"bitlocker": ["C:"]}, "BitLocker is on", "manage-bde", True),
        ({"rearms": 0}, "rearmed", "SkipRearm", True),
        ({"upgraded": 1}, "upgraded", "clean installations", True),
        ({"running": 1}, "another Sysprep", "ended", True),
        ({"features": ["AD-Certificate"]}, "Active Directory Certificate Services", "remove", True),
        ({"features": ["DHCP"]}, "DHCP Server", "remove the role", False),
        ({"features": ["Hyper-V"]}, "virtual networks", "virtual networks", False),
        ({"role": 5}, "domain controller", "demote", True),
        ({"role": 3}, "member of a domain", "leave the domain", False),
        ({"answers": [r"C:\Windows\Panther\unattend.xml"]}, "unattend.xml", "remove", False),
        ({"cdrom": 4}, "Start=4", "cdrom", False),
        ({"failed": ["apps"]}, "could not be looked at: apps", "own tools", False),
    ],
)
def test_each_obstacle_has_its_cure(changes, what, cure, fatal):
    found = parse(json.dumps(facts(**changes)).encode())
    first = found.obstacles[0]
    assert what in first.what
    assert cure in first.cure
    assert first.fatal is fatal
    assert bool(found.fatal) is fatal


def test_a_rearm_that_is_skipped_needs_no_count():
    assert parse(json.dumps(facts(rearms=0, skiprearm=1)).encode()).obstacles == ()


def test_a_fatal_obstacle_refuses_before_sysprep_starts(guest):
    guest.facts = facts(bitlocker=["C:"], apps=["A", "B"])
    with pytest.raises(NotAllowed) as caught:
        run(guest)
    assert guest.started is None
    assert "BitLocker" in caught.value.message
    assert "A, B" in caught.value.message
    assert "manage-bde" in (caught.value.hint or "")


def test_force_tries_all_the_same(guest):
    guest.facts = facts(bitlocker=["C:"])
    report = run(guest, force=True)
    assert [obstacle.fatal for obstacle in report.obstacles] == [True]


def test_a_warning_does_not_stop_it(guest):
    guest.facts = facts(role=3)
    assert [obstacle.fatal for obstacle in run(guest).obstacles] == [False]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"no JSON",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"windows": "C:\\\\Windows\\\\..\\\\x"}',
        b'{"windows": 7}',
        b"\xff\xfe",
    ],
)
def test_nonsense_of_the_guest_is_an_error_of_the_guest(answer):
    with pytest.raises(GuestError):
        parse(answer)


def test_strange_kinds_of_values_are_passed_over():
    strange = {name: {"a": [1]} for name in facts() if name not in ("windows", "product")}
    assert parse(json.dumps(facts(**strange)).encode()).obstacles == ()
    assert parse(json.dumps(facts(apps=["\x1b[2J"] * 9)).encode()).obstacles[0].what.isprintable()


def test_a_preflight_that_fails_says_why(guest):
    guest.facts = {}  # no output, so a status of 1 would come; here: an empty object
    with pytest.raises(GuestError, match="where Windows is"):
        run(guest)


def test_the_command_line_is_one_that_windows_takes():
    argv = command()
    assert argv[0] == "powershell.exe"
    assert sum(len(word) + 3 for word in argv) < 32_000  # CreateProcess takes 32,767
    script = base64.b64decode(argv[-1]).decode("utf-16-le")
    for left, right in ("{}", "()", "[]"):
        assert script.count(left) == script.count(right)
    for name in facts():
        assert f"\n{name} = " in script or f"$facts.{name} = " in script
