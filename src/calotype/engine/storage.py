"""The store, in the words of images: what it holds, whether it is whole, and what keeps it so.

It is one for all subscriptions, and so for the installation's owner alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

from calotype.disk import Disk, MappedDisk, Window
from calotype.disk import raw as raw_format
from calotype.engine.context import Context
from calotype.model import Image
from calotype.store.check import CheckReport
from calotype.store.copy import CopyReport
from calotype.store.copy import copy as copy_indexes
from calotype.store.location import open_store
from calotype.store.prune import PruneReport
from calotype.store.repair import RepairReport
from calotype.store.repository import Repository
from calotype.store.verified import Verified

_COLD = 15  # the level of zstd for what stays: the next ones are twice as slow and gain 1 %


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """What one image takes: ``unique`` is what deleting it would free. Bytes; all but logical as stored."""

    image: str
    logical: int
    stored: int
    shared: int
    unique: int


@dataclass(frozen=True, slots=True)
class StoreUsage:
    """The whole store, in bytes.

    ``stored`` is what its packs take, ``unreferenced`` what of it a prune can free, ``condemned`` what of
    it the next prune will; ``bases`` is what the materialized bases of VMs take on this host.
    """

    images: tuple[ImageUsage, ...]
    logical: int
    stored: int
    unreferenced: int
    condemned: int
    packs: int
    bases: int


@dataclass(frozen=True, slots=True)
class StoreCheck:
    """What a check found: ``damaged`` objects, and the images that they touch.

    ``total_bytes`` is what there was to read; ``oldest`` when the part of it was last read that waits
    longest (seconds since 1970, ``None``: some of it never).
    """

    ok: bool
    checked_bytes: int
    total_bytes: int
    oldest: int | None
    damaged: tuple[str, ...]
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoreRepair:
    """What a repair did: ``lost`` is what no copy had, ``images`` those that need it."""

    ok: bool
    restored: tuple[str, ...]
    replaced: tuple[str, ...]
    aside: tuple[str, ...]
    chunks: int
    lost: tuple[str, ...]
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoreCopy:
    """What a copy did, in bytes but the counts; ``failed`` images cannot be read in full."""

    ok: bool
    target: str
    images: tuple[str, ...]
    failed: tuple[str, ...]
    already_there: int
    chunks: int
    bytes_read: int
    bytes_stored: int


def stats(context: Context) -> StoreUsage:
    """Count what images hold and share; deletion does not free what VMs, snapshots or restore points need."""
    context.require_all("look into the store")
    images = context.system.every_image()
    named = [disk.index for image in images for disk in image.disks]
    system = context.system
    others = (
        context.indexes_of_disks(),
        system.snapshots.indexes(),
        system.restore_points.indexes(),
    )
    usage = context.repository.stats([*named, *sorted(set().union(*others))])
    counted = iter(usage.indexes)
    rows = []
    for image in images:
        disks = [next(counted) for _ in image.disks]
        rows.append(
            ImageUsage(
                image=image.name,
                logical=image.size,
                stored=sum(disk.stored for disk in disks),
                shared=sum(disk.shared for disk in disks),
                unique=sum(disk.unique for disk in disks),
            )
        )
    return StoreUsage(
        images=tuple(rows),
        logical=sum(image.size for image in images),
        stored=usage.stored,
        unreferenced=usage.dead + usage.duplicate,
        condemned=usage.condemned,
        packs=usage.packs,
        bases=_on_disk(context.home.bases),
    )


def check(
    context: Context,
    *,
    read_data: bool = True,
    sample: float | None = None,
    limit: float | None = None,
) -> StoreCheck:
    """Hold the store against its checksums; name the images that damage touches.

    ``sample`` (a share) and ``limit`` (seconds) read only a part: what was not read for longest. A full
    check that was interrupted goes on where it was.
    """
    context.require_all("check the store")
    whole = sample is None and limit is None
    report = context.repository.check(
        read_data=read_data,
        sample=sample,
        limit=limit,
        memory=_memory(context),
        resume=whole,
        progress=context.progress,
    )
    missing = context.catalog.indexes_in_use() - set(context.repository.indexes())
    gone = [f"indexes/{index}: missing" for index in sorted(missing)]
    return StoreCheck(
        ok=report.ok and not missing,
        checked_bytes=report.bytes_read,
        total_bytes=report.bytes_total,
        oldest=report.oldest,
        damaged=(*_damage(report), *gone),
        images=_images(context, {*report.touched, *missing}),
    )


def prune(
    context: Context,
    *,
    grace: timedelta,
    recompress: bool = False,
    empty: bool = False,
    dry_run: bool = False,
) -> PruneReport:
    """Give back what no image and no disk needs, in regions too; safe beside all other commands.

    Raises:
        Conflict: another prune is at work, or an Index is not whole.
    """
    context.require_all("prune the store")
    if not dry_run:  # a deletion left what other commands at work might have needed
        from calotype.engine.gallery import replication  # noqa: PLC0415 (which uses this)

        context.drop_unused(context.repository.indexes())
        replication.clean(context)
    return context.repository.prune(
        grace=grace,
        level=_COLD if recompress else None,
        empty=empty,
        dry_run=dry_run,
        progress=context.progress,
    )


def repair(context: Context, source: str | None = None) -> StoreRepair:
    """Check everything, and mend what is damaged from another store and from the bases on this host.

    Raises:
        Conflict: a prune is at work.
        NotFound: there is no repository at ``source``.
    """
    context.require_all("repair the store")
    with ExitStack() as stack:
        report = context.repository.check(memory=_memory(context), progress=context.progress)
        other = stack.enter_context(other_store(context, source)) if source else None
        done = context.repository.repair(
            other,
            report=report,
            disks=stack.enter_context(_bases(context, report.touched)),
            progress=context.progress,
        )
    return _repaired(context, done)


def copy(context: Context, target: str, names: Sequence[str] = ()) -> StoreCopy:
    """Bring images (all, without ``names``) to another store; only what it lacks is moved.

    Raises:
        NotFound: there is no such image.
        Conflict: the target is this store.
    """
    context.require_all("copy the store")
    catalog = context.catalog
    images = [catalog.image(name) for name in names] if names else catalog.every_image()
    wanted = {disk.index for image in images for disk in image.disks}
    with other_store(context, target, create=True) as other:
        report = copy_indexes(
            context.repository,
            other,
            sorted(wanted),
            progress=context.progress,
        )
    return _copied(context, target, images, report)


def _copied(
    context: Context, target: str, images: Sequence[Image], report: CopyReport
) -> StoreCopy:
    lost = set(report.failed)
    came: dict[bool, list[str]] = {True: [], False: []}
    for image in images:
        came[lost.isdisjoint(disk.index for disk in image.disks)].append(image.name)
    return StoreCopy(
        ok=report.ok,
        target=context.settings.store(target),
        images=tuple(sorted(came[True])),
        failed=tuple(sorted(came[False])),
        already_there=report.present,
        chunks=report.chunks,
        bytes_read=report.bytes_read,
        bytes_stored=report.bytes_stored,
    )


def _repaired(context: Context, done: RepairReport) -> StoreRepair:
    return StoreRepair(
        ok=done.ok,
        restored=done.restored,
        replaced=done.replaced,
        aside=done.aside,
        chunks=done.chunks,
        lost=tuple(f"{damage.key}: {damage.problem}" for damage in done.lost),
        images=_images(context, done.touched),
    )


@contextmanager
def other_store(context: Context, text: str, *, create: bool = False) -> Iterator[Repository]:
    """Another store: a URL, or a name of one in config.toml."""
    url = context.settings.store(text)
    cache = context.home.cache / "stores" / sha256(url.encode()).hexdigest()[:16]
    objects = open_store(url, cache=cache / "objects", create=create)
    try:
        lookup = cache / "lookup"
        if create:
            other = Repository.replica(context.repository, objects, lookup=lookup)
        else:
            other = Repository(objects, lookup=lookup)
        yield other
    finally:
        objects.close()


@contextmanager
def _bases(context: Context, indexes: Sequence[str]) -> Iterator[Mapping[str, Disk]]:
    """The bases on this host that should hold the same bytes as these Indexes."""
    with ExitStack() as stack:
        found: dict[str, Disk] = {}
        for index in indexes:
            path = context.base_path(index)
            if path.exists():
                window = stack.enter_context(Window.open(path))
                found[index] = MappedDisk(raw_format.parse(window), window)
        yield found


def _on_disk(directory: Path) -> int:
    """What the files below take, holes left out; bases that are still being filled count too."""
    found = 0
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):  # a server gives it its name at this moment
            found += path.lstat().st_blocks * 512
    return found


def _memory(context: Context) -> Verified:
    return Verified(context.home.prepare().cache / f"verified-{context.repository.id}.json")


def _damage(report: CheckReport) -> tuple[str, ...]:
    return tuple(f"{damage.key}: {damage.problem}" for damage in report.damage)


def _images(context: Context, indexes: Sequence[str] | set[str]) -> tuple[str, ...]:
    hit = set(indexes)
    listed = context.system.every_image()
    return tuple(image.name for image in listed if hit & {disk.index for disk in image.disks})
