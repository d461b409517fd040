"""One clone of a boot test: started in throw-away overlays, waited for, looked at, powered off."""

import hashlib
import os
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from calotype.disk import blank
from calotype.disk.view import OverlaySource
from calotype.engine import names
from calotype.engine.boot import bootwords
from calotype.engine.boot.bootlook import COLLECT, SETTLE, Login, Shell, host_keys
from calotype.engine.boot.bootreport import Artifact, CloneReport, excerpt, fingerprints, parse
from calotype.engine.context import Context
from calotype.engine.launch import uids
from calotype.engine.proof import look
from calotype.errors import CalotypeError, GuestError, NotAllowed, TimedOut, ToolFailed
from calotype.machine import Agent, DiskSpec, MachineSpec, ssh
from calotype.machine.agent import connected
from calotype.machine.layout import Layout
from calotype.machine.seed import Provisioning, build_seed
from calotype.machine.watch import Happening, Watch, watch
from calotype.model import GIB, Image, ImageDisk, Network, OsState

#: A guest that restarts more often than this is not starting.
_MAX_RESTARTS = 5
#: Bytes of a serial log that are looked through for a cause, and bytes of an artifact that are kept.
_RECENT, _KEPT = 1 << 16, {"serial-log": 1 << 20, "screenshot": 8 << 20}
#: Seconds for what a guest that has started does at once, when it does it at all.
_SOON = 30.0
#: Seconds to power off.
OFF = 120.0
#: What one clone's bar counts: it started, answered, was ready, was looked at, is off.
STEPS = 5


@dataclass(frozen=True, slots=True)
class Clone:
    """One clone: who it is to be, and where it lives."""

    letter: str
    id: str
    directory: Path
    hostname: str

    @classmethod
    def new(cls, context: Context, letter: str) -> "Clone":
        """A clone that is called by ``letter``."""
        identifier = names.new_id()
        hostname = f"clone-{letter.lower()}-{secrets.token_hex(3)}"
        return cls(letter, identifier, context.vm_path(identifier), hostname)


@dataclass(frozen=True)
class Test:
    """What the clones of one test share."""

    context: Context
    image: Image
    bases: Mapping[str, Path]  # by Index
    scratch: Path
    timeout: float
    keep: Path
    parallel: bool
    user: str = field(default_factory=lambda: f"boot-{secrets.token_hex(3)}")
    stop: threading.Event = field(default_factory=threading.Event)
    failed: threading.Event = field(default_factory=threading.Event)

    @property
    def generalized(self) -> bool:
        """Whether clones are told who they are."""
        return self.image.os_state is OsState.GENERALIZED

    @property
    def key(self) -> Path:
        """The throw-away user's private key."""
        return self.scratch / "key"


