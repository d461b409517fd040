"""The driver that runs VMs on QEMU, each in a sandbox of its own.

A VM outlives the command that started it. Nothing about its process is written down: it is found
again by its monitor's socket, so that what a reboot or a kill leaves behind is never taken for a VM.
"""

import contextlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from calotype.disk.durable import write_private
from calotype.errors import GuestError, NotAllowed, NotFound, TimedOut, ToolFailed
from calotype.machine import console as terminal
from calotype.machine import point_in_time as moment
from calotype.machine import probe
from calotype.machine.agent import Agent, connected
from calotype.machine.channel import peer
from calotype.machine.cmdline import OVMF_VARS, SEED, VARS, command_line, firmware
from calotype.machine.layout import Layout, give, link, read_guarded
from calotype.machine.nodes import bases, blockdevs, device, links, names, node, top
from calotype.machine.process import Process, alive, hold
from calotype.machine.qmp import Qmp
from calotype.machine.spec import Acceleration, DiskSpec, LazyBase, MachineSpec, Snapshot
from calotype.model import Generation, PowerState
from calotype.run import Limits, spawn, which

#: How much of the serial log is kept at a start, and shown, in bytes.
_KEPT, _SHOWN = 1 << 20, 16 << 20
_AGAIN = 10.0  # seconds until a guest is asked again to power off

#: How long QEMU may take to start, in seconds.
_START = 60.0

#: How long it may take until QEMU's process can be found, in seconds.
_BIRTH = 10.0

_UNLIMITED = Limits(wall=None)


