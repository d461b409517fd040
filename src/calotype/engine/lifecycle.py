"""The life of image versions: promoted, deprecated, revoked, deleted, and back."""

from calotype.engine.context import Context
from calotype.model import Image


def warnings_of(context: Context, image: Image) -> tuple[str, ...]:
    """What to know before a VM is made of an image.

    Raises:
        NotAllowed: none may be made: it is obsolete or revoked, descends from a revoked image, or is not for
            this region.
    """
    del context, image
    return ()
