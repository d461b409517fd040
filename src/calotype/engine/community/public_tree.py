"""This installation's public galleries as files that any web server or bucket can hold.

Each published disk goes into a repository of its own, in the domain whose key everybody knows; what is there
already is not read again. Then documents, then the metadata over them, and last the timestamp that makes
all this the newest state: whoever reads meanwhile, and whoever is killed, sees the old state or the new one.
What the new state does not need goes when nobody can be reading the old one any more.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

from tuf.api.metadata import Metadata, Snapshot

from calotype.disk.durable import read_map, write_private
from calotype.engine.community import community
from calotype.engine.community.publisher import Publisher
from calotype.engine.context import Context
from calotype.engine.proof.evidence import find_evidence
from calotype.errors import Conflict, NotFound, ReportRefused, Untrusted
from calotype.model import Gallery, Image, ImageDefinition, ImageVersion, Lifecycle, Range, Stage
from calotype.public import form, metadata
from calotype.public.domain import COMMUNITY
from calotype.public.form import Definition, Disk, GalleryDocument, PacksDocument, PublishedVersion
from calotype.public.metadata import METADATA, Lifetimes
from calotype.store import ObjectStore, Repository
from calotype.store.copy import copy
from calotype.store.index import PREFIX as INDEXES
from calotype.store.location import open_store
from calotype.store.needs import packs_of
from calotype.store.pack import PREFIX as PACKS
from calotype.store.pack import Pack
from calotype.store.parameters import CONFIG

#: How long what the newest state does not need stays for those who read an older one.
GRACE = timedelta(days=7)
_TIMESTAMP = f"{METADATA}timestamp.json"
_ROOT = f"{METADATA}root.json"
_SNAPSHOT = "snapshot.json"  # the newest one, for those who renew the timestamp
_MANAGED = (PACKS, INDEXES, METADATA, metadata.TARGETS)
_ROOTS = re.compile(rf"{METADATA}[0-9]+\.root\.json")
_SOON = timedelta(days=60)
_INHERITED = "what it was made of was revoked"


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A public tree that is the newest state now; sizes in bytes."""

    target: str
    fingerprint: str  # what others pin
    galleries: int
    versions: int
    read: int  # of disks that were not there
    stored: int  # what that added
    removed: int  # objects that nobody needs any more
    expires_at: datetime  # when the timestamp must have been renewed
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Refreshed:
    """A timestamp that was renewed."""

    target: str
    expires_at: datetime
    warnings: tuple[str, ...]


def export(
    context: Context,
    target: str,
    *,
    lifetimes: Lifetimes | None = None,
    grace: timedelta = GRACE,
    root_keys: int = 1,
    threshold: int = 1,
) -> Exported:
    """Write the public galleries to ``target``, a directory or another store.

    Args:
        context: the installation.
        target: a path, a URL of a store, or a name of one in config.toml.
        lifetimes: how long signatures are believed.
        grace: how long what is not needed any more stays.
        root_keys: how many keys the first root gets, if there is none.
        threshold: how many of them must sign a root.

    Raises:
        Conflict: the tree is another publisher's, or the root ended.
        Forbidden: the caller does not own this installation.
    """
    context.require_all("export the public galleries")
    publisher = Publisher(context.home, lifetimes)
    publisher.create(root_keys=root_keys, threshold=threshold)
    publisher.require_current()
    with context.lock("community-export"), _opened(context, target) as (objects, cache):
        _require_ours(objects, publisher)
        tree = _Tree(context, objects, cache)
        documents = tree.documents(grace)
        _publish(objects, publisher, documents, cache)
        removed = tree.sweep(documents)
        return Exported(
            target=context.settings.store(target),
            fingerprint=publisher.fingerprint,
            galleries=tree.galleries,
            versions=tree.versions,
            read=tree.read,
            stored=tree.stored,
            removed=removed,
            expires_at=datetime.now(UTC) + publisher.lifetimes.timestamp,
            warnings=(*tree.warnings, *_warnings(publisher)),
        )


