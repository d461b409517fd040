"""From uploaded files to an image: gate, ingest, row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from calotype.disk.gate import Format
from calotype.disk.ova import Appliance
from calotype.disk.upload import OpenUpload, open_upload
from calotype.engine import names
from calotype.engine.context import Context
from calotype.engine.gallery.places import Managed, Place
from calotype.engine.proof import look, settle
from calotype.engine.sources import Source, Upload, open_source, require_sha256
from calotype.errors import Conflict, DiskRefused, InvalidInput
from calotype.guest import Inspection
from calotype.model import (
    Architecture,
    Generation,
    Image,
    ImageDisk,
    OsState,
    OsType,
    Provenance,
    Recommended,
    SourceKind,
)
from calotype.store import Ingested

_OVA = "ova"


#: File names that promise a format.
_NAMED = ("vhd", "vhdx", "qcow2", "vmdk", "ova")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRequest:
    """What a new image is to be called and what its author says of it; ``None``: Calotype looks."""

    name: str
    os_type: OsType = OsType.LINUX
    os_state: OsState | None = None
    force: bool = False  # the declared state holds, whatever the disk shows
    architecture: Architecture = Architecture.X64
    generation: Generation | None = None
    label: str | None = None
    family: str | None = None
    description: str | None = None
    eula: str | None = None
    recommended: Recommended = field(default_factory=Recommended)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Imported:
    """A new image, and what each of its disks cost the store (the OS disk first)."""

    image: Image
    ingested: tuple[Ingested, ...]
    existed: bool = False  # the same upload was there under that name: nothing was done


@dataclass(frozen=True, kw_only=True, slots=True)
class _Uploaded:
    """One disk in the store, and the upload that it came from."""

    disk: ImageDisk
    ingested: Ingested
    format: str
    sha256: str
    source: Source
    appliance: Appliance | None


def import_image(
    context: Context,
    request: ImageRequest,
    os_upload: Upload,
    data: Mapping[int, Upload],
    place: Place | None = None,
) -> Imported:
    """Make an image of uploads, by itself or in ``place``: the OS disk, and data disks by LUN.

    An OVA brings all its disks; it cannot be combined with other data disks. The same upload under the
    same name again is no error and does nothing.

    Raises:
        DiskRefused: the gate does not let a file in.
        InvalidInput: a checksum differs, or a property cannot be used.
        Conflict: the name belongs to another image.
    """
    names.vm_size(request.recommended.vcpus, request.recommended.memory)
    with context.operation() as operation:
        scratch = operation.directory
        if place is None:
            names.resource(request.name, "an image")
            existing = context.catalog.find_image(request.name)
            if existing is not None:
                _require_same(context, existing, os_upload, data, scratch)
                return Imported(existing, (), existed=True)
            place = Managed(request.name)
        place.check(context)
        uploaded = _take_in(context, None, os_upload, scratch)
        if len(uploaded) > 1 and data:
            raise InvalidInput("an OVA brings its own data disks", hint="leave out --data-disk")
        for lun, upload in sorted(data.items()):
            taken = _take_in(context, lun, upload, scratch)
            if len(taken) > 1:
                raise InvalidInput("an OVA cannot be one data disk")
            uploaded += taken
        proof = look.prove_index(context, uploaded[0].disk.index)
        image = _image(request, place.name, uploaded, proof.seen)
        settled = settle.settle(image, request.os_state, proof, force=request.force)
        admitted = settle.admit(context, settled, place)
    return Imported(admitted, tuple(item.ingested for item in uploaded))


def _require_same(
    context: Context, existing: Image, upload: Upload, data: Mapping[int, Upload], scratch: Path
) -> None:
    """Accept a repeated upload of the same files; refuse another one under a taken name."""
    taken = Conflict(
        f"image '{existing.name}' exists already and holds something else",
        hint="choose another name, or delete it first",
    )
    if existing.provenance.kind not in (SourceKind.FILE, SourceKind.URL, SourceKind.RECIPE):
        raise taken
    own = {} if existing.provenance.source_format == _OVA else _by_lun(existing)
    if data.keys() != own.keys():
        raise taken
    if upload.location.startswith(("http://", "https://")):
        digest = upload.sha256
    elif upload.location == "-":
        raise taken
    else:
        with open_source(context, upload, scratch) as source:
            digest = source.sha256()
    if digest != existing.provenance.sha256:
        raise taken
    for lun, other in data.items():
        if [item.disk.index for item in _take_in(context, lun, other, scratch)] != [own[lun].index]:
            raise taken


def _by_lun(image: Image) -> dict[int, ImageDisk]:
    return {disk.lun: disk for disk in image.data_disks if disk.lun is not None}


def _take_in(context: Context, lun: int | None, upload: Upload, scratch: Path) -> list[_Uploaded]:
    """Put an upload into the store: one disk, or all disks of an OVA."""
    with (
        open_source(context, upload, scratch) as source,
        open_upload(
            source.window,
            scratch=scratch,
            packed=source.packed,
            declared=upload.format,
            vhd_size=upload.vhd_size,
            progress=context.progress,
        ) as opened,
    ):
        _hold_to_name(source, upload, opened)
        ingested = [
            context.repository.ingest(source.follow(image.disk), progress=context.progress)
            for image in opened
        ]
        sha256 = source.sha256()
    require_sha256(source.shown, sha256, upload.sha256)
    return [
        _Uploaded(
            disk=ImageDisk(
                index=cost.index,
                size=cost.size,
                caching=upload.caching,
                lun=lun if position == 0 else position - 1,
            ),
            ingested=cost,
            format=image.format,
            sha256=sha256,
            source=source,
            appliance=opened.appliance,
        )
        for position, (image, cost) in enumerate(zip(opened, ingested, strict=True))
    ]


def _hold_to_name(source: Source, upload: Upload, opened: OpenUpload) -> None:
    """A file that is named as a format and is not in it was cut off, or renamed: not taken for raw."""
    name = source.shown.lower()
    suffix = next((kind for kind in _NAMED if name.endswith(f".{kind}")), None)
    if suffix and upload.format is None and opened.images[0].format is Format.RAW:
        raise DiskRefused(
            f"'{source.shown}' is named as {suffix}, and nothing of that format is in it",
            hint="if it was cut off, fetch it again; if it is a raw disk, say --format raw",
        )


def _image(request: ImageRequest, name: str, uploaded: list[_Uploaded], seen: Inspection) -> Image:
    first = uploaded[0]
    return Image(
        id=names.new_id(),
        name=name,
        os_type=seen.os_type or request.os_type,  # what stands there, where it can be seen
        os_state=request.os_state or OsState.SPECIALIZED,
        os_disk=first.disk,
        data_disks=tuple(item.disk for item in uploaded[1:]),
        architecture=request.architecture,
        generation=request.generation or generation(first.appliance, seen),
        label=request.label,
        family=request.family,
        description=request.description,
        eula=request.eula,
        recommended=_recommended(request, first.appliance),
        tags=dict(request.tags),
        provenance=Provenance(
            kind=first.source.kind,
            source=first.source.shown,
            source_format=_OVA if first.appliance else first.format,
            sha256=first.sha256,
        ),
        created_at=datetime.now(UTC),
    )


def generation(appliance: Appliance | None, seen: Inspection) -> Generation:
    """What the OVA says, else what the partitions say; BIOS where both would do."""
    if appliance is not None and appliance.firmware is not None:
        return Generation.V2 if appliance.firmware == "efi" else Generation.V1
    return Generation.V2 if seen.generations == (Generation.V2,) else Generation.V1


def _recommended(request: ImageRequest, appliance: Appliance | None) -> Recommended:
    """What the author recommends, else the size that the OVA's machine had."""
    if appliance is None:
        return request.recommended
    return Recommended(
        vcpus=request.recommended.vcpus or appliance.vcpus,
        memory=request.recommended.memory or appliance.memory,
    )
