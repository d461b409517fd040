"""``vm generalize``: a VM itself becomes general, as on Azure. Backup first.

In order: a rehearsal that refuses what cannot be generalized; a restore point of all disks; in a running
guest, the guest's own tools; an orderly shutdown; then, for a shutdown brings things back, all steps and
checks once more on the disk that lies still. The proof looks at the result before it takes the place of
the VM's OS disk, in one transaction. Whatever happens on the way, ``vm restore`` brings the VM back.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from calotype.disk import blank
from calotype.disk.view import writable
from calotype.engine import look, names
from calotype.engine.context import Context
from calotype.engine.machines import indexes, power
from calotype.engine.moment import GeneralizedDisk, Moment, moment, take_generalized
from calotype.engine.operation import Operation
from calotype.engine.restore import keep
from calotype.errors import CalotypeError, GuestError, InvalidInput, NotAllowed, ToolFailed
from calotype.guest import Concern, GeneralizeReport, Proof
from calotype.machine import Agent
from calotype.model import OsType, PowerState, RestorePoint, Verdict, VirtualMachine

#: The guest's own tools, in the order that works: cloud-init's leaves what waagent needs to know its user.
_TOOLS = (("waagent", "-force", "-deprovision+user"), ("cloud-init", "clean", "--logs"))
_MISSING = 127
#: Runs a command that may lie in a directory for administrators; tells apart that there is none.
_RUN = f"""PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
command -v "$0" >/dev/null || exit {_MISSING}
exec "$0" "$@" </dev/null"""
#: As many characters of what a tool said as a report keeps.
_SAID = 2000


@dataclass(frozen=True, slots=True)
class GuestCommand:
    """A tool of the guest's own that was run; ``status`` None: its end was not heard of."""

    command: tuple[str, ...]
    status: int | None
    said: str


@dataclass(frozen=True, kw_only=True, slots=True)
class InPlaceReport:
    """What was done to a VM. ``steps`` is None when it was generalized already.

    After a dry run there is neither a restore point nor a proof, and ``steps`` says what would go.
    """

    vm: VirtualMachine
    restore_point: RestorePoint | None = None
    in_guest: tuple[GuestCommand, ...] = ()
    steps: GeneralizeReport | None = None
    proof: Proof | None = None
    notes: tuple[str, ...] = ()


def generalize_vm(
    context: Context,
    name: str,
    *,
    enable: Collection[str] = (),
    disable: Collection[str] = (),
    dry_run: bool = False,
    timeout: float = 300.0,
) -> InPlaceReport:
    """Generalize a VM in place; it is stopped then, makes images, and does not start until restored.

    Args:
        context: the installation.
        name: the VM, running or stopped; one that is generalized already is left alone.
        enable: steps to perform that are not by default.
        disable: steps to leave out.
        dry_run: change nothing, say what would go.
        timeout: seconds that each of the guest's own tools, and its shutdown, are given.

    Raises:
        GuestError: the VM cannot be generalized, or the proof says that the result is not general.
        TimedOut: the guest did not shut down.
    """
    with context.vm_lock(name) as vm, context.operation() as operation:
        if vm.generalized:
            return InPlaceReport(vm=vm)
        if vm.os_type is not OsType.LINUX:
            raise InvalidInput("only Linux guests can be generalized in place yet")
        with moment(context, vm, operation) as found:
            rehearsal = _rehearse(context, operation, vm, found, enable=enable, disable=disable)
            if dry_run:
                return InPlaceReport(vm=vm, steps=rehearsal)
            point = keep(context, vm, found, "before vm generalize")
        with _cure(vm):
            commands, notes = _shut_down(context, vm, timeout)
            done = _general(context, operation, vm, enable=enable, disable=disable)
    context.drop_unused(indexes(vm))
    return InPlaceReport(
        vm=context.catalog.vm(vm.id),
        restore_point=point,
        in_guest=commands,
        steps=done.report,
        proof=done.proof,
        notes=notes,
    )


