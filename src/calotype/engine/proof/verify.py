"""``image verify``: what an image's disks show, whatever anybody says of it."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from calotype.engine import references
from calotype.engine.context import Context
from calotype.engine.proof import look
from calotype.engine.proof.evidence import write_evidence
from calotype.engine.proof.statement import Rule
from calotype.guest import Proof
from calotype.guest.data_disk import DataProof, prove_data_disk
from calotype.guest.gate import Answer, Ruling, certify
from calotype.model import Image, ImageDisk, Role

_AUTHORITY = "Azure's VHD gate and Marketplace certification"
_PASSED = {Answer.OK: True, Answer.BAD: False, Answer.UNKNOWN: None}


@dataclass(frozen=True, slots=True)
class DataDisk:
    """What was found on a data disk."""

    lun: int
    proof: DataProof


@dataclass(frozen=True, slots=True)
class Verified:
    """An image, the proof of its OS disk, and why that contradicts what the image says (if it does).

    ``certification`` is what the gates of Azure would say; ``report`` is where the signed evidence is.
    """

    image: Image
    proof: Proof
    contradiction: tuple[str, ...]
    data_disks: tuple[DataDisk, ...]
    certification: tuple[Ruling, ...]
    report: Path


def verify_image(context: Context, name: str) -> Verified:
    """Prove an image's disks, write the verdict into the catalogue, and sign the evidence.

    Raises:
        NotFound: there is no such image.
        Forbidden: the caller may not change it.
        StoreDamaged: a disk of it cannot be read.
    """
    image = context.catalog.image(references.find(context, name).id, Role.CONTRIBUTOR)
    luns = [disk.lun for disk in image.data_disks if disk.lun is not None]
    with (
        context.progress.phase("looking into the disks", None),
        closing(context.repository.open(image.os_disk.index)) as disk,
        look.looked(context, disk) as seen,
    ):
        rulings = tuple(certify(seen.tree, seen.found, disk, luns))
    data = tuple(_data(context, disk) for disk in image.data_disks)
    context.catalog.record_verdict(image.id, seen.proof.verdict)
    report = write_evidence(context, image, seen.proof, certification=map(_rule, rulings))
    return Verified(
        image=context.catalog.image(image.id),
        proof=seen.proof,
        contradiction=seen.proof.contradicts(image.os_state),
        data_disks=data,
        certification=rulings,
        report=report,
    )


def _rule(ruling: Ruling) -> Rule:
    passed = _PASSED[ruling.answer]
    return Rule(name=ruling.rule, passed=passed, detail=ruling.evidence, authority=_AUTHORITY)


def _data(context: Context, disk: ImageDisk) -> DataDisk:
    with closing(context.repository.open(disk.index)) as opened:
        return DataDisk(disk.lun or 0, prove_data_disk(opened))
