"""The proof: every check of every step on what stands there, and the verdict that follows.

Nobody's word goes in: not the user's, not what :func:`~calotype.guest.generalize.generalize` did.
"""

from collections.abc import Collection
from dataclasses import dataclass

from calotype.disk.base import Disk
from calotype.errors import GuestError
from calotype.guest.guest import Tree
from calotype.guest.inspect import Inspection, inspect, inspect_guest
from calotype.guest.locate import DiskMap, find_root, survey
from calotype.guest.secrets import Secret, secrets
from calotype.guest.steps import STEPS, SysprepStep
from calotype.guest.steps.step import Concern, concerned
from calotype.model import OsState, Verdict

#: Who has all of these is one machine; who has some of them is half-generalized.
_CORE = {"machine-id", "ssh-host-keys"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one step's check found ``left``: a line each, beginning with the path."""

    step: str
    heading: str
    concern: Concern
    left: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What a disk shows. ``findings`` has only steps that found something; ``checked`` names all."""

    verdict: Verdict
    reasons: tuple[str, ...]
    seen: Inspection
    checked: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    secrets: tuple[Secret, ...] = ()
    notes: tuple[str, ...] = ()

    def of(self, *concerns: Concern) -> tuple[Finding, ...]:
        """The findings of these concerns."""
        return tuple(f for f in self.findings if f.concern in concerns)

    def contradicts(self, declared: OsState) -> tuple[str, ...]:
        """Why the disk is not in the state that somebody says; empty when it may be."""
        if declared is OsState.GENERALIZED:
            wrong = self.verdict in (Verdict.SPECIALIZED, Verdict.MIXED)
            return self.reasons if wrong else ()
        return ("nothing of one machine is on it",) if self.verdict is Verdict.GENERALIZED else ()


def prove_disk(disk: Disk) -> Proof:
    """Prove an OS disk; what cannot be looked into is unknown, with the reason, and never an error."""
    # Loaded when a disk is looked at; and it uses what stands here.
    from calotype.guest.windows import prove_windows_disk  # noqa: PLC0415

    found = survey(disk)
    windows = prove_windows_disk(disk, found)
    try:
        _, tree = find_root(disk, found)
    except GuestError as error:
        unknown = Proof(verdict=Verdict.UNKNOWN, reasons=(error.message,), seen=inspect(disk))
        return windows or unknown
    if windows is not None:
        reason = "the disk holds a Linux and a Windows"
        return Proof(verdict=Verdict.UNKNOWN, reasons=(reason,), seen=windows.seen)
    try:
        return prove(tree, found, stale=tree.fs.needs_recovery)
    except GuestError as error:
        return Proof(verdict=Verdict.UNKNOWN, reasons=(error.message,), seen=inspect(disk))


def prove(tree: Tree, found: DiskMap, *, stale: bool = False) -> Proof:
    """Check a guest's tree of files; ``found`` is the map of the disk that it is on."""
    seen = inspect_guest(tree, found, stale=stale)
    steps = [step for step in concerned(STEPS, seen.distribution) if step.default]
    findings = tuple(_findings(tree, steps))
    verdict, reasons = judge(seen, findings)
    return Proof(
        verdict=verdict,
        reasons=reasons,
        seen=seen,
        checked=tuple(step.name for step in steps),
        findings=findings,
        secrets=tuple(secrets(tree)),
    )


def _findings(tree: Tree, steps: Collection[SysprepStep]) -> list[Finding]:
    found = ((step, tuple(step.check(tree))) for step in steps)
    return [Finding(s.name, s.heading, s.concern, left) for s, left in found if left]


def judge(seen: Inspection, findings: Collection[Finding]) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict that the findings bear, and the reasons for it."""
    grave = [f for f in findings if f.concern is not Concern.TRACE]
    if not grave:
        return Verdict.GENERALIZED, ()
    reasons = tuple(f"{finding.step}: {finding.left[0]}" for finding in grave)
    core = {finding.step for finding in grave} & _CORE
    whole = core == _CORE or ("machine-id" in core and not seen.has_ssh_server)
    return (Verdict.SPECIALIZED if whole else Verdict.MIXED), reasons