class QemuDriver:
    """Runs VMs on QEMU; any number of drivers may work on the same VMs at once.

    ``cache`` is a directory that keeps what the driver has found out about this host.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def start(self, spec: MachineSpec) -> None:
        """Start a VM that outlives the caller; return when its monitor answers.

        Raises:
            NotAllowed: it runs already.
            ToolFailed: QEMU did not start; the message has its last words.
        """
        layout = Layout(spec.directory)
        layout.prepare()
        with layout.lock():
            if alive(layout):
                raise NotAllowed(f"the VM {spec.name} runs already")
            accel = spec.accel or self.acceleration().name
            _furnish(spec, layout)
            _launch(spec, layout, accel)

    def state(self, directory: Path) -> PowerState:
        """Running, paused or stopped, asked of the live process.

        A QEMU that hangs counts as running, for it holds its disks.
        """
        layout = Layout(directory)
        process = Process.find(layout)
        if process is None:  # or one that does not listen yet: it holds its disks already
            return PowerState.RUNNING if alive(layout) else PowerState.STOPPED
        with process:
            try:
                with Qmp.open(layout.query, 5.0) as qmp:
                    if qmp.execute("query-uuid")["UUID"] != _recorded(layout):
                        return PowerState.STOPPED
                    running = qmp.execute("query-status")["running"]
                    return PowerState.RUNNING if running else PowerState.PAUSED
            except TimedOut:
                return PowerState.RUNNING
            except (ToolFailed, OSError):
                return PowerState.STOPPED if process.wait(1.0) else PowerState.RUNNING

    def shutdown(self, directory: Path, timeout: float = 120.0) -> None:
        """Ask the guest to power off, by its agent or else by ACPI, and wait until it has.

        Raises:
            NotAllowed: it does not run.
            TimedOut: it still runs after ``timeout`` seconds.
        """
        layout = Layout(directory)
        with layout.lock(), _running(layout) as process:
            deadline = time.monotonic() + timeout
            while (left := deadline - time.monotonic()) > 0:  # a guest that boots hears nothing yet
                if not _asked(layout, "powerdown"):
                    with _control(layout) as qmp:
                        qmp.execute("system_powerdown")
                if process.wait(min(_AGAIN, left)):
                    return
            raise TimedOut(
                f"the guest did not power off within {timeout:g} s",
                hint="give it more time (--timeout), or pull the plug (--force)",
            )

    def kill(self, directory: Path) -> None:
        """Power off at once; harmless when it is stopped. Does not wait for the VM's lock."""
        _kill(Layout(directory))

    def restart(self, directory: Path, timeout: float = 120.0) -> bool:
        """Reboot by the guest's agent, or reset when that fails; true when the guest did it.

        Raises:
            NotAllowed: it does not run.
        """
        layout = Layout(directory)
        with layout.lock(), _running(layout), _control(layout) as qmp:
            if _asked(layout, "reboot"):
                with contextlib.suppress(TimedOut):
                    qmp.wait("RESET", timeout=timeout)
                    return True
            qmp.execute("system_reset")
            return False

    def attach(self, directory: Path, disk: DiskSpec) -> None:
        """Add a data disk to a running VM.

        Raises:
            NotAllowed: the VM does not run, or has that disk or LUN already.
        """
        layout = Layout(directory)
        if disk.lun is None:
            raise NotAllowed("an OS disk cannot be attached to a running VM")
        with layout.lock(), _running(layout), _control(layout) as qmp:
            if node(disk.id) in _nodes(qmp):
                raise NotAllowed(f"the disk {disk.id} is attached already")
            uid = layout.run.stat().st_uid
            with contextlib.ExitStack() as undo:
                undo.callback(_drop_links, layout, disk.id)
                _link(disk, layout, uid)
                undo.callback(_drop_nodes, qmp, disk.id)
                for entry in blockdevs(disk, layout):
                    qmp.execute("blockdev-add", entry)
                qmp.execute("device_add", device(disk))
                undo.pop_all()

    def detach(self, directory: Path, disk_id: str) -> None:
        """Take a data disk off a VM; of a stopped VM only its links go.

        Raises:
            NotFound: the running VM has no such disk.
            TimedOut: QEMU did not let go of it.
        """
        layout = Layout(directory)
        with layout.lock():
            if alive(layout):
                with _control(layout) as qmp:
                    _unplug(qmp, disk_id)
            _drop_links(layout, disk_id)

    def release(self, directory: Path) -> None:
        """Let go of a stopped VM's disks and bases; a start links them again. Logs stay.

        Raises:
            NotAllowed: it runs.
        """
        layout = Layout(directory)
        with layout.lock():
            if alive(layout):
                raise NotAllowed("a running VM holds its disks", hint="stop it first")
            _unlink_all(layout, keep={VARS})

    def hand_over(self, directory: Path, disk: DiskSpec) -> None:
        """Put a disk on the file of its base; harmless when it is there, or the VM does not run.

        The guest goes on reading and writing meanwhile.
        """
        layout = Layout(directory)
        lazy = layout.base / f"{disk.id}.nbd"
        if not lazy.exists():
            return
        with layout.lock():
            if alive(layout):
                with _control(layout) as qmp:
                    _put_on_file(qmp, disk, layout)
            lazy.unlink(missing_ok=True)

    def reconnect(self, directory: Path, disk: DiskSpec) -> None:
        """Lead a disk to the new server of its lazy base; go on where the old one's end stopped the VM.

        QEMU finds the server by the link in the VM's directory, each time that it tries.
        """
        layout = Layout(directory)
        if not (layout.base / f"{disk.id}.nbd").exists():
            return
        with layout.lock():
            _link_base(disk, layout)
            if alive(layout):
                with _control(layout) as qmp:
                    if qmp.execute("query-status")["status"] == "io-error":
                        qmp.execute("cont")

    def screenshot(self, directory: Path, target: Path) -> None:
        """Write the guest's screen to ``target`` as PNG.

        Raises:
            NotAllowed: it does not run.
        """
        layout = Layout(directory)
        picture = layout.run / f"screen-{os.urandom(8).hex()}.png"
        with _running(layout), Qmp.open(layout.query) as qmp:
            try:
                qmp.execute("screendump", {"filename": picture.name, "format": "png"})
                content = read_guarded(picture)
            finally:
                picture.unlink(missing_ok=True)
        target.write_bytes(content)

    def console(self, directory: Path) -> None:
        """Connect the terminal to the guest's serial port until Ctrl-]."""
        layout = Layout(directory)
        with _running(layout):
            terminal.attach(layout)

    def serial_log(self, directory: Path, limit: int = _SHOWN) -> bytes:
        """The last ``limit`` bytes that the guest printed on its serial port, over all its boots."""
        return _serial_log(Layout(directory), limit)

    def agent(self, directory: Path, *, patience: float = 10.0) -> Agent:
        """The guest's agent."""
        return Agent(directory, patience=patience)

    def point_in_time(
        self,
        directory: Path,
        disk_ids: Sequence[str],
        freeze: Literal["auto", "require", "never"] = "auto",
    ) -> AbstractContextManager[Snapshot]:
        """Hold all these disks of a running VM at one moment, for reading."""
        return moment.point_in_time(directory, disk_ids, freeze)

    def clear_point_in_time(self, directory: Path) -> None:
        """Remove what a killed capture left in a VM; harmless when there is nothing."""
        moment.clear_point_in_time(directory)

    def acceleration(self) -> Acceleration:
        """Whether VMs run under KVM here, found by running one; remembered."""
        return probe.acceleration(self._cache)

    def firmware(self) -> Path:
        """The UEFI firmware of VMs of generation V2.

        Raises:
            ToolMissing: it is not installed.
        """
        return firmware()


