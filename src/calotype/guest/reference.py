"""What the steps are, for people: rows for a list, and a page of the documentation.

Both are made from the records that the program runs on.
"""

from typing import NamedTuple

from calotype.guest.steps import STEPS, SysprepStep
from calotype.guest.steps.step import ALPINE, DEBIAN, FREEBSD, RHEL, SUSE, Concern

_FAMILIES = (
    (DEBIAN, "Debian, Ubuntu"),
    (RHEL, "RHEL, Alma, Rocky, CentOS, Oracle, Fedora"),
    (SUSE, "SUSE"),
    (ALPINE, "Alpine"),
    (FREEBSD, "FreeBSD"),
)
_CONCERNS = {
    Concern.IDENTITY: "two clones would be one machine",
    Concern.CREDENTIAL: "somebody could log in, or be somebody else",
    Concern.TRACE: "tells of the old machine and its people, and opens nothing",
}
_HEAD = """# Steps of generalizing

<!-- Generated from the records in src/calotype/guest/steps by calotype.guest.reference; do not edit. -->

`calotype image capture --generalize` performs these steps on a copy, in this order, then checks them all.
`calotype image verify` makes the same checks on any image. What a step's leavings would do to a clone is
its concern; the verdict follows from it:

"""
_VERDICT = """
Nothing of identity or credential is left: *Generalized*. A machine-id and host keys (as far as the system
has them) and more are left: *Specialized*. Anything between: *Mixed*. Traces are named and change nothing.
Secrets of applications are reported with their paths, and stay unless `application-secrets` is enabled.

| # | step | what it makes general | concern | systems | |
|---|---|---|---|---|---|
"""


class StepRow(NamedTuple):
    """A step in a list; ``systems`` is "all" or names the families, ``note`` says what is special."""

    order: int
    name: str
    heading: str
    concern: Concern
    systems: str
    default: bool
    note: str


def list_steps() -> list[StepRow]:
    """All steps, in the order in which they are performed."""
    return [_row(step) for step in STEPS]


def reference_markdown() -> str:
    """The reference page: docs/reference/generalize-steps.md."""
    concerns = "".join(f"- *{concern}*: {said}\n" for concern, said in _CONCERNS.items())
    rows = "".join(
        f"| {number} | `{row.name}` | {row.heading} | {row.concern} | {row.systems} | {row.note} |\n"
        for number, row in enumerate(list_steps(), 1)
    )
    return _HEAD + concerns + _VERDICT + rows


def _row(step: SysprepStep) -> StepRow:
    named = [name for family, name in _FAMILIES if step.distributions & family]
    notes = [] if step.default else ["only when enabled"]
    if step.command:
        notes.append(f"in a running guest: `{' '.join(step.command)}`")
    return StepRow(
        order=step.order,
        name=step.name,
        heading=step.heading,
        concern=step.concern,
        systems=", ".join(named) or "all",
        default=step.default,
        note="; ".join(notes),
    )
