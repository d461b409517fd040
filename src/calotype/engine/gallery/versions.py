"""Image versions: made of other images, of VMs, of managed disks and their snapshots, of disk files."""

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from calotype.catalog import Act
from calotype.catalog.versions import Change, Standing
from calotype.engine import names, references, snapshots
from calotype.engine.capture import CaptureRequest, capture_vm
from calotype.engine.context import Context
from calotype.engine.gallery import lifecycle
from calotype.engine.gallery.galleries import require_tags
from calotype.engine.gallery.places import InGallery, require_end, require_luns, require_regions
from calotype.engine.generalize.steps import DEFAULT, Steps
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.machines import power
from calotype.engine.moment import Freeze
from calotype.engine.proof import look, settle
from calotype.engine.sources import Upload
from calotype.errors import InvalidInput
from calotype.model import (
    Caching,
    Image,
    ImageDisk,
    ImageVersion,
    OsState,
    PowerState,
    Provenance,
    Snapshot,
    SourceKind,
)

#: Nothing by its LUN, or by its key.
_NONE: Mapping[Any, Any] = MappingProxyType({})


def place(context: Context, reference: str, **options: Any) -> InGallery:
    """Where ``GALLERY/DEFINITION/VERSION`` is to stand; ``options`` are fields of :class:`InGallery`.

    Raises:
        NotFound: there is no such definition.
        InvalidInput: it is no such reference, or says no number; or there is no such region.
    """
    definition, version = references.find_place(context, reference)
    require_regions(context, options.get("excluded_regions", ()))
    return InGallery(definition=definition, version=version, **options)


def of_image(
    context: Context, where: InGallery, source: str, *, tags: Mapping[str, str] | None = None
) -> ImageVersion:
    """Make a version of an image of any kind: the same disks, as promoted as the image, with its evidence.

    Args:
        context: the installation.
        where: where it is to stand.
        source: a reference to the image.
        tags: the version's, instead of the image's.

    Raises:
        NotFound: there is no such image.
        NotAllowed: the image is obsolete, revoked, or not for this region.
        InvalidInput: it is not what the definition says.
        Conflict, Forbidden: the number is taken, or the caller may not publish there.
    """
    where.check(context)
    with context.operation():
        image = references.find(context, source)
        lifecycle.warnings_of(context, image)
        made_of = Provenance(
            kind=SourceKind.IMAGE,
            source=image.name,
            image_id=image.id,
            notes=image.provenance.notes,
        )
        copy = replace(
            where.fitted(context, replace(image, provenance=made_of)),
            id=names.new_id(),
            name=where.name,
            tags=require_tags(image.tags if tags is None else tags),
            parents=(image.id,),
            created_at=datetime.now(UTC),
        )
        _carry_evidence(context, image, copy)
        where.put(context, copy, None)
    return context.catalog.versions.of_image(copy.id)


def of_vm(
    context: Context,
    where: InGallery,
    vm_name: str,
    *,
    generalize: bool = False,
    force: bool = False,
    freeze: Freeze = "auto",
    steps: Steps = DEFAULT,
    tags: Mapping[str, str] = _NONE,
) -> ImageVersion:
    """Make a version of a VM, with all its disks; the VM goes on.

    Args:
        context: the installation.
        where: where it is to stand.
        vm_name: the VM.
        generalize: generalize a copy on the way.
        force: the definition's OS state holds although the disk contradicts it, which is recorded.
        freeze: whether its file systems are frozen for the instant.
        steps: of generalizing.
        tags: the version's.

    Raises:
        InvalidInput: it is not what the definition says.
        Conflict, Forbidden: the number is taken, or the caller may not publish there.
        GuestError: it cannot be frozen, or generalized.
    """
    where.check(context)
    vm = context.catalog.vm(vm_name)
    where.require_like(vm)
    wanted = where.definition.os_state
    general = wanted is OsState.GENERALIZED
    if generalize and not general:
        raise InvalidInput(
            f"the OS state of image definition '{where.owner}' is {wanted}: nothing in it is generalized",
            hint="leave out --generalize, or take a definition whose OS state is Generalized",
        )
    running = power(context, vm) in (PowerState.RUNNING, PowerState.PAUSED)
    if general and running and not (generalize or force):
        raise InvalidInput(
            f"the OS state of image definition '{where.owner}' is Generalized, and VM '{vm.name}' runs: it "
            "is one machine",
            hint="say --generalize: a copy is generalized on the way, and the VM goes on",
        )
    request = CaptureRequest(
        name=where.name,
        generalize=generalize,
        freeze=freeze,
        steps=steps,
        os_state=wanted if force or (general and not generalize) else None,
        force=force,
        tags=require_tags(tags),
    )
    captured = capture_vm(context, vm.id, request, where)
    return context.catalog.versions.of_image(captured.image.id)


def of_files(
    context: Context,
    where: InGallery,
    upload: Upload,
    data: Mapping[int, Upload] = _NONE,
    *,
    force: bool = False,
    tags: Mapping[str, str] = _NONE,
) -> ImageVersion:
    """Make a version of disk files: the OS disk (or an OVA with all disks), and data disks by LUN.

    Raises:
        DiskRefused: the gate does not let a file in.
        InvalidInput: they are not what the definition says, and it is not forced.
        Conflict, Forbidden: the number is taken, or the caller may not publish there.
    """
    require_luns(data)
    wanted = where.definition
    request = ImageRequest(
        name=where.name,
        os_type=wanted.os_type,
        os_state=wanted.os_state,
        architecture=wanted.architecture,
        generation=wanted.generation,
        force=force,
        tags=require_tags(tags),
    )
    imported = import_image(context, request, upload, data, where)
    return context.catalog.versions.of_image(imported.image.id)