def _kill(layout: Layout) -> None:
    process = Process.find(layout)
    deadline = time.monotonic() + _BIRTH
    while process is None and alive(layout) and time.monotonic() < deadline:
        time.sleep(0.01)  # its command was killed while QEMU started: nothing listens yet
        process = Process.find(layout)
    if process is None:
        return
    with process:
        # QEMU's own end writes back what it holds of the disks' tables.
        with contextlib.suppress(ToolFailed, OSError), Qmp.open(layout.query, 2.0) as qmp:
            with contextlib.suppress(ToolFailed):  # it may end before it has answered
                qmp.execute("quit", timeout=2.0)
            process.wait(5.0)
        process.kill()


@contextlib.contextmanager
def _running(layout: Layout) -> Iterator[Process]:
    process = Process.find(layout)
    if process is None:
        raise NotAllowed("the VM does not run", hint="start it first")
    with process:
        yield process


@contextlib.contextmanager
def _control(layout: Layout) -> Iterator[Qmp]:
    try:
        qmp = Qmp.open(layout.control)
    except OSError:
        raise NotAllowed("the VM does not run", hint="start it first") from None
    with qmp:
        yield qmp


def _asked(layout: Layout, mode: str) -> bool:
    """Ask the guest's agent to power off or reboot; false when it cannot be asked."""
    if not connected(layout):
        return False
    try:
        Agent(layout.root, patience=5.0).shutdown(mode)
    except GuestError:
        return False
    return True


def _recorded(layout: Layout) -> str | None:
    try:
        record = json.loads(layout.record.read_bytes())
    except (OSError, ValueError):
        return None
    return str(record["id"])


def _furnish(spec: MachineSpec, layout: Layout) -> None:
    """Lay out the directory: fresh ``run``, links of exactly the disks of ``spec``."""
    log = _serial_log(layout, _KEPT)
    shutil.rmtree(layout.run)
    layout.prepare()
    if log:
        write_private(layout.serial_log, log)
        give(layout.serial_log, spec.uid)
    give(layout.run, spec.uid)
    wanted = {SEED, VARS}
    for disk in spec.disks:
        wanted.update(links(disk))
        _link(disk, layout, spec.uid)
    _unlink_all(layout, keep=wanted)
    if spec.seed is not None:
        link(spec.seed, layout.base / SEED)
        give(layout.base / SEED, spec.uid)
    variables = layout.disks / VARS
    if spec.generation is Generation.V2:
        if not variables.exists():
            write_private(variables, OVMF_VARS.read_bytes())
        give(variables, spec.uid)
    # Like the pid, it is of no use when the VM's process has ended.
    record = json.dumps({"id": spec.id, "name": spec.name}).encode()
    write_private(layout.record, record, durable=False)


def _link(disk: DiskSpec, layout: Layout, uid: int | None) -> None:
    own, _ = links(disk)
    link(disk.path, layout.disks / own)
    os.chmod(layout.disks / own, 0o600)
    give(layout.disks / own, uid)
    _link_base(disk, layout)


def _link_base(disk: DiskSpec, layout: Layout) -> None:
    _, base = links(disk)
    if isinstance(disk.base, LazyBase):
        link(disk.base.socket, layout.base / base, socket=True)
    elif disk.base is not None:
        link(disk.base, layout.base / base)
        mode = stat.S_IMODE(disk.base.stat().st_mode)
        if mode != 0o444:
            os.chmod(layout.base / base, 0o444)