class Examination:
    """One clone's life: started, waited for, looked at, powered off."""

    def __init__(self, test: Test, clone: Clone, advance: Callable[[int], None]) -> None:
        self._test = test
        self._driver = test.context.driver
        self._clone = clone
        self._advance = advance
        self._report = CloneReport(name=clone.letter, vm_id=clone.id)
        self._port = 0
        self._begun = 0.0

    def run(self) -> CloneReport:
        """Examine the clone; it does not run any more at the end."""
        if self._test.stop.is_set():
            return self._report
        if self._test.failed.is_set():
            self._note(problem="not started, for a clone before it failed")
            return self._report
        self._make_files()
        self._start()
        try:
            self._examine()
            self._keep()
            if self._report.problem is None:
                self._power_off()
        finally:
            self._driver.kill(self._clone.directory)
        return self._report

    def _examine(self) -> None:
        """Look at the running clone; what goes wrong is its problem, not ours."""
        try:
            self._await_answer()
            shell = self._await_ready()
            self._look(shell)
        except (GuestError, ToolFailed, NotAllowed) as error:  # the last two: its process has ended
            self._test.failed.set()
            log = self._driver.serial_log(self._clone.directory, _RECENT)
            words = self._report.last_words or bootwords.lines(log)
            self._note(problem=str(error), last_words=words)

    # -- its life

    def _make_files(self) -> None:
        """Overlays, and the seed of a generalized image; all in the clone's own directory."""
        directory = self._clone.directory
        directory.mkdir(mode=0o700)
        for disk in self._test.image.disks:
            blank.create(_overlay(directory, disk), disk.size)
        room = directory / "ssh"
        room.mkdir(mode=0o700)
        for name in ("key", "key.pub"):
            (room / name).touch(mode=0o600)
            (room / name).write_bytes((self._test.scratch / name).read_bytes())
        if self._test.generalized:
            who = Provisioning(
                instance_id=self._clone.id,
                hostname=self._clone.hostname,
                admin_user=self._test.user,
                ssh_keys=[(room / "key.pub").read_text()],
            )
            build_seed(directory / "seed.iso", who)

    def _start(self) -> None:
        context, test, directory = self._test.context, self._test, self._clone.directory
        with context.lock("launch"):  # two commands must not choose the same port or uid
            self._port = ssh.free_port(taken=_taken_ports(context))
            seed = directory / "seed.iso"
            kvm = self._driver.acceleration().name == "kvm"
            spec = MachineSpec(
                id=self._clone.id,
                name=f"boot-test-{self._clone.letter}",
                directory=directory,
                vcpus=min(test.image.recommended.vcpus or 1, os.cpu_count() or 1) if kvm else 1,
                memory=memory(test.image),
                generation=test.image.generation,
                disks=tuple(self._disk(disk) for disk in test.image.disks),
                seed=seed if seed.exists() else None,
                mac="52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3)),
                forwards=((self._port, 22),),
                network=Network.RESTRICTED,
                uid=_free_uid(context) if os.geteuid() == 0 else None,
            )
            self._driver.start(spec)
        self._begun = time.monotonic()
        self._advance(1)

    def _disk(self, disk: ImageDisk) -> DiskSpec:
        return DiskSpec(
            id=str(uuid.uuid4()),
            path=_overlay(self._clone.directory, disk),
            base=self._test.bases[disk.index],
            size=disk.size,
            lun=disk.lun,
            caching=disk.caching,
        )

    def _power_off(self) -> None:
        asked = time.monotonic()
        with suppress(CalotypeError):  # its report says so, and the plug is pulled
            self._driver.shutdown(self._clone.directory, timeout=OFF)
            self._note(off_after=round(time.monotonic() - asked, 1))
        disk = self._test.image.os_disk
        if self._report.off_after is not None:
            with suppress(CalotypeError):
                source = _overlay(self._clone.directory, disk)
                with closing(OverlaySource(source, self._test.bases[disk.index]).open()) as opened:
                    self._note(clean=look.was_shut_down(opened))
        self._advance(1)

    # -- waiting for it

    def _await_answer(self) -> None:
        """Wait until its agent or its SSH server answers."""
        deadline = self._begun + self._test.timeout
        restarts = 0
        with watch(self._clone.directory) as guest:
            while (way := self._answers(guest)) is None:
                happened = guest.next(min(1.0, max(0.0, deadline - time.monotonic())))
                restarts += happened is Happening.RESET
                self._refuse_hopeless(guest, happened, restarts)
                if time.monotonic() >= deadline or self._test.stop.is_set():
                    self._give_up(guest, f"no agent and no SSH within {self._test.timeout:g} s")
        self._note(reached=way, answered_after=self._age())
        self._advance(1)

    def _answers(self, guest: Watch) -> Literal["agent", "ssh"] | None:
        if guest.has_agent() and Agent(self._clone.directory).ping():
            return "agent"
        return "ssh" if ssh.answers(self._port, timeout=3.0) else None

    def _refuse_hopeless(self, guest: Watch, happened: Happening | None, restarts: int) -> None:
        """Do not wait for a guest that will never answer."""
        if happened is Happening.OFF:
            self._give_up(guest, "it powered off by itself")
        if restarts > _MAX_RESTARTS:
            self._give_up(guest, "it restarts again and again")
        log = self._driver.serial_log(self._clone.directory, _RECENT)
        if bootwords.hopeless(log, guest.screen()):
            self._give_up(guest, "it does not start")

    def _give_up(self, guest: Watch, what: str) -> None:
        log, screen = self._driver.serial_log(self._clone.directory, _RECENT), guest.screen()
        self._note(last_words=bootwords.lines(log) or tuple(screen[-12:]))
        raise GuestError(f"{what}: {bootwords.cause(log, screen)}")

    def _await_ready(self) -> Shell | None:
        """Wait until somebody gets in, and its own start is over."""
        deadline = self._begun + self._test.timeout
        shell = self._enter(deadline)
        if shell is not None:
            with suppress(TimedOut):  # a service that hangs is reported among its units
                shell.script(SETTLE, timeout=max(1.0, deadline - time.monotonic()))
        self._note(ready_after=self._age())
        self._advance(1)
        return shell

    def _enter(self, deadline: float) -> Shell | None:
        """A shell in the guest; ``None``: nobody lets us in."""
        if not self._test.generalized:
            deadline = min(deadline, time.monotonic() + _SOON)  # nobody but an agent will
        while not self._test.stop.is_set():
            for way, shell in self._ways():
                with suppress(GuestError, TimedOut):
                    if shell.script("echo in", timeout=_SOON).stdout.strip() == b"in":
                        self._note(inside=way)
                        return shell
            if time.monotonic() >= deadline:
                break
            self._test.stop.wait(1.0)  # neither an agent nor a server tells when it will
        return None

    def _ways(self) -> list[tuple[Literal["agent", "ssh"], Shell]]:
        """Who may let us in by now."""
        ways: list[tuple[Literal["agent", "ssh"], Shell]] = []
        if connected(Layout(self._clone.directory)):
            ways.append(("agent", Agent(self._clone.directory)))
        if self._test.generalized and ssh.answers(self._port, timeout=3.0):
            ways.append(("ssh", self._login))
        return ways

    # -- looking at it

    def _look(self, shell: Shell | None) -> None:
        if shell is not None:
            facts = parse(shell.script(COLLECT, timeout=120.0).stdout)
            inside = fingerprints(facts.get("host-key", ()))
            facts = {name: values for name, values in facts.items() if name != "host-key"}
            self._note(facts=facts, host_keys=inside)
        served = self._served()
        if served:
            keys = {**self._report.host_keys, **host_keys(self._port)}
            self._note(host_keys=dict(sorted(keys.items())))
        if self._test.generalized:
            self._prove_provisioned(served=served)
        self._advance(1)

    def _served(self) -> bool:
        """Whether its SSH server greets, or does so soon."""
        deadline = time.monotonic() + _SOON
        while not ssh.answers(self._port):
            if time.monotonic() > deadline or self._test.stop.wait(1.0):
                return False
        return True

    def _prove_provisioned(self, *, served: bool) -> None:
        """It must have become who its seed says."""
        if self._report.inside is None:
            raise GuestError(
                f"nobody could look inside: no agent runs commands, and {self._why_not()}"
            )
        hostname = self._report.facts.get("hostname", ("nothing",))[0]
        if hostname.split(".")[0] != self._clone.hostname:
            raise GuestError(
                f"it calls itself {hostname} and not {self._clone.hostname}, as its seed says: "
                "nothing in it provisions a new VM (cloud-init with NoCloud does)"
            )
        if served:
            self._note(login=False)  # until it has been seen
            words = (
                self._login.command("id -un; sudo -n id -u").stdout.decode(errors="replace").split()
            )
            if self._test.user not in words:
                raise GuestError(f"{self._test.user} logs in by SSH as somebody else")
            self._note(login=True, sudo=words[-1:] == ["0"])

    def _why_not(self) -> str:
        try:
            self._login.command("true")
        except CalotypeError as error:
            return error.message
        return "the user that the seed asked for gets no shell"

    @property
    def _login(self) -> Login:
        return Login(self._clone.directory / "ssh", self._port, self._test.user)

    # -- keeping what was seen

    def _keep(self) -> None:
        """Take the screen and the serial log, of a clone that may be off by now."""
        log = excerpt(self._driver.serial_log(self._clone.directory), _KEPT["serial-log"])
        self._add("serial-log", f"clone-{self._clone.letter.lower()}.serial.log", log)
        picture = self._clone.directory / "screen.png"
        with suppress(CalotypeError):
            self._driver.screenshot(self._clone.directory, picture)
            with picture.open("rb") as file:
                content = file.read(_KEPT["screenshot"] + 1)
            if len(content) <= _KEPT["screenshot"]:
                self._add("screenshot", f"clone-{self._clone.letter.lower()}.png", content)

    def _add(self, kind: Literal["screenshot", "serial-log"], name: str, content: bytes) -> None:
        path = self._test.keep / name
        path.write_bytes(content)
        artifact = Artifact(
            name=name,
            kind=kind,
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            path=str(path.absolute()),
        )
        self._note(artifacts=(*self._report.artifacts, artifact))

    def _note(self, **found: Any) -> None:
        self._report = replace(self._report, **found)

    def _age(self) -> float:
        return round(time.monotonic() - self._begun, 1)


def _overlay(directory: Path, disk: ImageDisk) -> Path:
    return directory / ("os.qcow2" if disk.lun is None else f"lun{disk.lun}.qcow2")


def memory(image: Image) -> int:
    """What a clone of an image gets, in bytes."""
    return image.recommended.memory or GIB


def _taken_ports(context: Context) -> list[int]:
    vms = context.system.every_vm()
    return [port for vm in vms for port in (vm.ssh_port, *(port for port, _ in vm.forwards))]


def _free_uid(context: Context) -> int:
    """A user that neither a VM nor another clone has: those who run own a directory."""
    used = {vm.uid for vm in context.system.every_vm()}
    for directory in context.home.vms.glob("*/run"):
        with suppress(FileNotFoundError):
            used.add(directory.stat().st_uid)
    return next(uid for uid in reversed(uids(context)) if uid not in used)
