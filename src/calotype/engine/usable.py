"""Whether a VM may be made of an image: its life cycle, its ancestors', its region, its terms."""

from calotype.engine.context import Context
from calotype.engine.gallery import lifecycle
from calotype.engine.marketplace import purchase
from calotype.errors import NotFound
from calotype.model import Image, Shelf


def require_usable(context: Context, image: Image) -> tuple[str, ...]:
    """Refuse an image that makes no VMs here and now; warnings about one that does.

    Raises:
        NotAllowed: it is obsolete or revoked, descends from a revoked one, or is not for this region.
        PurchaseRefused: its terms were not accepted, or the subscription is not entitled to it.
    """
    warnings = lifecycle.warnings_of(context, image)
    if image.shelf is Shelf.COMMUNITY:
        from calotype.engine.community import followed  # noqa: PLC0415 (loads much; few images come from there)

        warnings += followed.require_usable(context, image)
    purchase.require(context, image)
    return warnings


def require_there(context: Context, image: Image) -> None:
    """Refuse an image that went, or was revoked, while a VM was made of it; the catalogue alone is asked.

    Raises:
        NotFound, NotAllowed: it was deleted or revoked meanwhile, or makes no VMs here any more.
    """
    if not context.system.image_ids([image.id]):
        raise NotFound(f"'{image.name}' was deleted meanwhile", hint="use another image")
    lifecycle.warnings_of(context, image)
