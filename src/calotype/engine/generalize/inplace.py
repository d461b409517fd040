"""``vm generalize``: a VM itself becomes general, as on Azure. Backup first.

In order: a rehearsal that refuses what cannot be generalized; a restore point of all disks; in a running
guest, the guest's own tools; an orderly shutdown; then, for a shutdown brings things back, all steps and
checks once more on the disk that lies still. The proof looks at the result before it takes the place of
the VM's OS disk, in one transaction. Whatever happens on the way, ``vm restore`` brings the VM back.

Windows generalizes itself: Sysprep runs in the guest after a pre-flight, and the proof looks at what it left.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from calotype.catalog.audit import Act
from calotype.disk import blank
from calotype.disk.view import writable
from calotype.engine import names
from calotype.engine.context import Context
from calotype.engine.generalize import inguest
from calotype.engine.generalize.restore import keep
from calotype.engine.generalize.steps import DEFAULT, Steps
from calotype.engine.machines import indexes, power, running
from calotype.engine.moment import GeneralizedDisk, Moment, moment, take_generalized
from calotype.engine.operation import Operation
from calotype.engine.proof import look
from calotype.errors import CalotypeError, GuestError, InvalidInput, NotAllowed, ToolFailed
from calotype.guest import GeneralizeReport, Proof, select
from calotype.machine import Agent
from calotype.model import OsType, PowerState, RestorePoint, Verdict, VirtualMachine

if TYPE_CHECKING:
    from calotype.engine.generalize.sysprep import SysprepReport

#: The status of a shell that does not find a command.
_MISSING = 127
#: Runs a command that may lie in a directory for administrators; tells apart that there is none.
_SCRIPT = f"""PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
command -v "$0" >/dev/null || exit {_MISSING}
exec "$0" "$@" </dev/null"""
_TOOL, _SYSPREP = 300.0, 3600.0  # seconds
_REASON = "before vm generalize"
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
    """What was done to a VM; ``already``: nothing, for it is generalized.

    After a dry run there is neither a restore point nor a proof, and ``steps`` says what would go. Of a
    Windows there are no steps; ``sysprep`` says how its own went.
    """

    vm: VirtualMachine
    already: bool = False
    restore_point: RestorePoint | None = None
    in_guest: tuple[GuestCommand, ...] = ()
    steps: GeneralizeReport | None = None
    sysprep: "SysprepReport | None" = None
    proof: Proof | None = None
    notes: tuple[str, ...] = ()


def generalize_vm(
    context: Context,
    name: str,
    steps: Steps = DEFAULT,
    *,
    dry_run: bool = False,
    timeout: float | None = None,
    force: bool = False,
    in_guest: bool = False,
) -> InPlaceReport:
    """Generalize a VM in place; it is stopped then, makes images, and does not start until restored.

    Args:
        context: the installation.
        name: the VM, running or stopped; one that is generalized already is left alone.
        steps: which to perform (of no use to a Windows).
        dry_run: change nothing, say what would go.
        timeout: seconds that each of the guest's own tools, and its shutdown, are given (300; Sysprep 3600).
        force: run Sysprep even if its pre-flight says that it would fail.
        in_guest: perform the steps in the running guest: for one that nobody can look into from outside.

    Raises:
        GuestError: the VM cannot be generalized, or the proof says that the result is not general.
        NotAllowed: Sysprep would fail, or the Windows does not run.
        TimedOut: the guest did not shut down.
    """
    with context.vm_lock(name) as vm, context.operation() as operation:
        if vm.generalized:
            return InPlaceReport(vm=vm, already=True)
        if in_guest and dry_run:
            raise InvalidInput("--dry-run needs no running guest", hint="leave --in-guest out")
        if vm.os_type is OsType.WINDOWS:
            report = _windows(
                context, operation, vm, timeout=timeout or _SYSPREP, force=force, dry_run=dry_run
            )
        elif in_guest:
            report = _from_inside(context, operation, vm, steps, timeout or _TOOL)
        else:
            report = _linux(
                context, operation, vm, steps, timeout=timeout or _TOOL, dry_run=dry_run
            )
    if report.restore_point is not None:
        context.drop_unused(indexes(vm))
    return replace(report, vm=context.catalog.vm(vm.id))


def _linux(
    context: Context,
    operation: Operation,
    vm: VirtualMachine,
    steps: Steps,
    *,
    timeout: float,
    dry_run: bool,
) -> InPlaceReport:
    with moment(context, vm, operation) as found:
        rehearsal = _rehearse(context, operation, vm, found, steps)
        if dry_run:
            return InPlaceReport(vm=vm, steps=rehearsal)
        point = keep(context, vm, found, _REASON)
    chosen = select(rehearsal.before.distribution, enable=steps.enable, disable=steps.disable)
    with _cure(vm):
        tools = [step.command for step in chosen if step.command]
        commands, notes = _shut_down(context, vm, tools, timeout)
        done = _general(context, operation, vm, point, steps)
    return InPlaceReport(
        vm=vm,
        restore_point=point,
        in_guest=commands,
        steps=done.report,
        proof=done.proof,
        notes=notes,
    )


def _from_inside(
    context: Context, operation: Operation, vm: VirtualMachine, steps: Steps, timeout: float
) -> InPlaceReport:
    """Let the steps be performed in the running guest; its OS disk is the one that it leaves."""
    running(context, vm.name)
    with moment(context, vm, operation) as instant:
        point = keep(context, vm, instant, _REASON)
    with _cure(vm):
        done = inguest.generalize_running(context, vm, steps)
        _shut_down(context, vm, (), timeout)
        proof = inguest.prove_stopped(context, operation, vm)
        if proof.verdict is not Verdict.UNKNOWN:
            _require_general(proof, steps.disable)
        context.catalog.mark_generalized(vm.id, _act(vm, point, proof, inGuest=True))
    return InPlaceReport(vm=vm, restore_point=point, steps=done, proof=proof, notes=done.notes)


def _windows(
    context: Context,
    operation: Operation,
    vm: VirtualMachine,
    *,
    timeout: float,
    force: bool,
    dry_run: bool,
) -> InPlaceReport:
    """Let a running Windows generalize itself; its OS disk is the one that it leaves."""
    from calotype.engine.generalize import sysprep, sysprep_preflight  # noqa: PLC0415 (of no use to other guests)

    found = sysprep_preflight.preflight(Agent(running(context, vm.name)))
    if dry_run:
        notes = tuple(f"{obstacle.what}: {obstacle.cure}" for obstacle in found.obstacles)
        return InPlaceReport(vm=vm, notes=notes)
    if found.fatal and not force:
        raise sysprep.refusal(found)
    with moment(context, vm, operation) as instant:
        point = keep(context, vm, instant, _REASON)
    with _cure(vm):
        done = sysprep.sysprep_vm(context, vm.name, timeout=timeout, force=force)
        proof = inguest.prove_stopped(context, operation, vm)
        _require_general(proof, ())
        context.catalog.mark_generalized(vm.id, _act(vm, point, proof, forced=force))
    return InPlaceReport(vm=vm, restore_point=point, sysprep=done, proof=proof)


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
    context: Context, operation: Operation, vm: VirtualMachine, found: Moment, steps: Steps
) -> GeneralizeReport:
    """What would go, of a throw-away view; refuses what cannot be generalized."""
    overlay = operation.directory / "rehearsed.qcow2"
    with writable(found.sources[vm.os_disk.id], overlay, operation.directory) as view:
        report = look.generalize(context, view, steps, dry_run=True)
    overlay.unlink()
    return report


def _shut_down(
    context: Context, vm: VirtualMachine, tools: Sequence[tuple[str, ...]], timeout: float
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
            commands = tuple(_run(agent, tools, timeout))
    else:
        notes = ("no agent answered: the guest's own tools were not asked",)
    with context.progress.phase("shutting down", None), _stopped_meanwhile(context, vm):
        context.driver.shutdown(directory, timeout=timeout)
    return commands, notes


def _run(agent: Agent, tools: Sequence[tuple[str, ...]], timeout: float) -> Iterator[GuestCommand]:
    """Run those of the guest's tools that it has.

    One that does not end well stops nothing: they can end their own channel, and what they leave is found
    on the disk later.
    """
    for command in tools:
        try:
            done = agent.run(["/bin/sh", "-c", _SCRIPT, *command], timeout=timeout)
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
    point: RestorePoint,
    steps: Steps,
) -> GeneralizedDisk:
    """Put a general OS disk, proved to be so, in the place of a stopped VM's own."""
    os_disk = vm.os_disk
    with moment(context, vm, operation) as found:
        source = found.sources[os_disk.id]
        done = take_generalized(context, operation, os_disk, source, steps)
    _require_general(done.proof, steps.disable)
    overlay = names.new_id()
    operation.claim_all((("disk", overlay), ("disk", os_disk.file)))
    blank.create(context.disk_path(overlay), os_disk.size)
    context.driver.release(context.vm_path(vm.id))
    index = done.disk.ingested.index
    act = _act(vm, point, done.proof, leftOut=sorted(steps.disable))
    context.catalog.mark_generalized(vm.id, act, index=index, overlay=overlay)
    return done


def _act(
    vm: VirtualMachine, point: RestorePoint, proof: Proof, **overruled: bool | list[str]
) -> Act:
    """What the audit tells of it."""
    detail = {"vm": vm.id, "restorePoint": point.id, "verdict": proof.verdict.value}
    return Act("vm.generalize", f"vm {vm.name}", {**detail, **overruled})


def _require_general(proof: Proof, left_out: Collection[str]) -> None:
    """Refuse what the proof does not call general, but for what the user left out."""
    if proof.verdict is not Verdict.GENERALIZED and not proof.only(left_out):
        raise GuestError(f"the result looks {proof.verdict}: {'; '.join(proof.reasons[:5])}")
