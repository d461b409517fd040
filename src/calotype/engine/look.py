"""What the disks themselves say: the proof of their state, and whether they were shut down cleanly."""

import struct
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass, replace

from calotype.catalog import Act
from calotype.disk import Disk, read
from calotype.disk.view import RawSource, WritableView
from calotype.engine.context import Context
from calotype.errors import CalotypeError, InvalidInput
from calotype.guest import (
    Filesystem,
    GeneralizeReport,
    Inspection,
    Proof,
    inspect,
    prove_disk,
    survey,
)
from calotype.guest import generalize as generalize_view
from calotype.guest import prove as prove_tree
from calotype.guest.proof import with_swap
from calotype.model import Image, OsState, OsType, Verdict

_SUPERBLOCK = 1024
_NEEDS_RECOVERY = 0x4
#: What an appliance mounts and we do not read.
_MOUNTABLE = {Filesystem.XFS, Filesystem.BTRFS, Filesystem.LVM}
#: As many reasons as a refusal names.
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Settled:
    """An image whose OS state is settled; ``overruled``: what the evidence said against it."""

    image: Image
    overruled: tuple[str, ...] = ()


def settle(image: Image, declared: OsState | None, proof: Proof, *, force: bool = False) -> Settled:
    """The image with its OS state as declared and proved; undeclared, as seen.

    Args:
        image: the image that is to be.
        declared: what the user says of it.
        proof: what its OS disk shows.
        force: the declared state holds against the evidence, which is noted in the image.

    Raises:
        InvalidInput: the evidence contradicts what is declared; or nothing is, and it cannot be seen.
    """
    image = replace(image, verdict=proof.verdict)
    if declared is None:
        if proof.verdict is Verdict.UNKNOWN:
            raise InvalidInput(
                f"cannot see whether '{image.name}' is generalized: {_some(proof.reasons)}",
                hint="say so: --os-state Generalized (makes many VMs) or Specialized (one machine)",
            )
        return Settled(replace(image, os_state=state_of(proof)))
    image = replace(image, os_state=declared)
    against = proof.contradicts(declared)
    if against and not force:
        raise InvalidInput(
            _contradiction(image.name, proof, declared, against), hint=_cure(image, declared)
        )
    if against:
        note = f"declared {declared} with --force, but its disk looks {proof.verdict}: {_some(against)}"
        return Settled(noted(image, note), against)
    if proof.verdict is Verdict.UNKNOWN:
        return Settled(
            noted(image, f"declared {declared}; nobody could look: {_some(proof.reasons)}")
        )
    return Settled(image)


_CURES = {
    OsState.GENERALIZED: "generalize a copy: calotype vm capture VM --image NAME --generalize, or of an "
    "upload: take it as Specialized, then calotype generalize IMAGE --image NAME; or overrule the "
    "evidence with --force (recorded)",
    OsState.SPECIALIZED: "leave --os-state out, or say Generalized; or overrule the evidence with "
    "--force (recorded)",
}


def _cure(image: Image, declared: OsState) -> str:
    if image.os_type is OsType.WINDOWS and declared is OsState.GENERALIZED:
        return (
            "take it as Specialized, make a VM of it, and let Sysprep run in it: calotype vm generalize VM; "
            "or overrule the evidence with --force (recorded)"
        )
    return _CURES[declared]


def _contradiction(name: str, proof: Proof, declared: OsState, against: tuple[str, ...]) -> str:
    if declared is OsState.GENERALIZED:
        return f"'{name}' is declared Generalized, but its disk looks {proof.verdict}: {_some(against)}"
    return (
        f"'{name}' is declared Specialized, but its disk is generalized: as a specialized one it would "
        f"start without a user or a host name ({_some(against)})"
    )


def settle_generalized(
    image: Image, proof: Proof, left_out: Collection[str], *, force: bool = False
) -> Settled:
    """The image after its disk was generalized; what steps that were left out would do is the user's.

    Raises:
        InvalidInput: something else of one machine is left.
    """
    asked = {finding.step for finding in proof.findings} <= {*left_out}
    return settle(image, OsState.GENERALIZED, proof, force=force or asked)


