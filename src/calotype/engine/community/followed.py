"""Other installations' public galleries: followed, seen without the network, and pulled chunk by chunk."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import urlsplit

from calotype.catalog import Act
from calotype.disk.durable import write_private
from calotype.engine.community import community as community_view
from calotype.engine.community import kept, pulling
from calotype.engine.community.mirror import HttpMirror
from calotype.engine.community.trusted import MAX_ROOT
from calotype.engine.context import Context
from calotype.errors import (
    CalotypeError,
    Conflict,
    InvalidInput,
    NotAllowed,
    NotFound,
    StoreUnavailable,
    Untrusted,
)
from calotype.model import (
    FollowedCommunity,
    Image,
    Lifecycle,
    PublicGallery,
    Shelf,
    Version,
)
from calotype.public import form, metadata
from calotype.public.form import GalleryDocument, PublishedVersion
from calotype.units import one_line

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?")
_MAX_GALLERIES = 256 << 20  # bytes, of all galleries of one installation


@dataclass(frozen=True, kw_only=True, slots=True)
class Followed:
    """A followed installation as it was seen last."""

    name: str
    mirrors: tuple[str, ...]
    fingerprint: str  # of the root that was trusted when it was added
    galleries: tuple[str, ...]  # public names
    refused: Mapping[str, str]  # galleries that are not believed, and why
    updated_at: datetime | None
    expires_at: datetime | None  # when what was seen must have been renewed
    warnings: tuple[str, ...] = ()


# -- following


def add(
    context: Context,
    url: str,
    *,
    mirrors: Sequence[str] = (),
    name: str | None = None,
    fingerprint: str | None = None,
    allow: Sequence[str] = (),
) -> Followed:
    """Follow an installation whose tree is at ``url`` and at ``mirrors``.

    Its root is trusted from now on: the one with this ``fingerprint``, or else the one that is there.

    Raises:
        Untrusted: the root is another one, or what is there does not hold.
        Conflict: the name is taken, or a public name in there is.
        Forbidden: the caller does not own this installation.
    """
    context.require_all("follow other installations")
    places = [HttpMirror(place, allow) for place in dict.fromkeys((url, *mirrors))]
    name = _called(name, url)
    with context.lock(f"community-{name}"):
        if any(known.name == name for known in context.catalog.communities.list()):
            raise Conflict(
                f"'{name}' is followed already",
                hint=f"calotype community update {name}; or choose another --name",
            )
        root = _first_root(places, fingerprint)
        community = FollowedCommunity(
            name=name,
            mirrors=tuple(place.url for place in places),
            root=root.decode(),
            allow_addresses=tuple(allow),
            added_at=datetime.now(UTC),
        )
        directory = kept.directory_of(context, name)
        shutil.rmtree(directory, ignore_errors=True)  # of an add that was killed
        try:
            seen = _update(context, community)
            _require_own_names(seen)
            detail = {"mirrors": list(community.mirrors), "fingerprint": seen.fingerprint}
            act = Act("community.add", f"community {name}", detail)
            context.catalog.communities.add(community, act)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
    return seen


def update(context: Context, name: str, *, mirrors: Sequence[str] | None = None) -> Followed:
    """See what a followed installation shows now; with ``mirrors``, at these places.

    Raises:
        NotFound: none is called so.
        Untrusted: what is there does not hold; what was seen before stays.
        StoreUnavailable: no mirror can be reached.
    """
    with _held(context, name) as known:
        community = known
        if mirrors is not None:
            places = tuple(HttpMirror(place).url for place in dict.fromkeys(mirrors))
            act = Act("community.mirrors", f"community {name}", {"mirrors": list(places)})
            context.catalog.communities.set_mirrors(name, places, act)
            community = replace(community, mirrors=places)
        return _update(context, community)


def remove(context: Context, name: str) -> None:
    """Follow an installation no longer; images that were pulled stay.

    Raises:
        NotFound: none is called so.
    """
    with _held(context, name):
        act = Act("community.remove", f"community {name}", {})
        context.catalog.communities.remove(name, act)
        shutil.rmtree(kept.directory_of(context, name), ignore_errors=True)


@contextmanager
def _held(context: Context, name: str) -> Iterator[FollowedCommunity]:
    """A followed installation, which nobody else brings up to date or removes meanwhile."""
    context.catalog.communities.get(name)  # else any text would be the name of a file
    with context.lock(f"community-{name}"):
        yield context.catalog.communities.get(name)


def followed(context: Context) -> list[Followed]:
    """All followed installations as they were seen last."""
    return [_seen(context, community) for community in context.catalog.communities.list()]


def galleries(context: Context) -> list[PublicGallery]:
    """The galleries of all followed installations as they were seen last; nobody is asked."""
    return [
        document.shown(community.name)
        for community in context.catalog.communities.list()
        for document in kept.documents(context, community)
    ]


def _require_own_names(seen: Followed) -> None:
    if seen.refused:
        raise Untrusted(
            f"{seen.mirrors[0]}: {'; '.join(seen.refused.values())}",
            hint="a gallery's public name is its publisher's for ever: one of them pretends",
        )


def _called(name: str | None, url: str) -> str:
    if name is None:
        name = re.sub(r"[^a-z0-9.-]", "-", (urlsplit(url).hostname or "").lower()).strip(".-")
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"'{one_line(name, 80)}' cannot be the name of a followed installation",
            hint="--name NAME: a-z 0-9 . - , at most 64",
        )
    return name


def _first_root(mirrors: Sequence[HttpMirror], wanted: str | None) -> bytes:
    """The root to trust."""
    pinned = wanted.lower().replace(":", "") if wanted is not None else None
    if pinned is not None and not re.fullmatch("[0-9a-f]{64}", pinned):
        raise InvalidInput(
            "a fingerprint is 64 hex digits", hint="the publisher's export prints it"
        )
    problems: list[CalotypeError] = []
    for mirror in mirrors:
        try:
            data = mirror.get(f"{metadata.METADATA}root.json", MAX_ROOT)
            there = metadata.fingerprint(metadata.read_root(data, f"the root at {mirror.name}"))
        except (Untrusted, NotFound, StoreUnavailable) as error:
            problems.append(error)
            continue
        if pinned in (None, there):
            return data
        problems.append(
            Untrusted(f"the root at {mirror.name} has the fingerprint {there}, and not {pinned}")
        )
    told = "; ".join(problem.message for problem in problems)
    if any(isinstance(problem, Untrusted) for problem in problems):
        raise Untrusted(
            told, hint="ask the publisher, over another way, for the address and the fingerprint"
        )
    raise StoreUnavailable(
        f"there is no public tree: {told}",
        hint="the URL is that of the directory that holds metadata/; is its server up?",
    )


def _update(context: Context, community: FollowedCommunity) -> Followed:
    """Bring what is known of a tree up to date; the state file's rename makes it what is seen."""
    tree = kept.tree_of(context, community)
    tree.refresh()
    targets = {
        name.lower(): form.target_of_gallery(name) for name in form.galleries_in(tree.names())
    }
    if tree.size(targets.values()) > _MAX_GALLERIES:
        raise Untrusted(
            f"the galleries of '{community.name}' are more than {_MAX_GALLERIES} bytes in all",
            hint="tell the publisher; nothing of it was used",
        )
    before = kept.state_of(context, community)
    tree.sweep([*targets.values(), form.PACKS], before.get("galleries", {}).values())
    taken = _taken_names(context, community)
    accepted: dict[str, str] = {}
    refused: dict[str, str] = {}
    documents: list[GalleryDocument] = []
    for public_name, target in targets.items():
        data = tree.document(target, form.MAX_GALLERY)
        document = form.decode_gallery(data, public_name)
        owner = taken.get(public_name)
        if owner is None and context.system.community.bearer(document.public_name) is not None:
            owner = "this installation's"  # withdrawn: names never change hands
        if owner is not None:
            refused[document.public_name] = (
                f"the gallery {document.public_name} is {owner}, and another publisher's here"
            )
            continue
        documents.append(document)
        accepted[document.public_name] = sha256(data).hexdigest()
    state = {
        "galleries": accepted,
        "refused": refused,
        "names": sorted({*before.get("names", ()), *accepted}),  # they never change hands
        "updatedAt": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    directory = kept.directory_of(context, community.name)
    write_private(directory / kept.STATE, json.dumps(state).encode())
    pulling.sweep(directory)
    _revoke(context, community, documents)
    return replace(_seen(context, community), warnings=tuple(tree.passed_over))


def _taken_names(context: Context, community: FollowedCommunity) -> dict[str, str]:
    """Public names (in lower case) that others had first, and whose they are."""
    taken: dict[str, str] = {}
    for other in context.catalog.communities.list():
        if other.name != community.name:
            names = kept.state_of(context, other).get("names", ())
            taken |= {n.lower(): f"that of '{other.name}'" for n in names}
    for gallery in community_view.public(context):
        taken[community_view.public_name(gallery).lower()] = "this installation's"
    return taken


def _revoke(
    context: Context, community: FollowedCommunity, documents: Sequence[GalleryDocument]
) -> None:
    """Note of images that were pulled what their publisher says now: revoked, or no longer so."""
    changed: dict[str, str | None] = {}
    for name, version in kept.versions(documents):
        image = context.system.find_on(Shelf.COMMUNITY, name)
        if image is None:
            continue
        nearest = context.system.lineage.revocation(image.id)
        marked = nearest is not None and nearest.id == image.id
        if (version.state is Lifecycle.REVOKED) != marked:
            reason = version.reason or "its publisher revoked it"
            changed[image.id] = None if marked else reason
    if changed:
        detail = {"images": sorted(changed)}
        act = Act("community.revoke", f"community {community.name}", detail)
        context.system.communities.revoke(changed, act)


def _seen(context: Context, community: FollowedCommunity) -> Followed:
    state = kept.state_of(context, community)
    updated = state.get("updatedAt")
    root = metadata.read_root(community.root.encode())
    return Followed(
        name=community.name,
        mirrors=community.mirrors,
        fingerprint=metadata.fingerprint(root),
        galleries=tuple(sorted(state.get("galleries", {}))),
        refused=state.get("refused", {}),
        updated_at=datetime.fromisoformat(updated) if isinstance(updated, str) else None,
        expires_at=kept.tree_of(context, community).expires_at,
    )


def require_usable(context: Context, image: Image) -> tuple[str, ...]:
    """Refuse a pulled image that its publisher declared obsolete; warnings about one that is deprecated.

    Raises:
        NotAllowed: its publisher wants no new VMs of it.
    """
    parts = image.name.split("/")
    version = Version.parse(parts[-1])
    try:
        _community, document = kept.bearer(context, parts[1])
        _definition, published = document.find(parts[2], version)
    except NotFound:
        return ()  # nobody that is followed says anything of it any more
    if published.state is Lifecycle.DEPRECATED:
        told = f"; use {published.replacement}" if published.replacement else ""
        return (f"{image.name} is deprecated by its publisher{told}",)
    _require_state(image.name, published)
    return ()


def _require_state(name: str, version: PublishedVersion) -> None:
    if not version.state.usable:
        why = f": {version.reason}" if version.reason else ""
        raise NotAllowed(
            f"'{name}' is {version.state.value.lower()} by its publisher{why}",
            hint=f"use {version.replacement}" if version.replacement else "use a newer version",
        )


# -- pulling


def pull(
    context: Context, public_name: str, definition: str, version: Version | None = None
) -> Image:
    """The image of a followed gallery; without ``version`` the latest one. What is missing is pulled.

    Raises:
        NotFound: there is no such gallery, image or version.
        NotAllowed: its publisher wants no new VMs of it.
        Untrusted: what mirrors show or send does not hold.
        StoreUnavailable: no mirror delivers.
    """
    return bring(context, public_name, definition, version).image


def bring(
    context: Context, public_name: str, definition: str, version: Version | None = None
) -> pulling.Pulled:
    """As :func:`pull`, and what it took."""
    _community, document = kept.bearer(context, public_name)
    found, published = document.find(definition, version)
    if (image := _here(context, kept.reference(document, found, published))) is not None:
        return pulling.Pulled(image=image, moved=0, resumed=0, known=0, mirrors=(), existed=True)
    # What is not here is asked for anyway: the publisher may have thought better of it since.
    seen = update(context, _community.name)
    community, document = kept.bearer(context, public_name)
    found, published = document.find(definition, version)
    name = kept.reference(document, found, published)
    _require_state(name, published)
    with context.lock(f"pull-{sha256(name.encode()).hexdigest()[:16]}"):
        if (image := _here(context, name)) is not None:
            return pulling.Pulled(
                image=image, moved=0, resumed=0, known=0, mirrors=(), existed=True
            )
        done = pulling.Pull(context, community, document, found, published).run()
    return replace(done, warnings=(*seen.warnings, *done.warnings))


def _here(context: Context, name: str) -> Image | None:
    return context.system.find_on(Shelf.COMMUNITY, name)
