"""``calotype vm generalize``, ``vm restore`` and ``vm restore-point``: the in-place way, and back."""

import sys
from typing import Annotated, Any

from cyclopts import App, Parameter

from calotype.cli.arguments import Seconds
from calotype.cli.common import Common, session
from calotype.cli.generalize import StepOptions, explain, explain_rehearsal
from calotype.cli.output import Columns, emit, for_people, plain
from calotype.cli.text import one_line, visible
from calotype.engine.generalize import inplace
from calotype.engine.generalize import restore as engine
from calotype.engine.generalize.inplace import InPlaceReport
from calotype.engine.generalize.restore import Restored
from calotype.errors import InvalidInput, NotAllowed

restore_point = App(name="restore-point")

_Flag = Parameter(negative="")

COLUMNS: Columns = {
    "Id": lambda p: p["id"],
    "Taken": lambda p: p["createdAt"],
    "Reason": lambda p: p["reason"],
    "Consistency": lambda p: p["consistency"],
    "Disks": lambda p: ", ".join(disk["name"] for disk in p["disks"]),
}


def generalize(
    name: str,
    *,
    steps: StepOptions | None = None,
    dry_run: Annotated[bool, _Flag] = False,
    yes: Annotated[bool, Parameter(alias="-y", negative="")] = False,
    timeout: Seconds | None = None,
    force: Annotated[bool, _Flag] = False,
    in_guest: Annotated[bool, _Flag] = False,
    common: Common | None = None,
) -> None:
    """Generalize a VM in place: it stops, makes images, and starts again only when it is restored.

    Parameters
    ----------
    name
        The VM, running or stopped.
    dry_run
        Change nothing; say what would go.
    yes
        Do not ask.
    timeout
        Seconds that each of the guest's own tools, and its shutdown, are given (300; Sysprep 3600).
    force
        Run Sysprep even if its pre-flight says that it would fail.
    in_guest
        Perform the steps in the running guest, by its agent: for systems that cannot be looked into from
        outside (FreeBSD, encrypted disks). Deleted files are not erased then.
    """
    with session(common) as context:
        if not (yes or dry_run):
            _confirm(f"VM '{name}' will be stopped, and lose its users and its identity.")
        report = inplace.generalize_vm(
            context,
            name,
            (steps or StepOptions()).steps,
            dry_run=dry_run,
            timeout=timeout,
            force=force,
            in_guest=in_guest,
        )
        if for_people(common):
            _explain(report)
        else:
            emit(common, report)


def restore(
    name: str,
    *,
    restore_point: str | None = None,
    force_stop: Annotated[bool, _Flag] = False,
    yes: Annotated[bool, Parameter(alias="-y", negative="")] = False,
    common: Common | None = None,
) -> None:
    """Bring a stopped VM back to a restore point, which stays: all its disks as they were then.

    Parameters
    ----------
    name
        The VM.
    restore_point
        The restore point's id (default: the newest).
    force_stop
        Pull the plug of a VM that runs.
    yes
        Do not ask.
    """
    with session(common) as context:
        if not yes:
            _confirm(f"What the disks of VM '{name}' hold now will be lost.")
        restored = engine.restore(context, name, restore_point, force_stop=force_stop)
        if for_people(common):
            _tell(restored)
        else:
            emit(common, restored)


@restore_point.command(name="list")
def list_(name: str, *, common: Common | None = None) -> None:
    """List the restore points of a VM, the newest first.

    Parameters
    ----------
    name
        The VM.
    """
    with session(common) as context:
        emit(common, plain(engine.list_points(context, name)), COLUMNS)


@restore_point.command
def create(name: str, *, reason: str = "asked for", common: Common | None = None) -> None:
    """Keep all disks of a VM as they are at this instant; a running VM goes on.

    Parameters
    ----------
    name
        The VM.
    reason
        A line for people: what it is for.
    """
    with session(common) as context:
        point: dict[str, Any] = plain(engine.take_restore_point(context, name, reason))
        emit(common, [point] if for_people(common) else point, COLUMNS)


@restore_point.command
def delete(name: str, point: str, *, common: Common | None = None) -> None:
    """Delete a restore point, and what only it needed.

    Parameters
    ----------
    name
        The VM.
    point
        The restore point's id.
    """
    with session(common) as context:
        engine.delete_point(context, name, point)


def _confirm(consequence: str) -> None:
    """Ask, where there is somebody to ask."""
    if not sys.stdin.isatty():
        raise InvalidInput(f"{visible(consequence)} Nobody can be asked", hint="say --yes")
    print(f"{visible(consequence)} Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise NotAllowed("nothing was done", hint="--yes does not ask")


def _explain(report: InPlaceReport) -> None:
    for note in report.notes:
        print(one_line(note))
    if report.already:
        print(f"VM '{report.vm.name}' is generalized already")
    elif report.restore_point is not None:
        _explain_done(report, report.restore_point.id)
    elif report.steps is not None:
        explain_rehearsal(report.steps)
    else:
        print("Sysprep would run in the guest; nothing was done")


def _explain_done(report: InPlaceReport, point: str) -> None:
    name = report.vm.name
    for command in report.in_guest:
        status = (
            "its end was not heard of" if command.status is None else f"status {command.status}"
        )
        print(f"in the guest: {' '.join(command.command)}: {status}")
    if report.steps is not None:
        explain(report.steps, f"VM '{name}'")
    if report.sysprep is not None:
        print(f"VM '{name}' is generalized: Sysprep took {report.sysprep.seconds:.0f} s")
        if report.sysprep.log_line:
            print(f"  it went on after: {one_line(report.sysprep.log_line)}")
    print(f"an image of it: calotype vm capture {name} --image IMAGE")
    print(f"back as it was: calotype vm restore {name} (restore point {point})")


def _tell(restored: Restored) -> None:
    point = restored.point
    print(
        f"VM '{restored.vm.name}' is back at {point.created_at.isoformat()} ({one_line(point.reason)})"
    )
    for names, what in (
        (restored.detached, "attached since, now detached"),
        (restored.returned, "detached since, attached again"),
        (restored.remade, "deleted since, made again"),
    ):
        for disk in names:
            print(f"  disk {disk}: {what}")
