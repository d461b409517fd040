"""One version of a followed gallery on its way into the store; only missing chunks move."""

import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from calotype.catalog import Act
from calotype.disk.durable import fsync_directory, write_private
from calotype.engine import names
from calotype.engine.community import kept
from calotype.engine.context import Context
from calotype.errors import (
    InvalidInput,
    Untrusted,
)
from calotype.model import (
    INSTALLATION,
    FollowedCommunity,
    Image,
    ImageDisk,
    Provenance,
    Recommended,
    Scope,
    Shelf,
    SourceKind,
    Stage,
)
from calotype.public import form
from calotype.public.domain import COMMUNITY
from calotype.public.form import Definition, GalleryDocument, PacksDocument, PublishedVersion
from calotype.store import Repository
from calotype.store.chunking import Chunking
from calotype.store.copy import CopyReport, copy
from calotype.store.index import PREFIX as INDEXES
from calotype.store.mirrors import Listed, MirrorStore, Use
from calotype.store.pack import PREFIX as PACKS
from calotype.store.parameters import CONFIG, DOMAINS, sealed_domain
from calotype.strict import read_json

_THREADS = 4  # that ask mirrors at once
_ABANDONED = 14 * 86400.0  # seconds after which what an interrupted pull left is given up


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


class Pull:
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
        self._name = kept.reference(document, definition, version)
        self._tree = kept.tree_of(context, community)
        self._directory = kept.directory_of(context, community.name)

    def run(self) -> Pulled:
        """Bring what is missing, and make the image exist."""
        packs = form.decode_packs(self._tree.document(form.PACKS, form.MAX_PACKS))
        _require_config(packs.config)
        self._sweep_footers(packs)
        work = self._directory / "pulls" / sha256(self._name.encode()).hexdigest()[:32]
        store = MirrorStore(
            kept.mirrors_of(self._community),
            self._listed(packs),
            {
                CONFIG: packs.config.encode(),
                DOMAINS + COMMUNITY.name: sealed_domain(COMMUNITY),
            },
            spool=work,
            footers=self._directory / "footers",
        )
        with self._context.operation():
            report = self._copy(store)
            image = self._image(report, self._report())
            detail = {"image": image.id, "from": self._community.name, "moved": report.bytes_read}
            act = Act("community.pull", f"image {self._name}", detail)
            self._context.system.add_image(image, act=act)
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

    def _sweep_footers(self, packs: PacksDocument) -> None:
        """Remove what was kept of packs that are no more."""
        listed = {name for name, _size, _footer in packs.packs}
        for path in (self._directory / "footers").glob("*"):
            if path.name not in listed:
                path.unlink(missing_ok=True)

    def _copy(self, store: MirrorStore) -> CopyReport:
        source, target = Repository(store), self._context.repository
        if replace(source.chunking, version=Chunking().version) != Chunking():
            # Its disks would be read from end to end, however large they are said to be.
            raise Untrusted(
                f"the tree that has {self._name} is cut otherwise than public trees are",
                hint="tell the publisher; nothing of it was used",
            )
        target.keep_domain(COMMUNITY)
        report = copy(
            source,
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
                raise Untrusted(
                    f"{self._name} has a disk of another size than its publisher says",
                    hint="tell the publisher; nothing of it was used",
                )
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


def sweep(directory: Path) -> None:
    """Remove what interrupted pulls left that nobody went on with."""
    for path in (directory / "pulls").glob("*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