def refresh(context: Context, target: str, *, lifetimes: Lifetimes | None = None) -> Refreshed:
    """Renew the timestamp of a tree alone; only its key is needed.

    Raises:
        NotFound: nothing was exported there.
        Conflict: the tree is another publisher's, or the root ended.
        Forbidden: the caller does not own this installation.
    """
    context.require_all("export the public galleries")
    publisher = Publisher(context.home, lifetimes)
    publisher.require_current()
    with context.lock("community-export"), _opened(context, target) as (objects, cache):
        _require_ours(objects, publisher)
        path = cache / _SNAPSHOT
        if not path.exists():
            raise NotFound(
                f"nothing was exported to '{target}' from here",
                hint=f"calotype community export {target}",
            )
        if objects.get(_ROOT) != publisher.roots[-1]:
            raise Conflict(
                f"the keys were changed after the last export to '{target}'",
                hint=f"calotype community export {target} shows the new root",
            )
        data = path.read_bytes()
        snapshot = Metadata[Snapshot].from_bytes(data).signed
        expires = _put_timestamp(objects, publisher, snapshot.version, data)
        warnings = list(_warnings(publisher))
        if (left := snapshot.expires - datetime.now(UTC)) < publisher.lifetimes.snapshot / 3:
            warnings.append(
                f"the lists end in {max(left.days, 0)} days: calotype community export renews them"
            )
        return Refreshed(
            target=context.settings.store(target), expires_at=expires, warnings=tuple(warnings)
        )


