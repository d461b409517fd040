"""``calotype generalize``: a generalized copy of an image; the steps."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from calotype.cli.arguments import Repeat
from calotype.cli.common import Common, session
from calotype.cli.image import summary
from calotype.cli.output import Columns, emit, for_people, plain
from calotype.cli.text import one_line
from calotype.cli.text import size as show_size
from calotype.engine.gallery.places import Managed
from calotype.engine.generalize.generalize import generalize_image, rehearse_image
from calotype.engine.generalize.steps import Steps
from calotype.errors import InvalidInput
from calotype.guest import GeneralizeReport, reference

_STEPS: Columns = {
    "Order": lambda s: s["order"],
    "Step": lambda s: s["name"],
    "Default": lambda s: "yes" if s["default"] else "no",
    "Concern": lambda s: s["concern"],
    "Systems": lambda s: s["systems"],
    "What it makes general": lambda s: s["heading"],
}
#: As many lines of a dry run as are shown for one step.
_SHOWN = 12


@Parameter(name="*")
@dataclass(frozen=True)
class StepOptions:
    """Which steps are performed."""

    enable: Annotated[tuple[str, ...], Repeat] = ()
    "A step that is not performed by default."
    disable: Annotated[tuple[str, ...], Repeat] = ()
    "A step to leave out; what it would have removed stays, which is recorded."

    @property
    def steps(self) -> Steps:
        """For the engine."""
        return Steps(enable=self.enable, disable=self.disable)


def generalize(
    source: str | None = None,
    *,
    image: str | None = None,
    list_steps: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    force: Annotated[bool, Parameter(negative="")] = False,
    options: StepOptions | None = None,
    common: Common | None = None,
) -> None:
    """Make a generalized copy of a specialized image; the image itself stays as it is.

    Parameters
    ----------
    source
        The image to copy.
    image
        The new image's name.
    list_steps
        Show every step: what it removes, for which distributions, whether it is on by default.
    dry_run
        Show what would go, and do nothing.
    force
        Make the image although something of one machine is left (recorded).
    """
    steps = (options or StepOptions()).steps
    if list_steps:
        emit(common, reference.list_steps(), _STEPS)
        return
    if source is None or (image is None and not dry_run):
        raise InvalidInput(
            "name an image and the new one",
            hint="calotype generalize SOURCE --image NEW, or --dry-run, or --list-steps",
        )
    with session(common) as context:
        if dry_run or image is None:
            show_rehearsal(common, rehearse_image(context, source, steps))
            return
        made = generalize_image(context, source, Managed(image), steps, force=force)
        if for_people(common):
            emit(common, summary(made.image))
            system = made.report.before.os_name or "a system"
            explain(made.report, f"a copy of {system}")
        else:
            record = plain(made)
            emit(common, {**record.pop("image"), "generalize": record})


def explain(report: GeneralizeReport, what: str) -> None:
    """What was done to ``what``, in words."""
    edits = sum(len(step.edits) for step in report.steps)
    print(
        f"generalized {one_line(what)}: {len(report.steps)} steps, {edits} changes, "
        f"{show_size(report.wiped)} of deleted content overwritten; every check found nothing left"
    )
    for secret in report.secrets:
        print(f"  kept, and yours to judge: {one_line(secret.path)} ({secret.kind})")


def show_rehearsal(common: Common | None, report: GeneralizeReport) -> None:
    """What a dry run found, step by step."""
    if for_people(common):
        explain_rehearsal(report)
    else:
        emit(common, report)


def explain_rehearsal(report: GeneralizeReport) -> None:
    """What a dry run found, in words."""
    for step in report.steps:
        if not step.edits:
            continue
        print(f"{step.name}: {step.heading}")
        for edit in step.edits[:_SHOWN]:
            print(f"  {edit.action:8} {one_line(edit.path)}")
        if len(step.edits) > _SHOWN:
            print(f"  and {len(step.edits) - _SHOWN} more (-o json shows all)")
    quiet = sum(not step.edits for step in report.steps)
    print(f"{quiet} other steps would find nothing to do; free space would be overwritten")
    for secret in report.secrets:
        print(f"would stay, and yours to judge: {one_line(secret.path)} ({secret.kind})")
    edits = sum(len(step.edits) for step in report.steps)
    print(f"{edits} changes would be made; nothing was done")
