"""Images of the marketplace: found by name, pulled when they are missing.

An image that was pulled stands on the marketplace's shelf, for the whole installation, under its urn.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from calotype.catalog import Act
from calotype.catalog.audit import current_actor
from calotype.engine.base.fetch import plain
from calotype.engine.context import Context
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.marketplace import offers, purchase, recipes
from calotype.engine.marketplace.download import Fetched, Wanted, fetched
from calotype.engine.marketplace.offers import Offers
from calotype.engine.sources import Upload
from calotype.errors import CalotypeError, Conflict, InvalidInput, NotFound, ToolFailed, Untrusted
from calotype.market import File, Offer, Release, Urn
from calotype.market.offer import FromRecipe, Pinned
from calotype.model import (
    INSTALLATION,
    Architecture,
    Image,
    OsType,
    Provenance,
    PurchasePlan,
    Scope,
    Shelf,
    SourceKind,
    Version,
)
from calotype.units import one_line

log = logging.getLogger("calotype.marketplace")


@dataclass(frozen=True, slots=True)
class Pulled:
    """An image of the marketplace; ``existed``: it was here already."""

    image: Image
    existed: bool


def find(context: Context, text: str) -> Image:
    """The image that a urn or an alias means, pulled if it is missing.

    A version that is here is taken without asking anybody. The latest is the newest that its publisher has;
    where nobody can be asked, the newest that is here. A recipe's versions are what was built here.

    Raises:
        NotFound: no such alias, offer or version.
        PurchaseRefused: it is to be pulled, and the subscription is not entitled to it.
        Untrusted: what the publisher's servers say or deliver does not hold.
        ToolFailed: they do not deliver, and nothing is here.
    """
    if ":" in text and (urn := Urn.parse(text)).version is not None:
        here = _here(context, urn)
        if here is not None:
            return here
    known = offers.load(context)
    urn = known.urn(text)
    offer = known.find(urn)
    newest = _newest_here(context, urn) if urn.version is None else None
    if newest is not None and isinstance(offer.source, FromRecipe):
        return newest
    try:
        return pull(context, urn, known=known).image
    except ToolFailed as error:
        if newest is None:
            raise
        log.warning(
            "%s; taken instead: %s, the newest that was pulled",
            one_line(error.message),
            newest.name,
        )
        return newest


def pull(context: Context, urn: Urn, *, force: bool = False, known: Offers | None = None) -> Pulled:
    """Make a version of an offer (``None``: the latest) an image here.

    Args:
        context: the installation.
        urn: its name.
        force: it is taken although its disk contradicts the OS state that its publisher declares.
        known: the catalogues, if they were read.

    Raises:
        NotFound: no such offer or version.
        PurchaseRefused: the subscription is not entitled to it.
        Forbidden: it is not here, and the caller may make nothing in its group.
        InvalidInput: it is no disk, or its disk is not what the publisher says.
        Untrusted, ToolFailed: as of :func:`find`.
    """
    known = known or offers.load(context)
    offer = known.find(urn)
    purchase.require_entitlement(context, offer.entitlement, f"'{offer.urn.base}'")
    if urn.version is not None and (here := _here(context, urn)) is not None:
        return Pulled(here, existed=True)
    release = _release(context, known, offer, urn.version)
    whole = replace(offer.urn, version=release.version)
    if (here := _here(context, whole)) is None:
        context.catalog.marketplace.require_puller()
        with context.lock(f"pull-{hashlib.sha256(str(whole).encode()).hexdigest()}"):
            if (here := _here(context, whole)) is None:  # nobody pulled it while we waited
                made = _taken(context, known, offer, release, force=force)
                return Pulled(made, existed=False)
    return Pulled(here, existed=True)


def pulled_versions(context: Context, urn: Urn) -> list[Version]:
    """The versions of an offer that are here, the newest first."""
    prefix = f"{urn.base}:"
    names = context.system.marketplace.pulled(prefix)
    found = (Version.parse(name.removeprefix(prefix)) for name in names)
    return sorted((version for version in found if version is not None), reverse=True)


def _here(context: Context, urn: Urn) -> Image | None:
    return context.system.find_on(Shelf.MARKETPLACE, str(urn))


def _newest_here(context: Context, urn: Urn) -> Image | None:
    versions = pulled_versions(context, urn)
    return _here(context, replace(urn, version=versions[0])) if versions else None


def _release(context: Context, known: Offers, offer: Offer, version: Version | None) -> Release:
    for release in offers.releases(context, known, offer, version):
        if version is not None or not release.excluded:
            return release
    raise NotFound(
        f"{offer.urn.base} has no version that may be the latest",
        hint=f"name one: calotype marketplace show {offer.urn.base} lists them",
    )


# -- what there is


@dataclass(frozen=True, kw_only=True, slots=True)
class OfferView:
    """An offer, as people are shown it."""

    urn: str
    title: str
    description: str
    os_type: OsType
    architecture: Architecture
    aliases: tuple[str, ...]
    plan: PurchasePlan | None
    entitlement: str | None
    verified: str  # how its files are known to be its publisher's
    catalog: str | None  # that was added; None: the one that ships
    pulled: tuple[str, ...]  # versions, the newest first
    homepage: str | None
    facts: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionView:
    """A version of an offer: that its publisher has, or that is here."""

    urn: str
    label: str | None  # as its publisher spells it; None: its publisher has it no more
    size: int | None  # of the file, in bytes
    signed_by: str | None  # fingerprint
    excluded: bool  # it is never the latest
    pulled: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """An offer with its versions, the newest first.

    ``accepted``: whether its terms were, by the caller's subscription; ``None``: it has none.
    """

    offer: OfferView
    versions: tuple[VersionView, ...]
    accepted: bool | None


def search(
    context: Context,
    words: Sequence[str] = (),
    *,
    publisher: str | None = None,
    offer: str | None = None,
    sku: str | None = None,
) -> list[OfferView]:
    """The offers in which all words occur, and that are of what else is asked for; nobody is asked."""
    known = offers.load(context)
    found = known.catalogue.search(words, publisher=publisher, offer=offer, sku=sku)
    return [_view(context, known, item) for item in found]


def versions(context: Context, views: Iterable[OfferView]) -> list[VersionView]:
    """The versions of several offers; a publisher that cannot be asked is named, and left out."""
    known = offers.load(context)
    rows: list[VersionView] = []
    for view in views:
        try:
            rows += _versions(context, known, known.find(Urn.parse(view.urn)))
        except CalotypeError as error:
            log.warning("%s: %s", view.urn, one_line(error.message))
    return rows


def show(context: Context, text: str) -> Shown:
    """An offer, its versions, and its terms.

    Raises:
        NotFound: no such offer; Untrusted, InvalidInput, ToolFailed: as of :func:`find`.
    """
    known = offers.load(context)
    offer = known.find(known.urn(text))
    view = _view(context, known, offer)
    accepted = purchase.terms(context, text).accepted if offer.plan is not None else None
    return Shown(offer=view, versions=tuple(_versions(context, known, offer)), accepted=accepted)


def _view(context: Context, known: Offers, offer: Offer) -> OfferView:
    added = known.added.get(offer.publisher)
    return OfferView(
        urn=offer.urn.base,
        title=offer.title,
        description=offer.description,
        os_type=offer.os_type,
        architecture=offer.architecture,
        aliases=offer.aliases,
        plan=offer.purchase_plan,
        entitlement=offer.entitlement,
        verified=_verified(offer),
        catalog=added.name if added is not None else None,
        pulled=tuple(map(str, pulled_versions(context, offer.urn))),
        homepage=offer.homepage,
        facts=offer.facts,
    )


def _verified(offer: Offer) -> str:
    match offer.source:
        case FromRecipe():
            return "built here"
        case Pinned():
            return "by its catalogue"
        case source:
            return "signature" if source.signed_by else "checksums alone"


def _versions(context: Context, known: Offers, offer: Offer) -> list[VersionView]:
    here = set(pulled_versions(context, offer.urn))
    found = {r.version: r for r in offers.releases(context, known, offer)}
    return [
        VersionView(
            urn=str(replace(offer.urn, version=version)),
            label=release.label if release is not None else None,
            size=release.os_disk.size if release is not None and release.os_disk else None,
            signed_by=release.signed_by if release is not None else None,
            excluded=release is not None and release.excluded,
            pulled=version in here,
        )
        for version in sorted(here | found.keys(), reverse=True)
        for release in (found.get(version),)
    ]


# -- from a release to an image


@dataclass(frozen=True, slots=True)
class _InMarketplace:
    """The place of a release's image: on the marketplace's shelf, for everybody."""

    offer: Offer
    release: Release
    url: str  # or the recipe

    @property
    def name(self) -> str:
        """The whole urn."""
        return str(replace(self.offer.urn, version=self.release.version))

    def check(self, context: Context) -> None:
        """Refuse a second image of the same release."""
        if context.system.find_on(Shelf.MARKETPLACE, self.name) is not None:
            raise Conflict(f"'{self.name}' was pulled already")

    def put(self, context: Context, image: Image, act: Act | None) -> Image:
        """Make the image exist, with its offer's plan and entitlement, which its descendants inherit."""
        placed = replace(
            image,
            name=self.name,
            scope=Scope(INSTALLATION, Shelf.MARKETPLACE.value),
            shelf=Shelf.MARKETPLACE,
            provenance=self._provenance(image.provenance),
            plan=self.offer.purchase_plan,
            entitlement=self.offer.entitlement,
        )
        detail = {"image": image.id, "from": self.url, "sha256": image.provenance.sha256 or ""}
        done = act or Act("marketplace.pull", f"image {self.name}", detail)
        actor = current_actor(context.caller.principal)
        context.system.add_image(placed, act=replace(done, actor=actor))
        return placed

    def _provenance(self, imported: Provenance) -> Provenance:
        kind = SourceKind.RECIPE if self.release.recipe else SourceKind.MARKETPLACE
        return replace(
            imported,
            kind=kind,
            source=self.url,
            notes=(
                *imported.notes,
                f"published by {self.offer.publisher}, as {self.release.label}",
                signed(self.release),
            ),
        )


