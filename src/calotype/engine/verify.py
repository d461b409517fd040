"""``image verify``: what an image's disks show, whatever anybody says of it."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from calotype.engine import look
from calotype.engine.context import Context
from calotype.engine.evidence import write_evidence
from calotype.guest import Proof
from calotype.model import Image


@dataclass(frozen=True, slots=True)
class Verified:
    """An image, the proof of its OS disk, and why that contradicts what the image says (if it does).

    ``certification`` is what the gates of other clouds would say; ``report`` is where the signed evidence is.
    """

    image: Image
    proof: Proof
    contradiction: tuple[str, ...]
    report: Path | None = None


def verify_image(context: Context, name: str) -> Verified:
    """Prove an image's disks and write the verdict into the catalogue.

    Raises:
        NotFound: there is no such image.
        StoreDamaged: its disk cannot be read.
    """
    image = context.catalog.image(name)
    with closing(context.repository.open(image.os_disk.index)) as disk:
        proof = look.prove(context, disk)
    context.catalog.record_verdict(image.id, proof.verdict)
    image = context.catalog.image(image.id)
    contradiction = proof.contradicts(image.os_state)
    report = write_evidence(context, image, proof)
    return Verified(image, proof, contradiction, report)
