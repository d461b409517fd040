"""Images after they were made: tags, deletion, what the store holds of them."""

from collections.abc import Mapping
from dataclasses import dataclass

from calotype.engine.context import Context
from calotype.errors import Conflict, NotFound
from calotype.model import Image


@dataclass(frozen=True, slots=True)
class Deletion:
    """What deleting an image did, and who still lives from it."""

    image: Image
    vms: list[str]  # made from it; they go on


def tag(context: Context, name: str, add: Mapping[str, str], remove: tuple[str, ...]) -> Image:
    """Set and remove tags of an image.

    Raises:
        NotFound: no such image, or it has no such tag.
    """
    image = context.catalog.image(name)
    missing = [key for key in remove if key not in image.tags]
    if missing:
        raise NotFound(f"image '{image.name}' has no tag '{missing[0]}'")
    tags = {key: value for key, value in {**image.tags, **add}.items() if key not in remove}
    context.catalog.set_image_tags(image.id, tags)
    return context.catalog.image(image.id)


def delete(context: Context, name: str, *, force: bool = False) -> Deletion:
    """Delete an image; VMs made from it keep their disks.

    Raises:
        Conflict: VMs were made from it, and ``force`` is not set.
    """
    image = context.catalog.image(name)
    vms = context.catalog.vms_of_image(image.id)
    if vms and not force:
        raise Conflict(
            f"VMs were made from image '{image.name}': {', '.join(sorted(vms))}",
            hint="they would go on to work; say --force to delete the image all the same",
        )
    context.catalog.delete_image(image.id)
    still_used = context.catalog.indexes_in_use()
    for disk in image.disks:
        if disk.index not in still_used:
            context.repository.delete_index(disk.index)
    context.drop_unused_bases()
    return Deletion(image, vms)
