"""Images after they were made: tags, deletion, what the store holds of them."""

from collections.abc import Mapping
from dataclasses import dataclass

from calotype.catalog import Act
from calotype.engine import references
from calotype.engine.context import Context
from calotype.engine.gallery.galleries import require_tags
from calotype.errors import Conflict, NotAllowed
from calotype.model import Image, Role, Shelf


@dataclass(frozen=True, slots=True)
class Deletion:
    """What deleting an image did, and who still lives from it."""

    image: Image
    vms: list[str]  # made from it; they go on


def tag(context: Context, name: str, add: Mapping[str, str], remove: tuple[str, ...]) -> Image:
    """Set and remove tags of an image.

    Raises:
        NotFound: no such image, or it has no such tag.
        InvalidInput: a tag is too long, or has characters that Azure refuses.
    """
    require_tags(add)
    image = references.find(context, name)
    context.catalog.tag_image(image.id, add, remove)
    return context.catalog.image(image.id)


def delete(context: Context, name: str, *, force: bool = False) -> Deletion:
    """Delete an image, or what was pulled under a whole reference; VMs made from it keep their disks.

    Raises:
        Conflict: VMs were made from it, and ``force`` is not set.
        NotAllowed: it is a version in a gallery, which has rules of its own.
    """
    known = _pulled(context, name) or references.by_azures_id(context, name)
    if known is None and "/" in name:
        raise _in_gallery(references.find_version(context, name, deleted=True).image)
    with context.operation():
        image = context.catalog.image(known.id if known else name, Role.CONTRIBUTOR)
        if image.shelf is Shelf.GALLERY:
            raise _in_gallery(image)
        vms = context.catalog.vms_of_image(image.id)
        if vms and not force:
            raise Conflict(
                f"VMs were made from image '{image.name}': {', '.join(sorted(vms))}",
                hint="they would go on to work; say --force to delete the image all the same",
            )
        act = Act("image.delete", f"image {image.name}", {"image": image.id, "vms": vms})
        context.catalog.delete_image(image.id, act=act)
    context.drop_unused(disk.index for disk in image.disks)
    return Deletion(image, vms)


def _pulled(context: Context, name: str) -> Image | None:
    """The pulled image of that whole name: nothing is pulled, and nothing is the latest, to be deleted."""
    found = (context.catalog.find_on(shelf, name) for shelf in (Shelf.MARKETPLACE, Shelf.COMMUNITY))
    return next(filter(None, found), None)


def _in_gallery(image: Image) -> NotAllowed:
    return NotAllowed(
        f"'{image.name}' is a version in a gallery",
        hint=f"calotype gallery image-version delete {image.name}",
    )
