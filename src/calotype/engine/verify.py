"""``image verify``: what an image's disks show, whatever anybody says of it."""

from contextlib import closing
from dataclasses import dataclass

from calotype.engine import look
from calotype.engine.context import Context
from calotype.guest import Proof
from calotype.model import Image


@dataclass(frozen=True, slots=True)
class Verified:
    """An image, the proof of its OS disk, and why that contradicts what the image says (if it does)."""

    image: Image
    proof: Proof
    contradiction: tuple[str, ...]


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
    return Verified(image, proof, proof.contradicts(image.os_state))
