"""What people write for an image, and the image that it is.

- ``NAME`` or an id: an image of its own, in the caller's group;
- ``GALLERY/DEFINITION[/VERSION]``: a version in a gallery of the caller's group;
- ``/subscriptions/…/galleries/G/images/D[/versions/V]`` and ``/subscriptions/…/images/NAME``: Azure's ids;
- ``/SharedGalleries/UNIQUE_NAME/Images/D[/Versions/V]``: a gallery that another subscription shares;
- ``community/PUBLIC_NAME/DEFINITION[/VERSION]`` and ``/CommunityGalleries/P/Images/D[/Versions/V]``;
- ``PUBLISHER:OFFER:SKU[:VERSION]`` or an alias: the marketplace.

Without a version, or with ``latest``, it is the latest one. Names have no case.
"""

import re
from typing import NamedTuple

from calotype.engine.context import Context
from calotype.errors import InvalidInput, NotFound
from calotype.model import Gallery, Image, ImageDefinition, ImageVersion, Scope, Shelf, Version
from calotype.units import one_line

_LATEST = "latest"
#: The first part of references to the community's galleries; no gallery is called so.
COMMUNITY = "community"
#: As many characters as a reference has at most.
_LONGEST = 1024

_ANY = "([^/]+)"
_DEFINITION = f"/images/{_ANY}(?:/versions/{_ANY})?/?"
_GROUP = f"/subscriptions/{_ANY}/resourceGroups/{_ANY}/providers/Microsoft\\.Compute"
_FLAGS = re.IGNORECASE | re.ASCII
_IMAGE_ID = re.compile(f"{_GROUP}/images/{_ANY}/?", _FLAGS)
_ONE_GALLERY_ID = re.compile(f"{_GROUP}/galleries/{_ANY}/?", _FLAGS)
_GALLERY_ID = re.compile(f"{_GROUP}/galleries/{_ANY}{_DEFINITION}", _FLAGS)
_SHARED_ID = re.compile(f"/SharedGalleries/{_ANY}{_DEFINITION}", _FLAGS)
_ONE_SHARED_ID = re.compile(f"/SharedGalleries/{_ANY}/?", _FLAGS)
_COMMUNITY_ID = re.compile(f"/CommunityGalleries/{_ANY}{_DEFINITION}", _FLAGS)
_COMMUNITYS = re.compile(f"{COMMUNITY}/|/CommunityGalleries/", _FLAGS)
#: A subscription's id and the gallery's name.
_UNIQUE = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-(.+)", _FLAGS)


class Public(NamedTuple):
    """What a reference names in the community."""

    gallery: str  # its public name
    definition: str | None
    version: str | None


def find(context: Context, text: str) -> Image:
    """The image that ``text`` means; what is in the marketplace or the community is pulled if it is missing.

    Raises:
        NotFound: there is none, or none that is the latest.
        InvalidInput: ``text`` is no reference.
    """
    _require_reference(text)
    if _COMMUNITYS.match(text):
        from calotype.engine.community import community  # noqa: PLC0415 (few references lead there)

        return community.find(context, *public_image(text))
    if (own := by_azures_id(context, text)) is not None:
        return own
    if "/" in text:
        return find_version(context, text).image
    return _named(context, text)


def by_azures_id(context: Context, text: str) -> Image | None:
    """The image that stands by itself and that ``/subscriptions/…/images/NAME`` means; ``None``: no such id.

    Raises:
        NotFound: there is no such image.
    """
    match = _IMAGE_ID.fullmatch(text)
    if match is None:
        return None
    subscription, group, name = match.groups()
    return context.catalog.image_at(Scope(subscription, group), name)


def find_version(context: Context, text: str, *, deleted: bool = False) -> ImageVersion:
    """The image version that ``text`` means: in one of the forms of galleries, or by its id.

    Args:
        context: the installation.
        text: the reference; without a number it is the latest one.
        deleted: one that was deleted and can come back will do.

    Raises:
        NotFound: there is none, or none that is the latest.
        InvalidInput: ``text`` is no reference to a version.
    """
    _require_reference(text)
    if "/" not in text:
        found = _version_of(context, text)
        return context.catalog.versions.get(found.definition_id, found.version, deleted=deleted)
    definition, number = _split(context, text)
    wanted = version(number)
    if wanted is None:
        return context.catalog.versions.latest(definition.id, region=context.region)
    return context.catalog.versions.get(definition.id, wanted, deleted=deleted)


def find_gallery(context: Context, text: str) -> Gallery:
    """The gallery that a name, a unique name or an id means.

    Raises:
        NotFound: there is none.
        InvalidInput: ``text`` is no such reference.
    """
    _require_reference(text)
    galleries = context.catalog.galleries
    if (match := _ONE_GALLERY_ID.fullmatch(text)) is not None:
        subscription, group, name = match.groups()
        return galleries.at(subscription, name, group)
    if (match := _ONE_SHARED_ID.fullmatch(text)) is not None:
        return galleries.at(*unique_parts(match[1]))
    if _UNIQUE.fullmatch(text):
        return galleries.at(*unique_parts(text))
    return galleries.get(text)


def find_definition(context: Context, text: str) -> ImageDefinition:
    """The image definition that ``GALLERY/DEFINITION``, or its id, means.

    Raises:
        NotFound: there is none.
        InvalidInput: ``text`` is no such reference.
    """
    _require_reference(text)
    definition, number = _split(context, text)
    if number is not None:
        raise InvalidInput(
            f"'{text}' names a version",
            hint=f"leave out the version: {definition.reference}",
        )
    return definition