def state_of(proof: Proof) -> OsState:
    """What an undeclared disk is taken for: whatever is not clean is one machine."""
    clean = proof.verdict is Verdict.GENERALIZED
    return OsState.GENERALIZED if clean else OsState.SPECIALIZED


def admit(
    context: Context,
    settled: Settled,
    proof: Proof | None = None,
    generalized: GeneralizeReport | None = None,
) -> None:
    """Make the image exist; what was overruled for it is written into the audit with it.

    What was done to make it general is in a signed report before that.
    """
    if proof is not None and generalized is not None:
        from calotype.engine.evidence import write_evidence  # noqa: PLC0415 (loads much)

        forced = "; ".join(settled.overruled) or None
        with context.progress.phase("signing the report", None):
            write_evidence(context, settled.image, proof, generalized=generalized, forced=forced)
    image, act = settled.image, None
    if settled.overruled:
        act = Act(
            "image.overrule",
            f"image {image.name}",
            {
                "image": image.id,
                "declared": image.os_state.value,
                "verdict": image.verdict.value if image.verdict else None,
                "evidence": list(settled.overruled),
            },
        )
    context.catalog.add_image(image, act=act)


def noted(image: Image, note: str) -> Image:
    """The image with another line in its provenance."""
    provenance = replace(image.provenance, notes=(*image.provenance.notes, note))
    return replace(image, provenance=provenance)


def _some(reasons: tuple[str, ...]) -> str:
    more = len(reasons) - _SHOWN
    return "; ".join(reasons[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def prove_index(context: Context, index: str) -> Proof:
    """The proof of a stored OS disk."""
    with closing(context.repository.open(index)) as disk:
        return prove(context, disk)


def prove(context: Context, disk: Disk) -> Proof:
    """The proof of an OS disk; what we do not read ourselves is mounted in an appliance."""
    proof = prove_disk(disk)
    if proof.verdict is not Verdict.UNKNOWN or not beyond_us(disk, proof.seen):
        return proof
    from calotype.engine.appliance import appliance_tree  # noqa: PLC0415 (QEMU's side: most disks need none)

    try:
        with appliance_tree(context, disk) as mounted:
            found = survey(disk)
            return with_swap(prove_tree(mounted.guest, found), disk, found)
    except CalotypeError as error:
        return replace(proof, reasons=(*proof.reasons, error.message))


def generalize(
    context: Context,
    view: WritableView,
    *,
    enable: Collection[str] = (),
    disable: Collection[str] = (),
    dry_run: bool = False,
) -> GeneralizeReport:
    """Generalize the OS disk behind a view: by ourselves, or in an appliance.

    Raises:
        GuestError: this guest cannot be generalized, or something was left.
    """
    with closing(RawSource(view.path).open()) as disk:
        far = beyond_us(disk, inspect(disk))
    progress = context.progress
    if not far:
        return generalize_view(
            view, enable=enable, disable=disable, dry_run=dry_run, progress=progress
        )
    from calotype.engine.appliance import generalize_in_appliance  # noqa: PLC0415 (see above)

    return generalize_in_appliance(
        context, view, enable=enable, disable=disable, dry_run=dry_run, progress=progress
    )


def beyond_us(disk: Disk, seen: Inspection) -> bool:
    """Whether an appliance can look into a disk of which we see nothing, or not all."""
    kinds = {partition.filesystem for partition in survey(disk).partitions}
    unseen = seen.os_type is None and bool(kinds & _MOUNTABLE)
    return unseen or bool(seen.apart)


def was_shut_down(disk: Disk) -> bool:
    """Whether every ext file system of a disk was left clean (no journal to replay)."""
    for partition in survey(disk).partitions:
        if partition.filesystem is Filesystem.EXT:
            block = read(disk, partition.offset + _SUPERBLOCK, 256)
            (state,) = struct.unpack_from("<H", block, 0x3A)
            (incompatible,) = struct.unpack_from("<I", block, 0x60)
            if incompatible & _NEEDS_RECOVERY or not state & 1:
                return False
    return True
