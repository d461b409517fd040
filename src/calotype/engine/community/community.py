"""The community: public galleries of this installation and of those that it follows, in one view.

Whatever is public here may be used in every subscription, without a role. What is staged, or not for
everybody (:mod:`calotype.engine.community.fitness`), is not there for the community, whoever put it there.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from calotype.catalog import Act
from calotype.catalog.audit import current_actor
from calotype.engine import names, references
from calotype.engine.community import fitness
from calotype.engine.context import Context
from calotype.engine.references import COMMUNITY
from calotype.errors import Conflict, InvalidInput, NotFound
from calotype.model import (
    CommunityReport,
    Gallery,
    Image,
    ImageDefinition,
    ImageVersion,
    PublicGallery,
    PublicImage,
    PublicVersion,
    ReportCategory,
    Sharing,
    Stage,
    Version,
)
from calotype.units import one_line

_LONGEST: Final = 4096  # characters of a reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """A version that everybody may use, with its definition and its gallery."""

    gallery: PublicGallery
    image: PublicImage
    version: PublicVersion


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported:
    """A report that was kept; ``origin`` is the followed installation whose gallery it is about."""

    report: CommunityReport
    publisher_contact: str
    origin: str | None


# -- finding


def find(
    context: Context, public_name: str, definition: str, version: Version | None = None
) -> Image:
    """The image of a community reference (without a version the latest one), pulled if it is missing here.

    Raises:
        NotFound: nobody shows such a gallery or image, or no version of it.
        Conflict: two followed installations claim the gallery's name.
    """
    owner = _own(context, public_name)
    if owner is not None:
        return _offered(context, owner, definition, version)
    _require_one(context, public_name)
    from calotype.engine.community import followed  # noqa: PLC0415 (loads much; few references lead there)

    return followed.pull(context, public_name, definition, version)


def _own(context: Context, public_name: str) -> Gallery | None:
    """The gallery of this installation that has a public name.

    Raises:
        NotFound: it is not public any more, and nobody else has its name.
    """
    owner = context.system.community.bearer(public_name)
    if owner is not None and owner.sharing is not Sharing.COMMUNITY:
        raise _unknown(public_name)
    return owner


def _offered(context: Context, owner: Gallery, definition: str, version: Version | None) -> Image:
    catalog = context.system
    name = f"{COMMUNITY}/{public_name(owner)}/{definition}"
    with suppress(NotFound):
        found = catalog.galleries.definition(owner.id, definition)
        if version is None:
            wanted = catalog.versions.latest(found.id, region=context.region)
        else:
            wanted = catalog.versions.get(found.id, version)
        if is_offered(context, found, wanted):
            return wanted.image
    raise NotFound(
        f"the community has no image '{name}/{version or 'latest'}'",
        hint=f"calotype community show {public_name(owner)} says what it has",
    )


def public_name(gallery: Gallery) -> str:
    """What the community calls a gallery; empty for one that was never published."""
    return gallery.community.public_name if gallery.community is not None else ""


def is_offered(context: Context, definition: ImageDefinition, version: ImageVersion) -> bool:
    """Whether everybody may have a version of a public gallery."""
    if version.deleted_at is not None or version.image.stage is not Stage.PROMOTED:
        return False
    if not version.eligible and context.system.lineage.revocation(version.id) is not None:
        return False
    return not any(fitness.objections(context, definition, version))


# -- the view


def galleries(context: Context, *, all_versions: bool = False) -> list[PublicGallery]:
    """All public galleries with what they offer, by name; of each image the latest version, or all."""
    from calotype.engine.community import followed  # noqa: PLC0415 (see above)

    shown = [_shown(context, g, all_versions=all_versions) for g in public(context)]
    others = followed.galleries(context)
    shown += others if all_versions else map(_latest_only, others)
    return sorted(shown, key=lambda g: (g.info.public_name, g.origin or ""))


def listing(
    context: Context, words: Sequence[str] = (), *, all_versions: bool = False
) -> list[Listing]:
    """What everybody may use, where all ``words`` occur in what is said of it (case does not matter)."""
    found = []
    for gallery in galleries(context, all_versions=all_versions):
        for image in gallery.images:
            said = _said(gallery, image)
            if all(word.lower() in said for word in words):
                found += [Listing(gallery=gallery, image=image, version=v) for v in image.versions]
    return found


def gallery(context: Context, name: str, *, all_versions: bool = True) -> PublicGallery:
    """The public gallery of that name.

    Raises:
        NotFound: there is none.
        Conflict: two followed installations claim the name.
    """
    owner = _own(context, name)
    if owner is not None:
        return _shown(context, owner, all_versions=all_versions)
    found = _require_one(context, name)
    return found if all_versions else _latest_only(found)


def show(context: Context, reference: str) -> PublicGallery | PublicImage | PublicVersion:
    """What ``PUBLIC_NAME[/DEFINITION[/VERSION]]`` names (``community/`` may stand before it).

    Raises:
        NotFound: the community has no such thing.
        InvalidInput: ``reference`` is no such reference.
    """
    return _named(context, reference)[1]


def _named(
    context: Context, reference: str
) -> tuple[PublicGallery, PublicGallery | PublicImage | PublicVersion]:
    name, definition, version = references.public(reference)
    found = gallery(context, name)
    if definition is None:
        return found, found
    image = next((i for i in found.images if i.name.lower() == definition.lower()), None)
    if image is None:
        raise _missing(found, definition)
    if version is None:
        return found, image
    number = image.latest if version.lower() == "latest" else Version.parse(version)
    wanted = next((v for v in image.versions if v.version == number), None)
    if wanted is None:
        raise _missing(found, f"{definition}/{version}")
    return found, wanted


def _require_one(context: Context, name: str) -> PublicGallery:
    """The followed gallery of that name."""
    from calotype.engine.community import followed  # noqa: PLC0415 (see above)

    found = [g for g in followed.galleries(context) if g.info.public_name.lower() == name.lower()]
    if not found:
        raise _unknown(name)
    if len(found) > 1:
        claim = " and ".join(f"'{g.origin}'" for g in found)
        raise Conflict(
            f"{claim} both claim to have the community gallery '{found[0].info.public_name}'",
            hint="one of them lies: remove it, calotype community remove NAME",
        )
    return found[0]


def public(context: Context) -> Iterator[Gallery]:
    """The galleries of this installation that everybody may see, by their public names."""
    return context.system.galleries.each(community=True)


def usable(context: Context, definition: ImageDefinition) -> Iterator[ImageVersion]:
    """The versions of a definition that make VMs or will when they are promoted, the highest first."""
    return (v for v in context.system.versions.each(definition.id) if v.state.usable)


def _shown(context: Context, owner: Gallery, *, all_versions: bool) -> PublicGallery:
    assert owner.community is not None  # noqa: S101 (it is public; for the type checker)
    found = (
        _image(context, owner, definition, all_versions=all_versions)
        for definition in context.system.galleries.each_definition(owner.id)
    )
    return PublicGallery(
        info=owner.community,
        description=owner.description,
        images=tuple(image for image in found if image.versions),
    )


def _image(
    context: Context, owner: Gallery, definition: ImageDefinition, *, all_versions: bool
) -> PublicImage:
    from calotype.public import form  # noqa: PLC0415 (see above)

    name = f"{COMMUNITY}/{public_name(owner)}/{definition.name}"
    latest = None
    with suppress(NotFound):
        latest = context.system.versions.latest(definition.id, region=context.region)
    if latest is not None and not is_offered(context, definition, latest):
        latest = None
    shown: list[ImageVersion] = [latest] if latest else []
    if all_versions:
        shown = [v for v in usable(context, definition) if is_offered(context, definition, v)]
    versions = (_version(context, name, version) for version in shown)
    return form.public_image(definition, name, latest.version if latest else None, versions)


def _version(context: Context, name: str, version: ImageVersion) -> PublicVersion:
    return PublicVersion(
        reference=f"{name}/{version.version}",
        version=version.version,
        state=version.state,
        end_of_life=version.end_of_life,
        size=version.image.size,
        published_at=version.image.created_at,
        descends_from=public_lineage(context, version.image),
    )


def _latest_only(found: PublicGallery) -> PublicGallery:
    images = (
        replace(image, versions=tuple(v for v in image.versions if v.version == image.latest))
        for image in found.images
    )
    return replace(found, images=tuple(image for image in images if image.versions))


def _said(found: PublicGallery, image: PublicImage) -> str:
    texts = (
        *(found.info.public_name, found.description, found.origin),
        *(image.name, image.publisher, image.offer, image.sku, image.description),
        *(image.os_type, image.architecture),
    )
    return " ".join(text for text in texts if text).lower()


# -- lineage


def lineage(context: Context, image: Image) -> tuple[str, ...]:
    """What an image descends from, the nearest first; public ones by their public references."""
    found = context.system.lineage.ancestors(image.id)
    return tuple(_public_reference(context, a.id) or a.name for a in found)


def public_lineage(context: Context, image: Image) -> tuple[str, ...]:
    """As :func:`lineage`, of what everybody knows alone: names of private images are nobody's business."""
    told = []
    for ancestor in context.system.lineage.ancestors(image.id):
        reference = _public_reference(context, ancestor.id)
        if reference is None and (
            ":" in ancestor.name or ancestor.name.startswith(f"{COMMUNITY}/")
        ):
            reference = ancestor.name  # pulled; perhaps it is gone
        if reference is not None:
            told.append(reference)
    return tuple(told)