class _Tree:
    """The content of one tree, as the catalogue says that it should be."""

    def __init__(self, context: Context, objects: ObjectStore, cache: Path) -> None:
        self._context = context
        self._objects = objects
        self._cache = cache
        self._repository = Repository.create(objects, domain=COMMUNITY, lookup=cache / "lookup")
        self._repository.keep_domain(COMMUNITY)
        self._known = read_map(cache.parent / "indexes.json")
        self._last = _last_packs(cache)
        self._now = datetime.now(UTC).replace(microsecond=0)
        self._needed: dict[str, str] = {}  # private Index -> public one
        self._present = set(self._repository.indexes())
        self._going: set[str] = set()
        self.galleries = self.versions = self.read = self.stored = 0
        self.warnings: list[str] = []

    def documents(self, grace: timedelta) -> dict[str, bytes]:
        """Every target by its name; the disks are in the tree's repository then."""
        found: dict[str, bytes] = {}
        for gallery in community.public(self._context):
            document = self._gallery(gallery, found)
            found[form.target_of_gallery(document.public_name)] = form.encode(document)
            self.galleries += 1
        write_private(self._cache.parent / "indexes.json", json.dumps(self._needed).encode())
        packs = self._packs(grace, found)
        found[form.PACKS] = form.encode(packs)
        return found

    def sweep(self, documents: Mapping[str, bytes]) -> int:
        """Remove the objects whose grace is over, now that no state names them; how many."""
        write_private(self._cache / "packs.json", documents[form.PACKS])
        for key in sorted(self._going):
            self._objects.delete(key)
        return len(self._going)

    # -- documents

    def _gallery(self, gallery: Gallery, documents: dict[str, bytes]) -> GalleryDocument:
        info = gallery.community
        if info is None:
            raise NotFound(f"gallery '{gallery.name}' has no public name")
        definitions = [
            self._definition(gallery, definition, documents)
            for definition in self._context.system.galleries.each_definition(gallery.id)
        ]
        return GalleryDocument(
            public_name=info.public_name,
            publisher_uri=info.publisher_uri,
            publisher_contact=info.publisher_contact,
            eula=info.eula,
            description=gallery.description,
            definitions=tuple(d for d in definitions if d.versions),
        )

    def _definition(
        self, gallery: Gallery, definition: ImageDefinition, documents: dict[str, bytes]
    ) -> Definition:
        versions = [
            self._version(gallery, definition, version, documents)
            for version in _versions(self._context, definition)
        ]
        return Definition(
            name=definition.name,
            publisher=definition.publisher,
            offer=definition.offer,
            sku=definition.sku,
            os_type=definition.os_type,
            os_state=definition.os_state,
            generation=definition.generation,
            architecture=definition.architecture,
            features=definition.features,
            description=definition.description,
            eula=definition.eula,
            privacy_uri=definition.privacy_uri,
            release_notes_uri=definition.release_notes_uri,
            vcpus=_range(definition.vcpus),
            memory=_range(definition.memory),
            plan=form.plan_of(definition.plan),
            end_of_life=definition.end_of_life,
            versions=tuple(versions),
        )

    def _version(
        self,
        gallery: Gallery,
        definition: ImageDefinition,
        version: ImageVersion,
        documents: dict[str, bytes],
    ) -> PublishedVersion:
        image = version.image
        usable = version.state.usable
        self.versions += usable
        return PublishedVersion(
            version=str(version.version),
            published_at=image.created_at,
            disks=self._disks(image, version.reference) if usable else (),
            state=version.state,
            exclude_from_latest=version.exclude_from_latest,
            replacement=_public_replacement(gallery, version.replacement),
            reason=version.reason,
            end_of_life=version.end_of_life or definition.end_of_life,
            verdict=image.verdict,
            report=self._report(image, documents) if usable else None,
            plan=form.plan_of(image.plan),
            entitlement=image.entitlement,
            descends_from=community.public_lineage(self._context, image)[: form.ANCESTORS],
        )

    def _report(self, image: Image, documents: dict[str, bytes]) -> str | None:
        """The digest of an image's evidence report, which becomes a target."""
        try:
            report = find_evidence(self._context, image)
        except ReportRefused as error:
            self.warnings.append(
                f"the evidence report of {image.name} is left out: {error.message}"
            )
            return None
        if report is None:
            self.warnings.append(f"there is no evidence report of {image.name}")
            return None
        data = report.path.read_bytes()
        digest = sha256(data).hexdigest()
        documents[form.target_of_report(digest)] = data
        return digest

    # -- disks

    def _disks(self, image: Image, reference: str) -> tuple[Disk, ...]:
        return tuple(
            Disk(
                index=self._public_index(disk.index, reference),
                size=disk.size,
                caching=disk.caching,
                lun=disk.lun,
            )
            for disk in image.disks
        )

    def _public_index(self, index: str, reference: str) -> str:
        """The Index of the same disk in the tree; the disk is read when it is not there."""
        if index not in self._needed:
            known = self._known.get(index)
            if known is None or known not in self._present:
                known = self._take(index, reference)
            self._needed[index] = known
        return self._needed[index]

    def _take(self, index: str, reference: str) -> str:
        source = self._context.repository
        if source.root(index).domain == COMMUNITY.name:
            done = copy(source, self._repository, [index], progress=self._context.progress)
            if not done.ok:
                raise Conflict(
                    f"{reference} cannot be read: {'; '.join(done.failed.values())}",
                    hint="calotype store check",
                )
            self.stored += done.bytes_stored
            return done.indexes[index]
        with closing(source.open(index)) as disk:
            taken = self._repository.ingest(
                disk, domain=COMMUNITY.name, progress=self._context.progress
            )
        self.read += taken.bytes_read
        self.stored += taken.stored_bytes
        return taken.index

    # -- objects

    def _packs(self, grace: timedelta, documents: Mapping[str, bytes]) -> PacksDocument:
        """The list of the repository's objects, and of those on their way out."""
        listed = {stored.key: stored.size for stored in self._objects.list()}
        wanted = {index: self._packs_of(index, listed) for index in set(self._needed.values())}
        packs = {pack[0]: pack for some in wanted.values() for pack in some}
        places = {key: place for place, key in enumerate(sorted(packs))}
        named = {f"{PACKS}{key}" for key in packs} | {f"{INDEXES}{index}" for index in wanted}
        named |= {metadata.where_of(name, data) for name, data in documents.items()}
        retired: dict[str, datetime] = {}
        for key in listed.keys() - named:
            if not key.startswith(_MANAGED) or key in (_ROOT, _TIMESTAMP) or _ROOTS.fullmatch(key):
                continue
            since = self._last.retired.get(key, self._now) if self._last else self._now
            if self._now - since >= grace:
                self._going.add(key)
            else:
                retired[key] = since
        return PacksDocument(
            config=self._objects.get(CONFIG).decode(),
            packs=tuple(packs[key] for key in sorted(packs)),
            indexes={
                index: (
                    self._objects.size(f"{INDEXES}{index}"),
                    tuple(sorted(places[pack[0]] for pack in some)),
                )
                for index, some in wanted.items()
            },
            retired=retired,
        )

    def _packs_of(self, index: str, listed: Mapping[str, int]) -> Sequence[tuple[str, int, int]]:
        """The packs that an Index needs; as they were listed last when all of them are still there."""
        if self._last is not None and index in self._last.indexes:
            some = [self._last.packs[place] for place in self._last.indexes[index][1]]
            if all(listed.get(f"{PACKS}{name}") == size for name, size, _foot in some):
                return some
        return [_listed(pack) for pack in packs_of(self._repository, index).values()]