def of_snapshots(
    context: Context,
    where: InGallery,
    os_disk: str,
    data: Mapping[int, str] = _NONE,
    *,
    force: bool = False,
    tags: Mapping[str, str] = _NONE,
) -> ImageVersion:
    """Make a version of snapshots: of an OS disk, and of data disks by LUN.

    Raises:
        NotFound: there is no such snapshot.
        InvalidInput: they are not what the definition says, and it is not forced.
        Conflict, Forbidden: the number is taken, or the caller may not publish there.
    """
    where.check(context)
    require_luns(data)
    with context.operation():
        found = context.catalog.snapshots
        others = {lun: found.get(name) for lun, name in data.items()}
        return _of_snapshots(context, where, found.get(os_disk), others, force=force, tags=tags)


def of_disks(
    context: Context,
    where: InGallery,
    os_disk: str,
    data: Mapping[int, str] = _NONE,
    *,
    force: bool = False,
    tags: Mapping[str, str] = _NONE,
) -> ImageVersion:
    """Make a version of managed disks: an OS disk, and data disks by LUN, each at an instant of its own.

    Snapshots are taken of them, and deleted afterwards.

    Raises:
        NotFound: there is no such disk.
        InvalidInput: they are not what the definition says, and it is not forced.
        Conflict, Forbidden: the number is taken, or the caller may not publish there.
    """
    where.check(context)
    require_luns(data)
    with ExitStack() as stack:

        def taken(disk: str) -> Snapshot:
            name = f"for-a-version-{names.new_id()}"
            snapshot = snapshots.create(context, name, disk).snapshot
            stack.callback(snapshots.delete, context, snapshot.id)
            return replace(snapshot, name=context.catalog.disk(disk).name)

        named = [(None, os_disk), *data.items()]
        caching = {lun: context.catalog.disk(disk).caching for lun, disk in named}
        others = {lun: taken(disk) for lun, disk in data.items()}
        first = taken(os_disk)
        with context.operation():
            return _of_snapshots(
                context, where, first, others, caching=caching, force=force, tags=tags
            )


def update_version(context: Context, reference: str, **changes: Any) -> ImageVersion:
    """Change whether a version may be the latest, its end of life, or where it may not be used.

    ``changes`` are fields of :class:`~calotype.model.ImageVersion`.

    Raises:
        NotFound, Forbidden: there is none, or the caller may not change it.
        InvalidInput: deletion would be blocked until an end that nobody said; there is no such region.
    """
    require_regions(context, changes.get("excluded_regions", ()))
    found = references.find_version(context, reference)

    def decide(standing: Standing) -> Change:
        changed = replace(standing.version, **changes)
        require_end(changed.end_of_life, blocks=changed.block_deletion_before_end_of_life)
        detail = {"image": found.id, "changed": sorted(changes)}
        return Change(changed, Act("version.update", f"image version {found.reference}", detail))

    changed = lifecycle.there(context.catalog.versions.change(found.id, decide))
    if changed.excluded_regions:
        from calotype.engine.gallery import replication  # noqa: PLC0415 (few versions are barred from regions)

        replication.leave_excluded(context, changed)
    return changed


def _of_snapshots(
    context: Context,
    where: InGallery,
    first: Snapshot,
    others: Mapping[int, Snapshot],
    *,
    caching: Mapping[int | None, Caching] = _NONE,
    force: bool,
    tags: Mapping[str, str],
) -> ImageVersion:
    """A version of disks in the store: what the OS disk shows must be what the definition says."""

    def disk(snapshot: Snapshot, lun: int | None = None) -> ImageDisk:
        cached = caching.get(lun, Caching.READ_WRITE)
        return ImageDisk(index=snapshot.index, size=snapshot.size, lun=lun, caching=cached)

    wanted = where.definition
    proof = look.prove_index(context, first.index)
    sources = (one.image_id for one in (first, *others.values()))
    parents = tuple(dict.fromkeys(source for source in sources if source is not None))
    plan, entitlement = context.catalog.versions.heritage(parents)
    image = Image(
        id=names.new_id(),
        name=where.name,
        os_type=proof.seen.os_type or wanted.os_type,
        os_state=wanted.os_state,
        os_disk=disk(first),
        data_disks=tuple(disk(one, lun) for lun, one in sorted(others.items())),
        architecture=proof.seen.architecture or wanted.architecture,
        generation=wanted.generation,
        tags=require_tags(tags),
        provenance=Provenance(
            kind=SourceKind.DISK,
            source=first.name,
            image_id=first.image_id,
            consistency=first.consistency,
        ),
        created_at=datetime.now(UTC),
        parents=parents,
        plan=plan,
        entitlement=entitlement,
    )
    settled = settle.settle(image, wanted.os_state, proof, force=force)
    admitted = settle.admit(context, settled, where, proof)
    return context.catalog.versions.of_image(admitted.id)


def _carry_evidence(context: Context, source: Image, copy: Image) -> None:
    """What was seen of an image holds for a copy of it, for the disks are the same: sign it anew as that."""
    report = context.home.evidence / source.id
    if not report.exists():
        return
    from calotype.engine.proof.evidence import write_evidence  # noqa: PLC0415 (loads much)

    with suppress(InvalidInput, FileNotFoundError):  # what does not hold is no evidence of a copy
        write_evidence(context, copy, source=source, quick=True)
