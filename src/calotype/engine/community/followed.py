"""Other installations' public galleries: followed, seen without the network, and pulled chunk by chunk."""

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from calotype.catalog import Act
from calotype.disk.durable import fsync_directory, write_private
from calotype.engine import names
from calotype.engine.community import community as community_view
from calotype.engine.community.mirror import HttpMirror
from calotype.engine.community.trusted import MAX_ROOT, Tree
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
    INSTALLATION,
    FollowedCommunity,
    Image,
    ImageDisk,
    Lifecycle,
    Provenance,
    PublicGallery,
    Recommended,
    Scope,
    Shelf,
    SourceKind,
    Stage,
    Version,
)
from calotype.public import form, metadata
from calotype.public.domain import COMMUNITY
from calotype.public.form import Definition, GalleryDocument, PacksDocument, PublishedVersion
from calotype.store import Repository
from calotype.store.copy import CopyReport, copy
from calotype.store.index import PREFIX as INDEXES
from calotype.store.mirrors import Listed, MirrorStore, Use
from calotype.store.pack import PREFIX as PACKS
from calotype.store.parameters import CONFIG, DOMAINS, sealed_domain
from calotype.strict import read_json
from calotype.units import one_line

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?")
_THREADS = 4  # that ask mirrors at once
_ABANDONED = 14 * 86400.0  # seconds after which what an interrupted pull left is given up
_MAX_GALLERIES = 256 << 20  # bytes, of all galleries of one installation
_STATE = "state.json"


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulled:
    """An image that is here now, and what that took; sizes in bytes."""

    image: Image
    moved: int  # over the network
    resumed: int  # that an earlier attempt had left
    known: int  # of the disks' data, what was here
    mirrors: tuple[Use, ...]
    existed: bool = False
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
        directory = _directory(context, name)
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
        shutil.rmtree(_directory(context, name), ignore_errors=True)


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
        for document in _documents(context, community)
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
    tree = _tree(context, community)
    tree.refresh()
    targets = {
        name.lower(): form.target_of_gallery(name) for name in form.galleries_in(tree.names())
    }
    if tree.size(targets.values()) > _MAX_GALLERIES:
        raise Untrusted(
            f"the galleries of '{community.name}' are more than {_MAX_GALLERIES} bytes in all",
            hint="tell the publisher; nothing of it was used",
        )
    before = _state(context, community)
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
    directory = _directory(context, community.name)
    write_private(directory / _STATE, json.dumps(state).encode())
    _sweep_pulls(directory)
    _revoke(context, community, documents)
    return replace(_seen(context, community), warnings=tuple(tree.passed_over))


def _taken_names(context: Context, community: FollowedCommunity) -> dict[str, str]:
    """Public names (in lower case) that others had first, and whose they are."""
    taken: dict[str, str] = {}
    for other in context.catalog.communities.list():
        if other.name != community.name:
            names = _state(context, other).get("names", ())
            taken |= {n.lower(): f"that of '{other.name}'" for n in names}
    for gallery in community_view.public(context):
        taken[community_view.public_name(gallery).lower()] = "this installation's"
    return taken


def _revoke(
    context: Context, community: FollowedCommunity, documents: Sequence[GalleryDocument]
) -> None:
    """Note of images that were pulled what their publisher says now: revoked, or no longer so."""
    changed: dict[str, str | None] = {}
    for name, version in _versions(documents):
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


def _versions(documents: Sequence[GalleryDocument]) -> Iterator[tuple[str, PublishedVersion]]:
    for document in documents:
        for definition in document.definitions:
            for version in definition.versions:
                yield _reference(document, definition, version), version


def _reference(document: GalleryDocument, definition: Definition, version: PublishedVersion) -> str:
    return f"community/{document.public_name}/{definition.name}/{version.number}"


# -- what was seen


def _directory(context: Context, name: str) -> Path:
    return context.home.community / name


def _tree(context: Context, community: FollowedCommunity) -> Tree:
    mirrors = _mirrors(community)
    return Tree(_directory(context, community.name), community.root.encode(), mirrors)


def _mirrors(community: FollowedCommunity) -> list[HttpMirror]:
    return [HttpMirror(url, community.allow_addresses) for url in community.mirrors]


