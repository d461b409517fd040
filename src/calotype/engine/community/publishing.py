"""A gallery shown to everybody, and taken back: what must be said of it, and what must not be in it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

from calotype.catalog import Act
from calotype.catalog.versions import Change, Standing
from calotype.engine.community import community, fitness
from calotype.engine.community.fitness import Objection
from calotype.engine.context import Context
from calotype.engine.marketplace import purchase
from calotype.engine.proof.settle import noted
from calotype.errors import Conflict, InvalidInput, NotAllowed, PurchaseRefused
from calotype.model import (
    CommunityInfo,
    Gallery,
    ImageDefinition,
    ImageVersion,
    Role,
    Sharing,
    Stage,
    Verdict,
)
from calotype.units import one_line, some

#: Azure's rule; without a hyphen in it, no prefix can look like another gallery's whole name.
_PREFIX: Final = re.compile(r"[A-Za-z0-9]{5,16}")
_MAIL: Final = re.compile(r"[^\s@<>]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_LONGEST: Final = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """What the community is told of a gallery."""

    publisher_uri: str
    publisher_contact: str
    eula: str
    prefix: str  # of the public name


@dataclass(frozen=True, slots=True)
class Published:
    """A gallery that is public now, and what its owner should know of what is in it."""

    gallery: Gallery
    warnings: tuple[str, ...]


def publish(
    context: Context, name: str, publication: Publication, *, force: bool = False
) -> Published:
    """Show a gallery to everybody, under a public name that it keeps for ever.

    Args:
        context: the installation.
        name: the gallery, by name or id.
        publication: what the community is told.
        force: application secrets and traces of one machine in its images are what they are for (recorded).

    Raises:
        InvalidInput: something that must be said is missing, or is no address.
        NotAllowed: something in the gallery is not for everybody.
        NotFound, Forbidden: there is no such gallery, or the caller does not own it.
    """
    gallery = context.catalog.galleries.get(name)
    context.catalog.community.require_owner(gallery.id)
    info = _info(gallery, publication)
    warnings: list[str] = []
    objections: list[Objection] = []
    overruled: list[ImageVersion] = []
    for definition, version in _versions(context, gallery):
        found = [*fitness.objections(context, definition, version), *_terms(context, version)]
        objections += found
        overruled += [version] if found else []
        warnings += _warnings(definition, version)
    _refuse(gallery, objections, force=force)
    for version in overruled:
        _overrule(context, version)
    act = Act(
        "gallery.publish",
        f"gallery {gallery.name}",
        {
            "gallery": gallery.id,
            "publicName": info.public_name,
            "publisherUri": info.publisher_uri,
            "publisherContact": info.publisher_contact,
            "eula": info.eula,
            "overruled": [str(objection) for objection in objections],
        },
    )
    with context.lock(f"gallery-{gallery.id}"):  # another command may have changed it meanwhile
        now = context.catalog.galleries.get(gallery.id)
        if now.community is not None:  # whose name stays what it was
            info = replace(info, public_name=now.community.public_name)
        public = replace(now, sharing=Sharing.COMMUNITY, community=info)
        context.catalog.galleries.update(public, act, Role.OWNER)
    told = [f"{objection} (overruled, recorded)" for objection in objections]
    return Published(public, (*told, *warnings))


def withdraw(context: Context, name: str) -> Gallery:
    """Show a gallery to nobody but whom it is shared with; its public name stays its own.

    Raises:
        NotFound, Forbidden: there is no such gallery, or the caller does not own it.
        Conflict: it is not public.
    """
    found = context.catalog.galleries.get(name)
    context.catalog.community.require_owner(found.id)
    with context.lock(f"gallery-{found.id}"):
        gallery = context.catalog.galleries.get(found.id)
        if gallery.sharing is not Sharing.COMMUNITY:
            raise Conflict(
                f"gallery '{gallery.name}' is not public",
                hint=f"calotype gallery show {gallery.name} says whom it is shared with",
            )
        shared = gallery.everyone or gallery.subscriptions
        taken = replace(gallery, sharing=Sharing.GROUPS if shared else Sharing.PRIVATE)
        act = Act(
            "gallery.withdraw",
            f"gallery {gallery.name}",
            {"gallery": gallery.id, "publicName": community.public_name(gallery)},
        )
        context.catalog.galleries.update(taken, act, Role.OWNER)
    return taken


def _terms(context: Context, version: ImageVersion) -> Iterator[Objection]:
    """What the publisher itself has not accepted, it shows to nobody."""
    if version.image.entitlement is not None:
        return  # which says it all
    try:
        purchase.require(context, version.image)
    except PurchaseRefused as error:
        yield Objection(version.reference, f"has a plan: {error.message}", error.hint or "")


def _overrule(context: Context, version: ImageVersion) -> None:
    """Note in a version that its owner knows what is in it."""

    def decide(standing: Standing) -> Change | None:
        now = standing.version
        if fitness.OVERRULED in now.image.provenance.notes:
            return None
        act = Act("community.overrule", f"image version {now.reference}", {"image": now.id})
        return Change(replace(now, image=noted(now.image, fitness.OVERRULED)), act)

    context.catalog.versions.change(version.id, decide)


def _warnings(definition: ImageDefinition, version: ImageVersion) -> Iterator[str]:
    image = version.image
    if image.stage is Stage.STAGED:
        yield f"{version.reference} is staged: nobody sees it until it is promoted"
    if image.verdict in (None, Verdict.UNKNOWN):
        yield f"{version.reference}: nobody could see whether it is generalized"
    if (plan := image.plan or definition.plan) is not None:
        yield f"{version.reference}: whoever uses it must accept the terms of {plan}"


def _refuse(gallery: Gallery, objections: list[Objection], *, force: bool) -> None:
    standing = [o for o in objections if o.grave or not force]
    if not standing:
        return
    told = some([str(objection) for objection in standing])
    raise NotAllowed(
        f"not everything in gallery '{gallery.name}' is for everybody: {told}",
        hint=standing[0].cure,
    )


def _versions(context: Context, gallery: Gallery) -> Iterator[tuple[ImageDefinition, ImageVersion]]:
    """What of a gallery everybody would see; what makes no VMs any more is not looked into."""
    for definition in context.system.galleries.each_definition(gallery.id):
        for version in community.usable(context, definition):
            yield definition, version


def _info(gallery: Gallery, publication: Publication) -> CommunityInfo:
    if not _PREFIX.fullmatch(publication.prefix):
        raise InvalidInput(
            f"'{one_line(publication.prefix, 64)}' cannot begin a public name",
            hint="--public-name-prefix: 5 to 16 letters and digits, as on Azure",
        )
    known = gallery.community
    if known is None:
        public_name = f"{publication.prefix}-{uuid4()}"
    else:
        public_name = known.public_name
        if public_name.partition("-")[0] != publication.prefix:
            raise InvalidInput(
                f"the community knows gallery '{gallery.name}' as {public_name}, and names never change",
                hint=f"say --public-name-prefix {public_name.partition('-')[0]}",
            )
    return CommunityInfo(
        publisher_uri=_url(publication.publisher_uri, "--publisher-uri"),
        publisher_contact=_contact(publication.publisher_contact),
        eula=_url(publication.eula, "--eula"),
        public_name=public_name,
    )


def _contact(text: str) -> str:
    if _MAIL.fullmatch(text):
        return text
    return _url(text, "--publisher-contact", "a mail address, or the https URL of a page")


def _url(text: str, option: str, what: str = "an https URL") -> str:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if (
        parts.scheme != "https"
        or not host
        or port == 0
        or "@" in parts.netloc
        or len(text) > _LONGEST
        or not text.isprintable()
        or " " in text
    ):
        raise InvalidInput(
            f"{option}: '{one_line(text, 64)}' is not {what}",
            hint="such as https://example.org/images",
        )
    return text
