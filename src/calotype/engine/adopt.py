"""A store whose catalogue is lost: every disk in it becomes an image again."""

from contextlib import closing
from datetime import UTC, datetime

from calotype.engine import import_, names
from calotype.engine.context import Context
from calotype.engine.proof import look, settle
from calotype.model import Image, ImageDisk, OsType, Provenance, SourceKind


def adopt(context: Context) -> list[Image]:
    """Make this installation's catalogue the one that changes the store; the images that are new in it.

    The store knows disks, not their names: each that the catalogue does not know becomes an image of its own,
    ``adopted-`` and the beginning of its Index id. Harmless when repeated.

    Raises:
        Conflict: the catalogue is another store's.
    """
    context.require_all("adopt a store")
    with context.operation():
        found = context.repository.adopt()
        known = context.catalog.indexes_in_use()
        fresh = [_image(context, index) for index in sorted(set(found) - known)]
        for image in fresh:
            context.catalog.add_image(image)
    return fresh


def _image(context: Context, index: str) -> Image:
    with closing(context.repository.open(index)) as disk:
        size, proof = disk.size, look.prove(context, disk)
    return Image(
        id=names.new_id(),
        name=f"adopted-{index[:12]}",
        os_type=OsType.LINUX,
        os_state=settle.state_of(proof),
        verdict=proof.verdict,
        os_disk=ImageDisk(index=index, size=size),
        generation=import_.generation(None, proof.seen),
        provenance=Provenance(
            kind=SourceKind.STORE, source=index[:12], notes=tuple(proof.seen.notes)
        ),
        created_at=datetime.now(UTC),
    )