def _state(context: Context, community: FollowedCommunity) -> dict[str, Any]:
    try:
        found = json.loads((_directory(context, community.name) / _STATE).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _seen(context: Context, community: FollowedCommunity) -> Followed:
    state = _state(context, community)
    updated = state.get("updatedAt")
    root = metadata.read_root(community.root.encode())
    return Followed(
        name=community.name,
        mirrors=community.mirrors,
        fingerprint=metadata.fingerprint(root),
        galleries=tuple(sorted(state.get("galleries", {}))),
        refused=state.get("refused", {}),
        updated_at=datetime.fromisoformat(updated) if isinstance(updated, str) else None,
        expires_at=_tree(context, community).expires_at,
    )


def _documents(context: Context, community: FollowedCommunity) -> Iterator[GalleryDocument]:
    directory = _directory(context, community.name) / "targets"
    for public_name, digest in sorted(_state(context, community).get("galleries", {}).items()):
        with suppress(OSError):
            data = (directory / digest).read_bytes()
            if sha256(data).hexdigest() == digest:
                yield form.decode_gallery(data, public_name)


def _bearer(context: Context, public_name: str) -> tuple[FollowedCommunity, GalleryDocument]:
    """The followed installation that has a gallery, and the gallery as it was seen last."""
    for community in context.catalog.communities.list():
        for document in _documents(context, community):
            if document.public_name.lower() == public_name.lower():
                return community, document
    raise NotFound(
        f"nobody that is followed has a gallery '{one_line(public_name, 80)}'",
        hint="calotype community list shows what there is; calotype community add URL follows others",
    )


def require_usable(context: Context, image: Image) -> tuple[str, ...]:
    """Refuse a pulled image that its publisher declared obsolete; warnings about one that is deprecated.

    Raises:
        NotAllowed: its publisher wants no new VMs of it.
    """
    parts = image.name.split("/")
    version = Version.parse(parts[-1])
    try:
        _community, document = _bearer(context, parts[1])
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
) -> Pulled:
    """As :func:`pull`, and what it took."""
    _community, document = _bearer(context, public_name)
    found, published = document.find(definition, version)
    if (image := _here(context, _reference(document, found, published))) is not None:
        return Pulled(image=image, moved=0, resumed=0, known=0, mirrors=(), existed=True)
    # What is not here is asked for anyway: the publisher may have thought better of it since.
    seen = update(context, _community.name)
    community, document = _bearer(context, public_name)
    found, published = document.find(definition, version)
    name = _reference(document, found, published)
    _require_state(name, published)
    with context.lock(f"pull-{sha256(name.encode()).hexdigest()[:16]}"):
        if (image := _here(context, name)) is not None:
            return Pulled(image=image, moved=0, resumed=0, known=0, mirrors=(), existed=True)
        done = _Pull(context, community, document, found, published).run()
    return replace(done, warnings=(*seen.warnings, *done.warnings))


def _here(context: Context, name: str) -> Image | None:
    return context.system.find_on(Shelf.COMMUNITY, name)