def signed(release: Release) -> str:
    """Who vouches for a release, for people."""
    if release.recipe is not None:
        return "built here, of packages that their distribution signed"
    if release.signed_by is None:
        return "its digest was signed by nobody"
    return f"its digest was signed by {release.signed_by}"


def _taken(
    context: Context, known: Offers, offer: Offer, release: Release, *, force: bool
) -> Image:
    """Fetch or build a release, and import it."""
    request = ImageRequest(
        name=release.label,
        os_type=offer.os_type,
        os_state=offer.os_state,
        force=force,
        architecture=offer.architecture,
        generation=offer.generations[0] if len(offer.generations) == 1 else None,
        label=offer.title,
        family=offer.offer,
        description=offer.description,
        eula=offer.plan.terms if offer.plan is not None else None,
    )
    if release.recipe is not None:
        built = recipes.build_file(context, release.recipe)
        place = _InMarketplace(offer, release, release.recipe)
        upload = Upload(location=str(built.path), format="raw", recipe=release.recipe)
        return _imported(context, request, upload, {}, place)
    if release.os_disk is None or release.format == "iso":
        raise InvalidInput(
            f"{offer.urn.base} is installation media, not a disk",
            hint=f"get it at {offer.homepage or 'its publisher'}, install it in a VM, and capture that",
        )
    wanted = _wanted(release.os_disk, known.allowed(offer))
    data = {lun: _wanted(f, known.allowed(offer)) for lun, f in release.data_disks.items()}
    with _all(context, (wanted, *data.values())) as had:
        place = _InMarketplace(offer, release, plain(had[wanted.digest].url))
        uploads = {
            digest: Upload(location=str(file.path), format=release.format)
            for digest, file in had.items()
        }
        luns = {lun: uploads[file.digest] for lun, file in data.items()}
        return _imported(context, request, uploads[wanted.digest], luns, place)


@contextmanager
def _all(context: Context, files: Iterable[Wanted]) -> Iterator[dict[str, Fetched]]:
    """Have several files, by digest: each once, and in an order in which no two commands wait crosswise."""
    with ExitStack() as stack:
        once = sorted({file.digest: file for file in files}.items())
        yield {digest: stack.enter_context(fetched(context, wanted)) for digest, wanted in once}


def _imported(
    context: Context,
    request: ImageRequest,
    upload: Upload,
    data: Mapping[int, Upload],
    place: _InMarketplace,
) -> Image:
    try:
        return import_image(context, request, upload, data, place).image
    except InvalidInput as error:
        if request.force or type(error) is not InvalidInput:
            raise
        raise InvalidInput(
            error.message,
            hint=f"if you want it all the same: calotype marketplace pull {place.name} --force (recorded)",
        ) from error


def _wanted(file: File, allow: tuple[str, ...]) -> Wanted:
    digest = file.sha256 or file.sha512
    if digest is None:
        raise Untrusted(f"nobody says what {one_line(file.name, 80)} must hash to")
    return Wanted(
        urls=file.urls,
        algorithm="sha256" if file.sha256 else "sha512",
        digest=digest,
        size=file.size,
        allow_addresses=allow,
    )
