"""The proof: every check of every step on what stands there, and the verdict that follows.

Nobody's word goes in: not the user's, not what :func:`~calotype.guest.generalize.generalize` did.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from calotype.disk.base import Disk, read
from calotype.errors import GuestError
from calotype.guest.beside import mounted, seeds
from calotype.guest.guest import Tree
from calotype.guest.inspect import Inspection, inspect, inspect_guest
from calotype.guest.locate import DiskMap, Filesystem, Partition, find_root, survey
from calotype.guest.secrets import Secret, secrets
from calotype.guest.steps import STEPS, SysprepStep
from calotype.guest.steps.step import KNOWN, Concern, concerned
from calotype.guest.steps.swap_files import PAGE
from calotype.model import OsState, Verdict

#: What every machine has of its own; who has only some of it is half-generalized.
_MACHINE_ID, _HOST_KEYS = "machine-id", "ssh-host-keys"
_PIECE = 1 << 20  # bytes read at once
_NOTHING = "nothing of one machine or person is on it"
_OUTDATED = "the journal of its file system was not replayed: the newest changes are not seen"


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

    def only(self, left_out: Collection[str]) -> bool:
        """Whether what speaks against calling it general is what these steps would have removed."""
        grave = {finding.step for finding in self.of(Concern.IDENTITY, Concern.CREDENTIAL)}
        return bool(grave) and grave <= {*left_out}

    def contradicts(self, declared: OsState) -> tuple[str, ...]:
        """Why the disk is not in the state that somebody says; empty when it may be.

        Traces never contradict, and neither does what could not be looked into. A disk whose journal was
        not replayed may be one machine all the same: that it seems to be none is no evidence.
        """
        if declared is OsState.GENERALIZED:
            wrong = self.verdict in (Verdict.SPECIALIZED, Verdict.MIXED)
            return self.reasons if wrong else ()
        sure = self.verdict is Verdict.GENERALIZED and not self.seen.stale
        return (_NOTHING,) if sure else ()


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
        return prove_tree(tree, disk, found, stale=tree.fs.needs_recovery)
    except GuestError as error:
        return Proof(verdict=Verdict.UNKNOWN, reasons=(error.message,), seen=inspect(disk))


def prove_tree(
    tree: Tree,
    disk: Disk,
    found: DiskMap,
    *,
    reached: Collection[str] = ("/",),
    stale: bool = False,
) -> Proof:
    """The proof of an OS disk that is read by somebody else; ``reached`` are the mount points in ``tree``.

    Raises:
        GuestError: the tree cannot be read to its end.
    """
    proof = prove(tree, found, stale=stale)
    unseen = _unseen(proof.seen, disk, found, reached)
    if unseen and proof.verdict is Verdict.GENERALIZED:
        proof = replace(proof, verdict=Verdict.UNKNOWN, reasons=unseen)
    return _with_swap(proof, disk, found)


def _unseen(
    seen: Inspection, disk: Disk, found: DiskMap, reached: Collection[str]
) -> tuple[str, ...]:
    """Nothing is called general of which a part was not looked into: the reasons."""
    every = dict.fromkeys((*seen.apart, *(mounted(found) if seen.systemd else ())))
    apart = [path for path in every if path not in reached]
    wrong = "is on a file system of its own, which was not looked into"
    reasons = [f"{', '.join(apart)} {wrong}"] if apart else []
    seed = "is a seed, which gives every clone its users, keys or name"
    return (*reasons, *(f"partition {number} {seed}" for number in seeds(disk, found)))


def _with_swap(proof: Proof, disk: Disk, found: DiskMap) -> Proof:
    """The proof with what was swapped out to partitions, which no tree of files shows."""
    full = [
        p for p in found.partitions if p.filesystem is Filesystem.SWAP and not _is_blank(disk, p)
    ]
    if not full:
        return proof
    left = tuple(f"swap partition {partition.number} holds swapped pages" for partition in full)
    step = next(step for step in STEPS if step.name == "swap-files")
    before = [f for f in proof.findings if f.step != step.name]
    left = sum((f.left for f in proof.findings if f.step == step.name), left)
    finding = Finding(step.name, step.heading, step.concern, left)
    return replace(proof, findings=(*before, finding))


def _is_blank(disk: Disk, partition: Partition) -> bool:
    """Whether a swap partition is zero but for its first page."""
    begin, end = partition.offset + PAGE, partition.offset + partition.size
    for extent in disk.extents():
        first, last = max(begin, extent.offset), min(end, extent.offset + extent.length)
        for at in range(first, last if not extent.zero else first, _PIECE):
            if any(read(disk, at, min(_PIECE, last - at))):
                return False
    return True


def prove(tree: Tree, found: DiskMap, *, stale: bool = False) -> Proof:
    """Check a guest's tree of files; ``found`` is the map of the disk that it is on.

    Raises:
        GuestError: the tree cannot be read to its end.
    """
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
        notes=(*((_OUTDATED,) if stale else ()), *preferences(seen)),
    )


def preferences(seen: Inspection) -> tuple[str, ...]:
    """What a person preferred, which stays."""
    zone = seen.time_zone
    generic = zone in ("", "UTC", "Etc/UTC", "Universal", "Etc/Universal")
    return () if generic else (f"the time zone stays {zone}",)


def _findings(tree: Tree, steps: Collection[SysprepStep]) -> list[Finding]:
    found = ((step, tuple(step.check(tree))) for step in steps)
    return [Finding(s.name, s.heading, s.concern, left) for s, left in found if left]


def judge(seen: Inspection, findings: Collection[Finding]) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict that the findings bear, and the reasons for it.

    Identity and credentials count, traces do not. What has all that a machine has of its own (a
    machine-id and host keys, as far as its system makes them, and more) is one machine; what has some of
    it is neither one machine nor general.
    """
    grave = {f.step: f for f in findings if f.concern is not Concern.TRACE}
    if not grave and not seen.distribution & KNOWN:
        name = seen.os_name or "this operating system"
        return Verdict.UNKNOWN, (f"{name} is not known well enough to be called general",)
    if not grave:
        return Verdict.GENERALIZED, ()
    wanted = {_MACHINE_ID} if seen.systemd else set()
    wanted |= {_HOST_KEYS} if seen.has_ssh_server else set()
    whole = bool(wanted) and wanted <= grave.keys() and len(grave) > 1
    verdict = Verdict.SPECIALIZED if whole else Verdict.MIXED
    return verdict, tuple(_reason(finding) for finding in grave.values())


def _reason(finding: Finding) -> str:
    more = len(finding.left) - 1
    return f"{finding.step}: {finding.left[0]}" + (f" (and {more} more)" if more else "")
