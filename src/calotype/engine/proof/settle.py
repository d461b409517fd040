"""What is declared of an image against what its disks show; and how an image comes into being."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from calotype.catalog import Act
from calotype.engine.context import Context
from calotype.engine.gallery.places import Place
from calotype.errors import InvalidInput
from calotype.guest import GeneralizeReport, Proof
from calotype.model import Image, OsState, OsType, Verdict
from calotype.units import some


@dataclass(frozen=True, slots=True)
class Settled:
    """An image whose OS state is settled; ``overruled``: what the evidence said against it."""

    image: Image
    overruled: tuple[str, ...] = ()


def settle(
    image: Image,
    declared: OsState | None,
    proof: Proof,
    *,
    force: bool = False,
    how: str = "with --force",
) -> Settled:
    """The image with its OS state as declared and proved; undeclared, as seen.

    Args:
        image: the image that is to be.
        declared: what the user says of it.
        proof: what its OS disk shows.
        force: the declared state holds against the evidence, which is noted in the image.
        how: what ``force`` comes from, for the note.

    Raises:
        InvalidInput: the evidence contradicts what is declared; or nothing is, and it cannot be seen.
    """
    image = replace(image, verdict=proof.verdict)
    if declared is None:
        if proof.verdict is Verdict.UNKNOWN:
            raise InvalidInput(
                f"cannot see whether '{image.name}' is generalized: {some(proof.reasons)}",
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
        note = f"declared {declared} {how}, but its disk looks {proof.verdict}: {some(against)}"
        return Settled(noted(image, note), against)
    if proof.verdict is Verdict.UNKNOWN:
        return Settled(
            noted(image, f"declared {declared}; nobody could look: {some(proof.reasons)}")
        )
    return Settled(image)


_CURES = {
    OsState.GENERALIZED: "generalize a copy: calotype vm capture VM --image NAME --generalize, or of an "
    "upload: take it as Specialized, then calotype generalize IMAGE --image NAME; or overrule the "
    "evidence with --force (recorded)",
    OsState.SPECIALIZED: "leave --os-state out, or say Generalized (in a gallery: a definition of that "
    "state); or overrule the evidence with --force (recorded)",
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
        return (
            f"'{name}' is declared Generalized, but its disk looks {proof.verdict}: {some(against)}"
        )
    return (
        f"'{name}' is declared Specialized, but its disk is generalized: as a specialized one it would "
        f"start without a user or a host name ({some(against)})"
    )


def settle_generalized(
    image: Image, proof: Proof, left_out: Collection[str], *, force: bool = False
) -> Settled:
    """The image after its disk was generalized; what steps that were left out would do is the user's.

    Raises:
        InvalidInput: something else of one machine is left.
    """
    how = "with --force"
    if proof.only(left_out):
        force, how = True, f"with steps left out ({', '.join(sorted(left_out))})"
    return settle(image, OsState.GENERALIZED, proof, force=force, how=how)


def state_of(proof: Proof) -> OsState:
    """What an undeclared disk is taken for: whatever is not clean is one machine."""
    clean = proof.verdict is Verdict.GENERALIZED
    return OsState.GENERALIZED if clean else OsState.SPECIALIZED


def admit(
    context: Context,
    settled: Settled,
    place: Place,
    proof: Proof | None = None,
    generalized: GeneralizeReport | None = None,
) -> Image:
    """Make the image exist in its place; what was overruled for it is written into the audit with it.

    What was done to make it general is in a signed report before that.
    """
    if proof is not None and generalized is not None:
        from calotype.engine.proof.evidence import write_evidence  # noqa: PLC0415 (loads much)

        forced = "; ".join(settled.overruled) or None
        with context.progress.phase("signing the report", None):
            write_evidence(
                context, settled.image, proof, generalized=generalized, forced=forced, quick=True
            )
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
    return place.put(context, image, act)


def noted(image: Image, note: str) -> Image:
    """The image with another line in its provenance."""
    provenance = replace(image.provenance, notes=(*image.provenance.notes, note))
    return replace(image, provenance=provenance)
