"""What people write for an image, and the image that it is.

- ``NAME`` or an id: an image of its own, in the caller's group;
- ``GALLERY/DEFINITION[/VERSION]``: a version in a gallery of the caller's group;
- ``/subscriptions/…/galleries/G/images/D[/versions/V]`` and ``/subscriptions/…/images/NAME``: Azure's ids;
- ``/SharedGalleries/UNIQUE_NAME/Images/D[/Versions/V]``: a gallery that another subscription shares;
- ``community/PUBLIC_NAME/DEFINITION[/VERSION]`` and ``/CommunityGalleries/P/Images/D[/Versions/V]``;
- ``PUBLISHER:OFFER:SKU[:VERSION]`` or an alias: the marketplace.

Without a version, or with ``latest``, it is the latest one.
"""

from calotype.engine.context import Context
from calotype.errors import InvalidInput
from calotype.model import Image, Version

_LATEST = "latest"


def find(context: Context, text: str) -> Image:
    """The image that ``text`` means.

    Raises:
        NotFound: there is none, or none that is the latest.
        InvalidInput: ``text`` is no reference.
    """
    if "/" in text:
        return _in_gallery(context, text)
    return context.catalog.image(text)


def version(text: str | None) -> Version | None:
    """The version that ``text`` spells; ``None`` for the latest.

    Raises:
        InvalidInput: it is none.
    """
    if text is None or text.lower() == _LATEST:
        return None
    parsed = Version.parse(text)
    if parsed is None:
        raise InvalidInput(
            f"'{text}' is not a version",
            hint="three numbers below 2147483648, such as 1.10.0, or latest",
        )
    return parsed


def _in_gallery(context: Context, text: str) -> Image:
    gallery, _, rest = text.partition("/")
    name, _, number = rest.partition("/")
    definition = context.catalog.galleries.definition(gallery, name)
    wanted = version(number or None)
    if wanted is None:
        return context.catalog.versions.latest(definition.id, region=context.region).image
    return context.catalog.versions.get(definition.id, wanted).image
