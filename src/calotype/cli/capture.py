"""``calotype vm capture`` and ``calotype image capture``: one job under two names."""

from typing import Annotated, Any, Literal

from cyclopts import Parameter

from calotype.cli.arguments import Repeat, pair
from calotype.cli.common import Common, session
from calotype.cli.output import emit, plain
from calotype.cli.output import size as show_size
from calotype.engine.capture import Captured, CaptureRequest, capture_vm
from calotype.guest import GeneralizeReport
from calotype.model import OsState


def capture(
    vm_name: str,
    *,
    image: str,
    generalize: Annotated[bool, Parameter(negative="")] = False,
    freeze: Literal["auto", "require", "never"] = "auto",
    os_state: OsState | None = None,
    label: str | None = None,
    family: str | None = None,
    description: str | None = None,
    tags: Annotated[tuple[str, ...], Repeat] = (),
    common: Common | None = None,
) -> None:
    """Make an image of a VM, running or stopped: all its disks at one instant. The VM goes on.

    Parameters
    ----------
    vm_name
        The VM.
    image
        The new image's name.
    generalize
        Generalize a copy on the way; the VM itself is not touched.
    freeze
        Freeze the guest's file systems for the instant: auto (when its agent answers), require, never.
    os_state
        Declare that the VM was generalized by hand (default: what a VM is: Specialized).
    label
        A line for people.
    family
        The family that the image belongs to.
    description
        What it is.
    tags
        KEY=VALUE.
    """
    request = CaptureRequest(
        name=image,
        generalize=generalize,
        freeze=freeze,
        os_state=os_state,
        label=label,
        family=family,
        description=description,
        tags=dict(pair(text) for text in tags),
    )
    with session(common) as context:
        captured = capture_vm(context, vm_name, request)
        emit(common, _record(captured))
        if (common is None or common.output == "table") and not (common and common.query):
            _explain(captured)


def image_capture(
    name: str,
    *,
    vm: str,
    generalize: Annotated[bool, Parameter(negative="")] = False,
    freeze: Literal["auto", "require", "never"] = "auto",
    os_state: OsState | None = None,
    label: str | None = None,
    family: str | None = None,
    description: str | None = None,
    tags: Annotated[tuple[str, ...], Repeat] = (),
    common: Common | None = None,
) -> None:
    """Make an image of a VM (calotype vm capture, with the image first).

    Parameters
    ----------
    name
        The new image's name.
    vm
        The VM.
    generalize
        Generalize a copy on the way; the VM itself is not touched.
    freeze
        Freeze the guest's file systems for the instant: auto (when its agent answers), require, never.
    os_state
        Declare that the VM was generalized by hand (default: what a VM is: Specialized).
    label
        A line for people.
    family
        The family that the image belongs to.
    description
        What it is.
    tags
        KEY=VALUE.
    """
    capture(
        vm,
        image=name,
        generalize=generalize,
        freeze=freeze,
        os_state=os_state,
        label=label,
        family=family,
        description=description,
        tags=tags,
        common=common,
    )


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
            f"{what}: {show_size(disk.changed)} changed and read, "
            f"{disk.ingested.new_chunks} new chunks, {show_size(disk.ingested.stored_bytes)} stored"
        )
    if captured.generalized is not None:
        _explain_generalized(captured.generalized)


def _explain_generalized(report: GeneralizeReport) -> None:
    edits = sum(len(step.edits) for step in report.steps)
    print(
        f"generalized a copy of {report.before.os_name}: {len(report.steps)} steps, {edits} changes, "
        f"{show_size(report.wiped)} of deleted content overwritten; every check found nothing left"
    )
    for secret in report.secrets:
        print(f"  kept, and yours to judge: {secret.path} ({secret.kind})")