def _public_reference(context: Context, image_id: str) -> str | None:
    """What the community calls an image, if it is a version in a public gallery of this installation."""
    try:
        version = context.system.versions.of_image(image_id)
    except NotFound:
        return None
    definition = context.system.galleries.definition_of(version.definition_id)
    owner = context.system.galleries.get(definition.gallery_id)
    if owner.sharing is not Sharing.COMMUNITY:
        return None
    return f"{COMMUNITY}/{public_name(owner)}/{definition.name}/{version.version}"


# -- reports


def report(
    context: Context, reference: str, reason: str, category: ReportCategory = ReportCategory.OTHER
) -> Reported:
    """Tell who publishes something, and whoever looks after this installation, what is wrong with it.

    Raises:
        NotFound: the community has no such thing.
        InvalidInput: the reason is empty or too long.
    """
    if not reason.strip() or len(reason) > _LONGEST:
        raise InvalidInput("a report needs a reason", hint=f"--reason, up to {_LONGEST} characters")
    owner, what = _named(context, reference)
    told = what.info.public_name if isinstance(what, PublicGallery) else what.reference
    kept = CommunityReport(
        id=names.new_id(),
        public_name=owner.info.public_name,
        reference=told,
        category=category,
        reason=reason,
        reporter=context.caller.principal or current_actor(),
        at=datetime.now(UTC),
    )
    detail = {"report": kept.id, "category": category.value, "reason": reason}
    context.catalog.community.report(kept, Act("community.report", told, detail))
    return Reported(
        report=kept, publisher_contact=owner.info.publisher_contact, origin=owner.origin
    )


def _unknown(name: str) -> NotFound:
    return NotFound(
        f"the community has no gallery '{one_line(name, 80)}'",
        hint="calotype community list shows them",
    )


def _missing(found: PublicGallery, name: str) -> NotFound:
    return NotFound(
        f"the community has no image '{COMMUNITY}/{found.info.public_name}/{one_line(name, 120)}'",
        hint=f"calotype community show {found.info.public_name} says what it has",
    )