def _drop_links(layout: Layout, disk_id: str) -> None:
    for path in _links(layout):
        if path.stem == disk_id:
            _unlink(path)


def _unlink_all(layout: Layout, *, keep: set[str]) -> None:
    for path in _links(layout):
        if path.name not in keep:
            _unlink(path)


def _links(layout: Layout) -> list[Path]:
    """Every link in a VM's directory; there are none before its first start."""
    directories = (layout.disks, layout.base)
    return [path for place in directories if place.exists() for path in place.iterdir()]


def _unlink(path: Path) -> None:
    give(path, os.geteuid())  # no longer the VM's
    path.unlink()


def _serial_log(layout: Layout, limit: int) -> bytes:
    try:
        return read_guarded(layout.serial_log, limit)
    except NotFound:
        return b""


def _launch(spec: MachineSpec, layout: Layout, accel: Literal["kvm", "tcg"]) -> None:
    kvm = accel == "kvm"
    sandbox = layout.sandbox(
        spec.uid,
        devices=("/dev/kvm",) if kvm else (),
        groups=probe.kvm_groups() if kvm else (),
    )
    argv = command_line(spec, layout, accel)
    # setsid leaves QEMU to the sandbox's own init, so that it is no child of ours.
    argv = [which("setsid"), "--fork", which(argv[0]), *argv[1:]]
    layout.pid.unlink(missing_ok=True)  # by now that number may be anybody's
    try:
        held = hold(layout)
        try:
            with open(layout.log, "wb") as log:
                process = spawn(
                    argv,
                    sandbox=sandbox,
                    limits=_UNLIMITED,
                    stdout=log,
                    stderr=log,
                    pass_fds=(held,),
                )
        finally:
            os.close(held)
        process.wait()
        _await_start(layout)
    except ToolFailed as error:
        _kill(layout)
        words = layout.log.read_bytes()[-2000:].decode("utf-8", "replace").strip()
        last = " / ".join(words.splitlines()[-3:]) or error.message
        raise ToolFailed(f"QEMU did not start the VM {spec.name}: {last}") from error


def _await_start(layout: Layout) -> None:
    """Wait for the monitor, and write down the process that answers."""
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline:
        try:
            with Qmp.open(layout.query, _START) as qmp:
                qmp.execute("query-status")
                pid, _uid = peer(qmp.socket)
                write_private(layout.pid, str(pid).encode(), durable=False)
                return
        except OSError:
            if not alive(layout):
                raise ToolFailed("it ended at once") from None
            time.sleep(0.002)  # QEMU has not made its sockets yet
    raise TimedOut("its monitor does not answer")


def _nodes(qmp: Qmp) -> set[str]:
    return {n["node-name"] for n in qmp.execute("query-named-block-nodes", {"flat": True})}


def _drop_nodes(qmp: Qmp, disk_id: str) -> None:
    present = _nodes(qmp)
    for name in names(disk_id):
        if name in present:
            qmp.execute("blockdev-del", {"node-name": name})


def _put_on_file(qmp: Qmp, disk: DiskSpec, layout: Layout) -> None:
    name = node(disk.id)
    present = _nodes(qmp)
    if f"{name}-n" not in present:
        return
    _link_base(disk, layout)
    for entry in bases(disk):
        if entry["node-name"] not in present:  # an earlier hand-over was killed
            qmp.execute("blockdev-add", entry)
    qmp.execute("blockdev-reopen", {"options": [top(disk, layout)]})
    qmp.execute("blockdev-del", {"node-name": f"{name}-n"})
    if qmp.execute("query-status")["status"] == "io-error":
        qmp.execute("cont")


def _unplug(qmp: Qmp, disk_id: str) -> None:
    name = node(disk_id)
    if name not in _nodes(qmp):
        raise NotFound(f"the VM has no disk {disk_id}")
    plugged: list[dict[str, Any]] = qmp.execute("qom-list", {"path": "/machine/peripheral"})
    if any(entry["name"] == name for entry in plugged):
        qmp.execute("device_del", {"id": name})
        qmp.wait("DEVICE_DELETED", timeout=30.0, match=lambda data: data.get("device") == name)
    _drop_nodes(qmp, disk_id)
