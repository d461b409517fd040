"""``vm generalize`` of a stopped VM: what it leaves, refuses and keeps; the running one is in tests/vm."""

import io
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.used_vm import MIB, contents, edit, os_disk, used_vm, write

from calotype import cli, wire
from calotype.cli import inplace as commands
from calotype.config import Home
from calotype.disk.base import read
from calotype.engine import machines, storage
from calotype.engine.capture import CaptureRequest, capture_vm
from calotype.engine.generalize import inplace, sysprep, sysprep_preflight
from calotype.engine.generalize.inplace import generalize_vm
from calotype.engine.generalize.restore import list_points, restore, take_restore_point
from calotype.engine.generalize.steps import Steps
from calotype.engine.generalize.sysprep_preflight import Obstacle, Preflight
from calotype.engine.proof import look
from calotype.errors import GuestError, InvalidInput, NotAllowed, TimedOut
from calotype.guest import Proof
from calotype.guest import steps as all_steps
from calotype.machine.agent import Completed
from calotype.model import OsState, OsType, Verdict


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    return os_disk(tmp_path_factory.mktemp("used") / "os.raw")


@pytest.fixture
def context(tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("CALOTYPE_HOME", str(home))
    context = wire.build(home=Home(home))
    yield context
    context.close()


@pytest.fixture
def vm(context, disk):
    return used_vm(context, disk)


def files(context):
    return {path.stem for path in context.home.disks.iterdir()}


def raw(context, index):
    with closing(context.repository.open(index)) as disk:
        return read(disk, 0, disk.size)


def test_there_and_back(context, vm):
    before = contents(context, "web")
    report = generalize_vm(context, "web")
    made = context.catalog.vm("web")
    assert report.vm == made
    assert made.generalized
    assert report.proof
    assert report.proof.verdict is Verdict.GENERALIZED
    assert report.restore_point
    assert [point.id for point in list_points(context, "web")] == [report.restore_point.id]
    assert report.restore_point.reason == "before vm generalize"
    assert report.notes == ("the VM did not run: the guest's own tools were not asked",)
    assert b"CANARY" not in raw(context, made.os_disk.index)
    assert made.os_disk.id == vm.os_disk.id
    assert made.data_disks == vm.data_disks
    assert files(context) == {disk.file for disk in made.disks}

    with pytest.raises(NotAllowed, match="cannot start again") as refused:
        machines.start(context, "web")
    assert "vm restore web" in str(refused.value.hint)
    assert "vm capture web" in str(refused.value.hint)
    with pytest.raises(NotAllowed, match="cannot start again"):
        machines.restart(context, "web")
    with pytest.raises(NotAllowed, match="no state to go back to"):
        take_restore_point(context, "web", "a test")

    image = capture_vm(context, "web", CaptureRequest(name="golden")).image
    assert image.os_state is OsState.GENERALIZED
    assert image.verdict is Verdict.GENERALIZED
    assert [disk.lun for disk in image.disks] == [None, 0]

    restore(context, "web")
    assert contents(context, "web") == before
    assert not context.catalog.vm("web").generalized
    assert storage.check(context).ok
    acts = [
        (act.action, act.resource, act.detail["restorePoint"])
        for act in context.catalog.audit.list()
    ]
    of_point = ("vm web", report.restore_point.id)
    assert acts[:2] == [("vm.restore", *of_point), ("vm.generalize", *of_point)]
    assert context.catalog.audit.verify() is None


def test_again_is_nothing(context, vm):
    generalize_vm(context, "web")
    before = context.catalog.vm("web")
    report = generalize_vm(context, "web")
    assert report.already
    assert report.steps is None
    assert report.vm == before == context.catalog.vm("web")
    assert len(list_points(context, "web")) == 1


def test_after_a_restore_it_can_be_generalized_again(context, vm):
    before = contents(context, "web")
    generalize_vm(context, "web")
    restore(context, "web")
    generalize_vm(context, "web")
    assert context.catalog.vm("web").generalized
    restore(context, "web")
    assert contents(context, "web") == before


def test_a_dry_run_changes_nothing(context, vm):
    before, overlays = contents(context, "web"), files(context)
    indexes = context.repository.indexes()
    report = generalize_vm(context, "web", dry_run=True)
    assert report.steps
    would = {edit.path for step in report.steps.steps for edit in step.edits}
    assert {"/home/alice", "/etc/ssh/ssh_host_ed25519_key"} <= would
    assert (report.restore_point, report.proof) == (None, None)
    assert context.catalog.vm("web") == vm
    assert (contents(context, "web"), files(context)) == (before, overlays)
    assert context.repository.indexes() == indexes
    assert list_points(context, "web") == []


def test_what_cannot_be_generalized_is_refused_before_anything(context, vm):
    edit(context, vm.os_disk, "rm /etc/os-release")
    before = contents(context, "web")
    with pytest.raises(GuestError, match="cannot be generalized"):
        generalize_vm(context, "web")
    assert list_points(context, "web") == []
    assert contents(context, "web") == before


@pytest.fixture
def windows(context, vm, monkeypatch):
    """The VM, said to be a running Windows: what its pre-flight finds, Sysprep does, the proof sees."""

    class Windows:
        obstacles: tuple[Obstacle, ...] = ()
        verdict = Verdict.GENERALIZED
        ran = 0

        def preflight(self, _agent):
            return Preflight("C:\\Windows", "Windows Server", self.obstacles)

        def sysprep_vm(self, _context, _name, *, timeout, force):
            assert (timeout, force) == (3600.0, bool(self.obstacles))
            assert list_points(context, "web"), "the backup comes first"
            self.ran += 1
            write(context, vm.os_disk, 3 * MIB, 65_536, 0x5A)
            return sysprep.SysprepReport(product="Windows Server", obstacles=(), seconds=7.0)

        def prove(self, _context, disk):
            assert read(disk, 3 * MIB, 4096) == b"\x5a" * 4096
            return Proof(
                verdict=self.verdict, reasons=("State.ini says otherwise",), seen=cast("Any", None)
            )

    fake = Windows()
    context.catalog.update_vm(vm.id, os_type=OsType.WINDOWS.value)
    monkeypatch.setattr(inplace, "running", lambda _context, _name: Path("/nowhere"))
    monkeypatch.setattr(sysprep_preflight, "preflight", fake.preflight)
    monkeypatch.setattr(sysprep, "sysprep_vm", fake.sysprep_vm)
    monkeypatch.setattr(look, "prove", fake.prove)
    return fake


def test_windows_generalizes_itself_after_the_backup(context, vm, windows, capsys):
    before = contents(context, "web")
    assert generalize_vm(context, "web", dry_run=True).restore_point is None
    assert windows.ran == 0
    assert cli.run(["vm", "generalize", "web", "--yes"]) == 0
    assert "is generalized: Sysprep took 7 s" in capsys.readouterr().out
    made = context.catalog.vm("web")
    assert made.generalized
    assert made.disks == context.catalog.vm(vm.id).disks
    restore(context, "web")
    assert contents(context, "web") == before
    assert not context.catalog.vm("web").generalized


def test_a_windows_that_cannot_be_is_not_touched(context, windows):
    windows.obstacles = (Obstacle("BitLocker is on", "decrypt C:"),)
    assert generalize_vm(context, "web", dry_run=True).notes == ("BitLocker is on: decrypt C:",)
    with pytest.raises(NotAllowed, match="BitLocker is on"):
        generalize_vm(context, "web")
    assert (windows.ran, list_points(context, "web")) == (0, [])
    generalize_vm(context, "web", force=True)
    assert windows.ran == 1


def test_a_windows_that_is_not_general_after_all_is_not_called_so(context, vm, windows):
    before = contents(context, "web")
    windows.verdict = Verdict.UNKNOWN
    with pytest.raises(GuestError, match="looks Unknown: State") as refused:
        generalize_vm(context, "web")
    assert "vm restore web" in str(refused.value.hint)
    assert not context.catalog.vm("web").generalized
    restore(context, "web")
    assert contents(context, "web") == before


def test_a_windows_that_does_not_run_cannot_be(context, vm):
    context.catalog.update_vm(vm.id, os_type=OsType.WINDOWS.value)
    with pytest.raises(NotAllowed, match="is stopped"):
        generalize_vm(context, "web")
    assert list_points(context, "web") == []


def test_a_wrong_name_of_a_step_is_refused_before_anything(context, vm):
    with pytest.raises(InvalidInput, match="no step named typo"):
        generalize_vm(context, "web", Steps(disable=("typo",)))
    assert list_points(context, "web") == []


def test_a_result_that_is_not_general_does_not_take_the_disks_place(context, vm, monkeypatch):
    """A step whose check is blind is caught by the proof, which does not ask the step that ran."""
    before = contents(context, "web")
    proofs = []

    def prove(_context, disk):
        proofs.append(real(_context, disk))
        return replace(proofs[0], verdict=Verdict.MIXED, reasons=("users: alice is there",))

    real = look.prove
    monkeypatch.setattr(look, "prove", prove)
    with pytest.raises(GuestError, match="looks Mixed: users: alice is there") as refused:
        generalize_vm(context, "web")
    assert "calotype vm restore web" in str(refused.value.hint)
    assert proofs
    assert context.catalog.vm("web") == vm
    assert contents(context, "web") == before
    assert len(list_points(context, "web")) == 1
    restore(context, "web")
    assert contents(context, "web") == before


def test_a_step_that_does_nothing_is_found(context, vm, monkeypatch):
    lazy = [
        replace(s, perform=lambda _g: None) if s.name == "ssh-host-keys" else s
        for s in all_steps.STEPS
    ]
    monkeypatch.setattr(all_steps, "STEPS", tuple(lazy))
    before = contents(context, "web")
    with pytest.raises(GuestError, match="ssh-host-keys") as refused:
        generalize_vm(context, "web")
    assert "vm restore web" in str(refused.value.hint)
    assert contents(context, "web") == before
    assert not context.catalog.vm("web").generalized


def test_what_the_user_leaves_out_is_the_users(context, vm):
    report = generalize_vm(context, "web", Steps(disable=("ssh-host-keys",)))
    assert report.proof
    assert report.steps
    assert report.proof.verdict is Verdict.MIXED
    assert report.steps.disabled == ("ssh-host-keys",)
    (act,) = context.catalog.audit.list(1)
    assert act.detail["leftOut"] == ["ssh-host-keys"]
    assert act.detail["verdict"] == "Mixed"
    assert context.catalog.vm("web").generalized


class Agent:
    """A guest's agent that knows some tools, and writes down what is run."""

    def __init__(self, answers):
        self.answers, self.ran = answers, []

    def run(self, argv, *, timeout):
        assert timeout == 5.0
        assert argv[:2] == ["/bin/sh", "-c"]
        command = argv[3:]
        self.ran.append(command)
        answer = self.answers.get(command[0], Completed(127, b"", b""))
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_the_guests_tools_run_in_the_order_that_works():
    agent = Agent({"waagent": Completed(0, b"done", b""), "cloud-init": Completed(1, b"", b"no")})
    chosen = [step.command for step in all_steps.select({"debian"}) if step.command]
    done = list(inplace._run(cast("Any", agent), chosen, 5.0))
    assert agent.ran == [
        ["waagent", "-force", "-deprovision+user"],
        ["cloud-init", "clean", "--logs"],
    ]
    assert [(c.command[0], c.status, c.said) for c in done] == [
        ("waagent", 0, "done"),
        ("cloud-init", 1, "no"),
    ]


@pytest.mark.parametrize("error", [GuestError("gone"), TimedOut("hangs")])
def test_a_tool_that_ends_its_own_channel_stops_nothing(error):
    agent = Agent({"waagent": error})
    tools = [("waagent", "-force"), ("cloud-init", "clean")]
    done = list(inplace._run(cast("Any", agent), tools, 5.0))
    assert [command[0] for command in agent.ran] == ["waagent", "cloud-init"]
    assert [(c.command[0], c.status) for c in done] == [("waagent", None)]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("command", [["generalize", "web"], ["restore", "web"]])
def test_somebody_who_is_there_is_asked(context, vm, monkeypatch, capsys, command):
    take_restore_point(context, "web", "a test")
    before = contents(context, "web")
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    assert cli.run(["vm", *command]) != 0
    assert "Go on? [y/N]" in capsys.readouterr().err
    assert contents(context, "web") == before
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert cli.run(["vm", *command]) == 0


@pytest.mark.parametrize("command", [["generalize", "web"], ["restore", "web"]])
def test_where_nobody_can_be_asked_it_must_be_said(context, vm, monkeypatch, capsys, command):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert cli.run(["vm", *command]) == 2
    assert "--yes" in capsys.readouterr().err


def test_the_commands(context, vm, capsys):
    def said(*command):
        assert cli.run(["vm", *command]) == 0
        return capsys.readouterr().out

    out = said("generalize", "web", "--dry-run")
    assert "  removed  /home/alice\n" in out
    assert out.endswith("nothing was done\n")
    out = said("generalize", "web", "--yes")
    point = list_points(context, "web")[0]
    assert "generalized VM 'web': " in out
    assert f"calotype vm restore web (restore point {point.id})" in out
    assert said("generalize", "web", "--yes") == "VM 'web' is generalized already\n"
    assert "stopped, generalized" in said("list")
    assert "stopped, generalized" in said("show", "web")
    assert "before vm generalize" in said("restore-point", "list", "web", "-o", "tsv")
    assert cli.run(["vm", "start", "web"]) != 0
    assert "calotype vm restore web" in capsys.readouterr().err
    assert "is back at" in said("restore", "web", "--yes", "--restore-point", point.id)
    assert "generalized" not in said("list")
    assert '"reason": "mine"' in said(
        "restore-point", "create", "web", "--reason", "mine", "-o", "json"
    )
    assert said("restore-point", "delete", "web", point.id) == ""
    assert [p.reason for p in list_points(context, "web")] == ["mine"]
    assert '"detached": []' in said("restore", "web", "--yes", "-o", "json")
    assert '"steps": {' in said("generalize", "web", "--yes", "-o", "json")


def test_what_a_tool_of_the_guest_said_cannot_steer_the_terminal(context, vm, capsys):
    report = generalize_vm(context, "web")
    commands._explain(replace(report, notes=("\x1b[2J",)))
    assert "\x1b" not in capsys.readouterr().out