def find_place(context: Context, text: str) -> tuple[ImageDefinition, Version]:
    """The definition and the number that ``GALLERY/DEFINITION/VERSION`` means, for a version to come.

    Raises:
        NotFound: there is no such definition.
        InvalidInput: ``text`` is no such reference, or says no number.
    """
    _require_reference(text)
    definition, number = _split(context, text)
    wanted = version(number)
    if wanted is None:
        name = definition.reference
        raise InvalidInput(
            f"'{text}' says no number of a version",
            hint=f"such as {name}/1.0.0; calotype gallery image-version list {name} shows what there is",
        )
    return definition, wanted


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
            f"'{one_line(text, 64)}' is not a version",
            hint="three numbers below 2147483648, such as 1.10.0, or latest",
        )
    return parsed


def public(text: str) -> Public:
    """What ``[community/]PUBLIC_NAME[/DEFINITION[/VERSION]]``, or an id as Azure writes it, names.

    Raises:
        InvalidInput: ``text`` is no such reference.
    """
    if (match := _COMMUNITY_ID.fullmatch(text)) is not None:
        return Public(*match.groups())
    parts = text.split("/")
    if parts[0].lower() == COMMUNITY:
        del parts[0]
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise InvalidInput(
            f"'{one_line(text, 200)}' names nothing of the community",
            hint=f"{COMMUNITY}/PUBLIC_NAME[/DEFINITION[/VERSION]]; calotype community list shows them",
        )
    return Public(*parts, *[None] * (3 - len(parts)))


def public_image(text: str) -> tuple[str, str, Version | None]:
    """As :func:`public`, of an image: without a version the latest.

    Raises:
        InvalidInput: ``text`` is no such reference.
    """
    gallery, definition, number = public(text)
    if definition is None:
        raise InvalidInput(
            f"'{one_line(text, 200)}' names no image",
            hint=f"{COMMUNITY}/{one_line(gallery, 80)}/DEFINITION[/VERSION]; calotype community show "
            f"{one_line(gallery, 80)} says what it has",
        )
    return gallery, definition, version(number)


def unique_name(gallery: Gallery) -> str:
    """What other subscriptions call a gallery that is shared with them: Azure's form."""
    return f"{gallery.scope.subscription}-{gallery.name.upper()}"


def unique_parts(text: str) -> tuple[str, str]:
    """The subscription's id and the gallery's name in a :func:`unique_name`.

    Raises:
        InvalidInput: it is none.
    """
    match = _UNIQUE.fullmatch(text)
    if match is None:
        raise InvalidInput(
            f"'{one_line(text, 200)}' is not the unique name of a gallery",
            hint="SUBSCRIPTION-NAME; calotype gallery list --shared shows them",
        )
    return match[1].lower(), match[2]


def _require_reference(text: str) -> None:
    if not text or len(text) > _LONGEST or not text.isprintable():
        raise InvalidInput(
            f"'{one_line(text, 64)}' is no reference to an image",
            hint="NAME, GALLERY/DEFINITION[/VERSION], community/GALLERY/DEFINITION[/VERSION], "
            "PUBLISHER:OFFER:SKU[:VERSION], or an id as Azure writes it",
        )


def _named(context: Context, text: str) -> Image:
    """An image by its own name or id, or one of the marketplace by its name or alias."""
    own = None if ":" in text else context.catalog.find_image(text)
    if own is None:
        from calotype.engine.marketplace import marketplace  # noqa: PLC0415 (few references lead there)

        return marketplace.find(context, text)
    if own.shelf is Shelf.GALLERY:
        return find_version(context, own.id).image  # not one that was deleted
    return own


def _version_of(context: Context, identifier: str) -> ImageVersion:
    """The version of that id, also one that was deleted."""
    try:
        return context.catalog.versions.of_image(identifier)
    except NotFound:
        raise NotFound(
            f"there is no image version '{one_line(identifier, 200)}'",
            hint="write GALLERY/DEFINITION/VERSION; calotype gallery image-version list GALLERY/DEFINITION "
            "shows them",
        ) from None


def _split(context: Context, text: str) -> tuple[ImageDefinition, str | None]:
    """The definition that a reference names, and what it says for a version."""
    galleries = context.catalog.galleries
    if (match := _GALLERY_ID.fullmatch(text)) is not None:
        subscription, group, name, definition, number = match.groups()
        owner = galleries.at(subscription, name, group)
        return galleries.definition(owner.id, definition), number
    if (match := _SHARED_ID.fullmatch(text)) is not None:
        unique, definition, number = match.groups()
        owner = galleries.at(*unique_parts(unique))
        return galleries.definition(owner.id, definition), number
    if _COMMUNITYS.match(text):
        raise InvalidInput(
            f"'{one_line(text, 200)}' is an image of the community, and no version in a gallery here",
            hint="make one of it: calotype gallery image-version create GALLERY/DEFINITION/1.0.0 --image "
            f"{one_line(text, 200)}",
        )
    gallery, *rest = text.split("/")
    if not 1 <= len(rest) <= 2 or not gallery or not all(rest):
        raise _no_gallery_form(text)
    return galleries.definition(gallery, rest[0]), rest[1] if len(rest) == 2 else None


def _no_gallery_form(text: str) -> InvalidInput:
    return InvalidInput(
        f"'{one_line(text, 200)}' is no reference to an image in a gallery",
        hint="GALLERY/DEFINITION[/VERSION], community/GALLERY/DEFINITION[/VERSION], or an id as Azure "
        "writes it: /subscriptions/…/galleries/G/images/D/versions/1.0.0",
    )
