"""``calotype vm capture`` and ``calotype image capture``: one job under two names."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from calotype.cli.arguments import Repeat, pairs
from calotype.cli.common import Common, session
from calotype.cli.generalize import StepOptions, explain, show_rehearsal
from calotype.cli.image import summary
from calotype.cli.output import emit, for_people, plain
from calotype.cli.text import size as show_size
from calotype.engine.capture import Captured, CaptureRequest, capture_vm
from calotype.engine.generalize.generalize import rehearse_vm
from calotype.engine.generalize.steps import DEFAULT
from calotype.errors import InvalidInput
from calotype.model import OsState


@Parameter(name="*")
@dataclass(frozen=True)
class CaptureOptions:
    """How to capture, and what the image's author says of it."""

    generalize: Annotated[bool, Parameter(negative="")] = False
    "Generalize a copy on the way; the VM itself is not touched."
    dry_run: Annotated[bool, Parameter(negative="")] = False
    "With --generalize: show what would go, and make no image."
    freeze: Literal["auto", "require", "never"] = "auto"
    "Freeze the guest's file systems for the instant: auto (when its agent answers), require, never."
    os_state: OsState | None = None
    "Declare the state (default: what the disk of a stopped VM shows; a running one is Specialized)."
    force: Annotated[bool, Parameter(negative="")] = False
    "Let the declared state hold although the disk contradicts it (recorded)."
    label: str | None = None
    "A line for people."
    family: str | None = None
    "The family that the image belongs to."
    description: str | None = None
    "What it is."
    tags: Annotated[tuple[str, ...], Repeat] = ()
    "KEY=VALUE."


def capture(
    vm_name: str,
    *,
    image: str,
    options: CaptureOptions | None = None,
    steps: StepOptions | None = None,
    common: Common | None = None,
) -> None:
    """Make an image of a VM, running or stopped: all its disks at one instant. The VM goes on.

    Parameters
    ----------
    vm_name
        The VM.
    image
        The new image's name.
    """
    options, chosen = options or CaptureOptions(), (steps or StepOptions()).steps
    if (options.dry_run or chosen != DEFAULT) and not options.generalize:
        raise InvalidInput("--dry-run, --enable and --disable are for --generalize")
    if options.dry_run:
        with session(common) as context:
            show_rehearsal(common, rehearse_vm(context, vm_name, chosen))
        return
    request = CaptureRequest(
        name=image,
        generalize=options.generalize,
        steps=chosen,
        force=options.force,
        freeze=options.freeze,
        os_state=options.os_state,
        label=options.label,
        family=options.family,
        description=options.description,
        tags=pairs(options.tags),
    )
    with session(common) as context:
        captured = capture_vm(context, vm_name, request)
        if for_people(common):
            emit(common, summary(captured.image))
            _explain(captured)
        else:
            emit(common, _record(captured))


def image_capture(
    name: str,
    *,
    vm: str,
    options: CaptureOptions | None = None,
    steps: StepOptions | None = None,
    common: Common | None = None,
) -> None:
    """Make an image of a VM (calotype vm capture, with the image first).

    Parameters
    ----------
    name
        The new image's name.
    vm
        The VM.
    """
    capture(vm, image=name, options=options, steps=steps, common=common)


def _record(captured: Captured) -> dict[str, Any]:
    """The image with how it was taken."""
    record: dict[str, Any] = plain(captured)
    return {**record.pop("image"), "capture": record}


def _explain(captured: Captured) -> None:
    frozen = f"; frozen for {captured.frozen_seconds:.2f} s" if captured.frozen_seconds else ""
    print(f"{captured.consistency}-consistent{frozen}")
    for disk in captured.disks:
        what = "OS disk" if disk.lun is None else f"LUN {disk.lun}"
        print(
            f"{what}: {show_size(disk.changed)} changed, "
            f"{disk.ingested.new_chunks} new chunks, {show_size(disk.ingested.stored_bytes)} stored"
        )
    if captured.generalized is not None:
        system = captured.generalized.before.os_name or "a system"
        explain(captured.generalized, f"a copy of {system}")