def _publish(
    objects: ObjectStore, publisher: Publisher, documents: Mapping[str, bytes], cache: Path
) -> None:
    """Make these documents the newest state: each object before whatever names it."""
    for number, root in enumerate(publisher.roots, 1):
        objects.put(f"{METADATA}{number}.root.json", root, if_absent=True)
    for name, data in documents.items():
        objects.put(metadata.where_of(name, data), data, if_absent=True)
    lifetimes = publisher.lifetimes
    number = publisher.next("targets")
    targets = metadata.signed_by(
        metadata.make_targets(documents, version=number, lifetime=lifetimes.targets),
        [publisher.signer("targets")],
    )
    objects.put(f"{METADATA}{number}.targets.json", targets)
    snapshot = metadata.signed_by(
        metadata.make_snapshot(number, targets, version=number, lifetime=lifetimes.snapshot),
        [publisher.signer("snapshot")],
    )
    objects.put(f"{METADATA}{number}.snapshot.json", snapshot)
    objects.put(_ROOT, publisher.roots[-1])
    write_private(cache / _SNAPSHOT, snapshot)
    _put_timestamp(objects, publisher, number, snapshot)


def _put_timestamp(
    objects: ObjectStore, publisher: Publisher, snapshot: int, data: bytes
) -> datetime:
    content = metadata.make_timestamp(
        snapshot,
        data,
        version=publisher.next("timestamp"),
        lifetime=publisher.lifetimes.timestamp,
    )
    objects.put(_TIMESTAMP, metadata.signed_by(content, [publisher.signer("timestamp")]))
    return content.expires


def _require_ours(objects: ObjectStore, publisher: Publisher) -> None:
    try:
        root = metadata.read_root(objects.get(_ROOT))
    except NotFound:
        return
    except Untrusted as error:
        raise Conflict(
            f"the root in that tree does not hold: {error.message}",
            hint="export to another place, or remove metadata/root.json there",
        ) from None
    ours = {metadata.fingerprint(metadata.read_root(data)) for data in publisher.roots}
    if metadata.fingerprint(root) not in ours:
        raise Conflict(
            "that tree is another publisher's: keys of another installation signed it",
            hint="export to another place; or bring its keys (keys/community) here",
        )


@contextmanager
def _opened(context: Context, target: str) -> Iterator[tuple[ObjectStore, Path]]:
    """The tree's objects, and where this installation keeps what it knows of them."""
    url = context.settings.store(target)
    if "://" not in url:
        url = str(Path(url).absolute())
    cache = context.home.prepare().cache / "public" / sha256(url.encode()).hexdigest()[:16]
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    objects = open_store(url, public=True)
    try:
        objects.sweep()
        yield objects, cache
    finally:
        objects.close()


def _versions(context: Context, definition: ImageDefinition) -> Iterator[ImageVersion]:
    """What is said of a definition's versions: those on offer, and those that nobody may use any more."""
    for version in context.system.versions.each(definition.id):
        if not version.state.usable or community.is_offered(context, definition, version):
            yield version
        elif _was_public(version) and context.system.lineage.revocation(version.id) is not None:
            yield replace(version, state=Lifecycle.REVOKED, reason=_INHERITED)


def _was_public(version: ImageVersion) -> bool:
    return version.deleted_at is None and version.image.stage is Stage.PROMOTED


def _warnings(publisher: Publisher) -> Iterator[str]:
    left = publisher.root.expires - datetime.now(UTC)
    if left < _SOON:
        yield f"the root ends in {max(left.days, 0)} days: calotype community rotate renews it"
    if publisher.root_keys_here:
        yield (
            f"the private keys of the root are on this machine ({publisher.root_directory}): keep them "
            "where nobody who breaks in finds them; they are needed once a year, and when a key is lost"
        )


def _public_replacement(gallery: Gallery, reference: str | None) -> str | None:
    """A replacement as others may name it; one outside of the gallery is nobody's business."""
    if reference is None or gallery.community is None:
        return None
    owner, slash, rest = reference.partition("/")
    if owner.lower() != gallery.name.lower() or not slash:
        return reference if ":" in reference or reference.startswith("community/") else None
    return f"community/{gallery.community.public_name}/{rest}"


def _range(wanted: Range) -> tuple[int | None, int | None]:
    return wanted.min, wanted.max


def _listed(pack: Pack) -> tuple[str, int, int]:
    return pack.id, pack.size, len(pack.foot)


def _last_packs(cache: Path) -> PacksDocument | None:
    try:
        return form.decode_packs((cache / "packs.json").read_bytes())
    except (OSError, Untrusted):
        return None
