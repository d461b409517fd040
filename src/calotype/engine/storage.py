"""What the store holds, in the words of images."""

from dataclasses import dataclass

from calotype.engine.context import Context


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

    ``stored`` is what its packs take, ``unreferenced`` what of it no image and no disk needs; ``bases`` is
    what the materialized bases of VMs take on this host.
    """

    images: tuple[ImageUsage, ...]
    logical: int
    stored: int
    unreferenced: int
    packs: int
    bases: int


@dataclass(frozen=True, slots=True)
class StoreCheck:
    """What a check found: ``damaged`` objects, and the images that they touch."""

    ok: bool
    checked_bytes: int
    damaged: tuple[str, ...]
    images: tuple[str, ...]


def stats(context: Context) -> StoreUsage:
    """Count what images hold and share; what a VM's disk still needs is not freed by deletion."""
    images = context.catalog.list_images()
    named = [disk.index for image in images for disk in image.disks]
    of_vms = sorted({disk.index for disk in context.catalog.list_disks() if disk.index})
    usage = context.repository.stats([*named, *of_vms])
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
        unreferenced=max(0, usage.stored - usage.referenced),
        packs=usage.packs,
        bases=sum(path.stat().st_blocks * 512 for path in context.home.bases.glob("*.raw")),
    )


def check(context: Context, *, read_data: bool = True) -> StoreCheck:
    """Hold the store against its checksums; name the images that damage touches."""
    report = context.repository.check(read_data=read_data, progress=context.progress)
    hit = set(report.touched)
    images = [i.name for i in context.catalog.list_images() if hit & {d.index for d in i.disks}]
    missing = context.catalog.indexes_in_use() - set(context.repository.indexes())
    gone = [f"indexes/{index}: missing" for index in sorted(missing)]
    return StoreCheck(
        ok=report.ok and not missing,
        checked_bytes=report.bytes_read,
        damaged=(*(f"{damage.key}: {damage.problem}" for damage in report.damage), *gone),
        images=tuple(images),
    )