class _Pull:
    """One version on its way into the store."""

    def __init__(
        self,
        context: Context,
        community: FollowedCommunity,
        document: GalleryDocument,
        definition: Definition,
        version: PublishedVersion,
    ) -> None:
        self._context = context
        self._community = community
        self._document = document
        self._definition = definition
        self._version = version
        self._name = _reference(document, definition, version)
        self._tree = _tree(context, community)
        self._directory = _directory(context, community.name)

    def run(self) -> Pulled:
        """Bring what is missing, and make the image exist."""
        packs = form.decode_packs(self._tree.document(form.PACKS, form.MAX_PACKS))
        _require_config(packs.config)
        work = self._directory / "pulls" / sha256(self._name.encode()).hexdigest()[:32]
        store = MirrorStore(
            _mirrors(self._community),
            self._listed(packs),
            {
                CONFIG: packs.config.encode(),
                DOMAINS + COMMUNITY.name: sealed_domain(COMMUNITY),
            },
            spool=work,
            footers=self._directory / "footers",
        )
        try:
            with self._context.operation():
                report = self._copy(store)
                image = self._image(report, self._report())
                detail = {
                    "image": image.id,
                    "from": self._community.name,
                    "moved": report.bytes_read,
                }
                act = Act("community.pull", f"image {self._name}", detail)
                self._context.system.add_image(image, act=act)
        finally:
            store.close()
        shutil.rmtree(work, ignore_errors=True)
        uses = tuple(store.uses)
        return Pulled(
            image=image,
            moved=sum(use.bytes for use in uses),
            resumed=store.resumed,
            known=report.bytes_known,
            mirrors=uses,
            warnings=tuple(f"{use.name} was dropped: {use.problem}" for use in uses if use.problem),
        )

    def _listed(self, packs: PacksDocument) -> Iterator[Listed]:
        """The objects that this version needs, as they were signed."""
        for disk in self._version.disks:
            if disk.index not in packs.indexes:
                raise Untrusted(
                    f"{self._name} has a disk that the signed list of objects does not have",
                    hint="tell the publisher; nothing of it was used",
                )
            size, places = packs.indexes[disk.index]
            yield Listed(f"{INDEXES}{disk.index}", size)
            for place in places:
                name, size, footer = packs.packs[place]
                yield Listed(f"{PACKS}{name}", size, footer)

    def _copy(self, store: MirrorStore) -> CopyReport:
        target = self._context.repository
        target.keep_domain(COMMUNITY)
        report = copy(
            Repository(store),
            target,
            [disk.index for disk in self._version.disks],
            near=0,
            threads=_THREADS,
            progress=self._context.progress,
        )
        if not report.ok:
            raise Untrusted(
                f"{self._name} is not whole in its publisher's tree: {'; '.join(report.failed.values())}",
                hint="tell the publisher; nothing of it was used",
            )
        return report

    def _report(self) -> Path | None:
        """Where the publisher's evidence report is kept, if there is one."""
        digest = self._version.report
        if digest is None:
            return None
        data = self._tree.document(form.target_of_report(digest), form.MAX_REPORT)
        path = self._directory / "reports" / f"{digest}.json"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_private(path, data)
        fsync_directory(self._directory)
        return path

    def _image(self, report: CopyReport, evidence: Path | None) -> Image:
        definition, version = self._definition, self._version
        disks = [
            ImageDisk(
                index=report.indexes[disk.index],
                size=disk.size,
                caching=disk.caching,
                lun=disk.lun,
            )
            for disk in version.disks
        ]
        for disk in disks:
            if self._context.repository.size(disk.index) != disk.size:
                raise Untrusted(f"{self._name} has a disk of another size than its publisher says")
        notes = [f"published by {self._document.publisher_uri}"]
        if evidence is not None:
            notes.append(f"the publisher's evidence report: {evidence}")
        return Image(
            id=names.new_id(),
            name=self._name,
            os_type=definition.os_type,
            os_state=definition.os_state,
            os_disk=next(disk for disk in disks if disk.lun is None),
            data_disks=tuple(disk for disk in disks if disk.lun is not None),
            architecture=definition.architecture,
            generation=definition.generation,
            description=definition.description,
            eula=definition.eula or self._document.eula,
            recommended=Recommended(vcpus=definition.vcpus[0], memory=definition.memory[0]),
            stage=Stage.PROMOTED,
            verdict=version.verdict,
            provenance=Provenance(
                kind=SourceKind.COMMUNITY,
                source=f"{self._community.name}: {self._community.mirrors[0]}",
                notes=tuple(notes),
            ),
            created_at=datetime.now(UTC),
            scope=Scope(INSTALLATION, Shelf.COMMUNITY.value),
            shelf=Shelf.COMMUNITY,
            plan=form.to_plan(version.plan or definition.plan),
            entitlement=version.entitlement,
        )


def _require_config(config: str) -> None:
    try:
        read_json(config.partition("\n")[0].encode(), limit=len(config) * 4, what="its config")
    except InvalidInput as error:
        raise Untrusted(
            f"the signed list of objects is of no repository: {error.message}",
            hint="tell the publisher; nothing of it was used",
        ) from None


def _sweep_pulls(directory: Path) -> None:
    """Remove what interrupted pulls left that nobody went on with."""
    for path in (directory / "pulls").glob("*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