@contextmanager
def _cure(vm: VirtualMachine) -> Iterator[None]:
    """Name the way back in what goes wrong from here on."""
    try:
        yield
    except CalotypeError as error:
        back = f"have the VM back as it was: calotype vm restore {vm.name} --force-stop"
        error.hint = f"{error.hint}; {back}" if error.hint else back
        raise


def _rehearse(
    context: Context,
    operation: Operation,
    vm: VirtualMachine,
    found: Moment,
    *,
    enable: Collection[str],
    disable: Collection[str],
) -> GeneralizeReport:
    """What would go, of a throw-away view; refuses what cannot be generalized."""
    overlay = operation.directory / "rehearsed.qcow2"
    with writable(found.sources[vm.os_disk.id], overlay, operation.directory) as view:
        report = look.generalize(context, view, enable=enable, disable=disable, dry_run=True)
    overlay.unlink()
    return report


def _shut_down(
    context: Context, vm: VirtualMachine, timeout: float
) -> tuple[tuple[GuestCommand, ...], tuple[str, ...]]:
    """Run the guest's own tools in a VM that runs, and await its end; what they said, and notes."""
    directory = context.vm_path(vm.id)
    if power(context, vm) not in (PowerState.RUNNING, PowerState.PAUSED):
        return (), ("the VM did not run: the guest's own tools were not asked",)
    commands: tuple[GuestCommand, ...] = ()
    notes: tuple[str, ...] = ()
    agent = Agent(directory)
    if agent.ping():
        with context.progress.phase("the guest's own tools", None):
            commands = tuple(_tools(agent, timeout))
    else:
        notes = ("no agent answered: the guest's own tools were not asked",)
    with context.progress.phase("shutting down", None), _stopped_meanwhile(context, vm):
        context.driver.shutdown(directory, timeout=timeout)
    return commands, notes


def _tools(agent: Agent, timeout: float) -> Iterator[GuestCommand]:
    """Run those of the guest's tools that it has.

    One that does not end well stops nothing: they can end their own channel, and what they leave is found
    on the disk later.
    """
    for command in _TOOLS:
        try:
            done = agent.run(["/bin/sh", "-c", _RUN, *command], timeout=timeout)
        except (GuestError, ToolFailed) as error:
            yield GuestCommand(command, None, error.message)
            continue
        if done.status != _MISSING:
            said = (done.stdout + done.stderr).decode("utf-8", "replace")
            yield GuestCommand(command, done.status, said[-_SAID:])


@contextmanager
def _stopped_meanwhile(context: Context, vm: VirtualMachine) -> Iterator[None]:
    """A guest that has stopped by itself is a guest that has stopped."""
    try:
        yield
    except NotAllowed:
        if power(context, vm) in (PowerState.RUNNING, PowerState.PAUSED):
            raise


def _general(
    context: Context,
    operation: Operation,
    vm: VirtualMachine,
    *,
    enable: Collection[str],
    disable: Collection[str],
) -> GeneralizedDisk:
    """Put a general OS disk, proved to be so, in the place of a stopped VM's own."""
    os_disk = vm.os_disk
    with moment(context, vm, operation) as found:
        source = found.sources[os_disk.id]
        done = take_generalized(context, operation, os_disk, source, enable=enable, disable=disable)
    _require_general(done.proof, disable)
    overlay = names.new_id()
    operation.claim_all((("disk", overlay), ("disk", os_disk.file)))
    blank.create(context.disk_path(overlay), os_disk.size)
    context.driver.release(context.vm_path(vm.id))
    index = done.disk.ingested.index
    context.catalog.mark_generalized(vm.id, index=index, overlay=overlay)
    return done


def _require_general(proof: Proof, left_out: Collection[str]) -> None:
    """Refuse what the proof does not call general, but for what the user left out."""
    found = {finding.step for finding in proof.of(Concern.IDENTITY, Concern.CREDENTIAL)}
    asked = bool(found) and found <= {*left_out}
    if proof.verdict is not Verdict.GENERALIZED and not asked:
        raise GuestError(f"the result looks {proof.verdict}: {'; '.join(proof.reasons[:5])}")
