"""``calotype vm capture`` and ``calotype image capture``: one job under two names."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from calotype.cli.arguments import Repeat, pair
from calotype.cli.common import Common, session
from calotype.cli.image import summary
from calotype.cli.output import emit, for_people, plain
from calotype.cli.text import size as show_size
from calotype.cli.text import visible
from calotype.engine.capture import Captured, CaptureRequest, capture_vm
from calotype.guest import GeneralizeReport
from calotype.model import OsState


@Parameter(name="*")
@dataclass(frozen=True)
class CaptureOptions:
    """How to capture, and what the image's author says of it."""

    generalize: Annotated[bool, Parameter(negative="")] = False
    "Generalize a copy on the way; the VM itself is not touched."
    freeze: Literal["auto", "require", "never"] = "auto"
    "Freeze the guest's file systems for the instant: auto (when its agent answers), require, never."
    os_state: OsState | None = None
    "Declare that the VM was generalized by hand (default: what a VM is: Specialized)."
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
    options = options or CaptureOptions()
    request = CaptureRequest(
        name=image,
        generalize=options.generalize,
        freeze=options.freeze,
        os_state=options.os_state,
        label=options.label,
        family=options.family,
        description=options.description,
        tags=dict(pair(text) for text in options.tags),
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
    capture(vm, image=name, options=options, common=common)


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
        _explain_generalized(captured.generalized)


def _explain_generalized(report: GeneralizeReport) -> None:
    edits = sum(len(step.edits) for step in report.steps)
    system = visible(report.before.os_name or "a system")
    print(
        f"generalized a copy of {system}: {len(report.steps)} steps, {edits} changes, "
        f"{show_size(report.wiped)} of deleted content overwritten; every check found nothing left"
    )
    for secret in report.secrets:
        print(f"  kept, and yours to judge: {visible(secret.path)} ({secret.kind})")
