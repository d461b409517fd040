"""A generalized copy of an image, or of a VM's disk as a rehearsal; the source is never touched."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from calotype.disk.served import served
from calotype.disk.view import NbdSource, writable
from calotype.engine import names, references
from calotype.engine.context import Context
from calotype.engine.gallery import lifecycle
from calotype.engine.gallery.places import Place
from calotype.engine.generalize.steps import Steps
from calotype.engine.moment import moment
from calotype.engine.proof import look, settle
from calotype.errors import InvalidInput, NotAllowed
from calotype.guest import GeneralizeReport, Proof
from calotype.model import Image, OsState, OsType, Provenance, SourceKind, Stage, Verdict


@dataclass(frozen=True, slots=True)
class GeneralizedImage:
    """A new image, what was done for it, and what its OS disk shows."""

    image: Image
    report: GeneralizeReport
    proof: Proof
    stored_bytes: int


def generalize_image(
    context: Context,
    source: str,
    place: Place,
    steps: Steps,
    *,
    force: bool = False,
) -> GeneralizedImage:
    """Make a generalized image of a specialized one: its OS disk generalized, its data disks as they are.

    Raises:
        Conflict: the place is taken.
        NotAllowed: the source is generalized, obsolete, revoked, or not for this region.
        GuestError: its guest cannot be generalized, or a check found that something is left.
    """
    place.check(context)
    with context.operation() as operation:
        image = references.find(context, source)
        lifecycle.warnings_of(context, image)
        _require_specialized(image)
        overlay = operation.directory / "generalized.qcow2"
        with _served(context, image, operation.directory) as stored:
            with writable(stored, overlay, operation.directory) as view:
                report = look.generalize(context, view, steps)
            with closing(view.disk()) as disk:
                proof = look.prove(context, disk)
                taken = context.repository.ingest(
                    disk,
                    base=image.os_disk.index,
                    changed=view.changed(),
                    progress=context.progress,
                )
        made = settle.settle_generalized(
            _copy(image, place.name, taken.index), proof, steps.disable, force=force
        )
        image = settle.admit(context, made, place, proof, report)
    return GeneralizedImage(image, report, proof, taken.stored_bytes)


def rehearse_image(context: Context, source: str, steps: Steps) -> GeneralizeReport:
    """Say what generalizing an image would do; nothing is kept.

    Raises:
        GuestError: its guest cannot be generalized.
    """
    with context.operation() as operation:
        image = references.find(context, source)
        overlay = operation.directory / "rehearsal.qcow2"
        with (
            _served(context, image, operation.directory) as stored,
            writable(stored, overlay, operation.directory) as view,
        ):
            return look.generalize(context, view, steps, dry_run=True)


def rehearse_vm(context: Context, vm_name: str, steps: Steps) -> GeneralizeReport:
    """Say what generalizing a copy of a VM's OS disk would do; nothing is kept.

    Raises:
        GuestError: its guest cannot be generalized.
    """
    with (
        context.vm_lock(vm_name) as vm,
        context.operation() as operation,
        moment(context, vm, operation) as found,
    ):
        overlay = operation.directory / "rehearsal.qcow2"
        source = found.sources[vm.os_disk.id]
        with writable(source, overlay, operation.directory) as view:
            return look.generalize(context, view, steps, dry_run=True)


@contextmanager
def _served(context: Context, image: Image, scratch: Path) -> Iterator[NbdSource]:
    """A stored OS disk, read from the store as it is needed."""
    with (
        closing(context.repository.open(image.os_disk.index)) as disk,
        served(disk, scratch) as source,
    ):
        yield source


def _require_specialized(image: Image) -> None:
    if image.os_type is not OsType.LINUX:
        raise InvalidInput(
            "only Linux disks can be generalized outside their VM",
            hint="make a VM of it and run calotype vm generalize, which runs Sysprep in it",
        )
    if image.os_state is OsState.GENERALIZED and image.verdict is Verdict.GENERALIZED:
        raise NotAllowed(
            f"image '{image.name}' is generalized already",
            hint=f"calotype image verify {image.name} shows what is left on it",
        )


def _copy(image: Image, name: str, index: str) -> Image:
    provenance = Provenance(
        kind=SourceKind.IMAGE, source=image.name, image_id=image.id, notes=image.provenance.notes
    )
    return replace(
        image,
        id=names.new_id(),
        name=name,
        os_disk=replace(image.os_disk, index=index),
        os_state=OsState.GENERALIZED,
        stage=Stage.STAGED,  # nobody saw these disks start
        provenance=provenance,
        parents=(image.id,),
        created_at=datetime.now(UTC),
    )
