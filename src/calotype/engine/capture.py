"""From a VM to an image: every disk at one instant, and only what changed is read."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from calotype.disk import Disk, Extent
from calotype.disk.overlay import stack
from calotype.disk.view import NbdSource, OverlaySource, writable
from calotype.engine import bases, look, names
from calotype.engine.context import Context
from calotype.engine.machines import indexes, power
from calotype.engine.operation import Operation
from calotype.errors import Conflict, InvalidInput
from calotype.guest import GeneralizeReport, generalize
from calotype.machine import LazyBase
from calotype.model import (
    Consistency,
    Image,
    ImageDisk,
    ManagedDisk,
    OsState,
    OsType,
    PowerState,
    Provenance,
    Recommended,
    SourceKind,
    VirtualMachine,
)
from calotype.store import Ingested

Freeze = Literal["auto", "require", "never"]

#: A disk at an instant: of a stopped VM, or of a running one.
Source = OverlaySource | NbdSource


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptureRequest:
    """The image to make, and how."""

    name: str
    generalize: bool = False
    freeze: Freeze = "auto"
    os_state: OsState | None = None  # declared by the user, who generalized the VM by hand
    label: str | None = None
    family: str | None = None
    description: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CapturedDisk:
    """What one disk took: ``changed`` bytes were read, the rest is shared with the base."""

    lun: int | None
    changed: int
    ingested: Ingested


@dataclass(frozen=True, slots=True)
class Captured:
    """A new image, and how it was taken."""

    image: Image
    consistency: Consistency
    frozen_seconds: float
    disks: tuple[CapturedDisk, ...]
    generalized: GeneralizeReport | None


@dataclass(frozen=True, slots=True)
class _Moment:
    """All disks of a VM as they were at one instant, by disk id."""

    sources: Mapping[str, Source]
    consistency: Consistency
    frozen_seconds: float = 0.0


def capture_vm(context: Context, vm_name: str, request: CaptureRequest) -> Captured:
    """Make an image of a VM; the VM goes on as before.

    Raises:
        Conflict: an image of that name exists.
        GuestError: ``freeze`` is ``require`` and the guest cannot be frozen.
        InvalidInput: this guest cannot be generalized.
    """
    names.resource(request.name, "an image")
    if request.generalize and request.os_state is OsState.SPECIALIZED:
        raise InvalidInput("a generalized image is not specialized", hint="leave one of them out")
    if context.catalog.find_image(request.name) is not None:
        raise Conflict(f"image '{request.name}' exists already", hint="choose another name")
    with (
        context.vm_lock(vm_name) as vm,
        context.operation() as operation,
        _moment(context, vm, operation, request) as moment,
    ):
        report: GeneralizeReport | None = None
        disks = []
        for disk in (vm.os_disk, *vm.data_disks):
            source = moment.sources[disk.id]
            if disk.lun is None and request.generalize:
                taken, report = _take_generalized(context, operation, disk, source)
            else:
                taken = _take(context, disk, source)
            disks.append(taken)
        image = _image(vm, request, disks, moment)
        context.catalog.add_image(image)
    return Captured(image, moment.consistency, moment.frozen_seconds, tuple(disks), report)


@contextmanager
def _moment(
    context: Context, vm: VirtualMachine, operation: Operation, request: CaptureRequest
) -> Iterator[_Moment]:
    """Hold an instant of a VM: its overlays when it is stopped, copy-before-write views when it runs."""
    if request.generalize and vm.os_type is not OsType.LINUX:
        raise InvalidInput("only Linux guests can be generalized yet")
    directory = context.vm_path(vm.id)
    if power(context, vm) in (PowerState.RUNNING, PowerState.PAUSED):
        ids = [disk.id for disk in vm.disks]
        operation.claim("capture", vm.id)
        with context.driver.point_in_time(directory, ids, freeze=request.freeze) as snapshot:
            sources: dict[str, Source] = {
                disk_id: NbdSource(end.path, end.export)
                for disk_id, end in snapshot.exports.items()
            }
            yield _Moment(sources, snapshot.consistency, snapshot.frozen_seconds)
        return
    with bases.held(context, indexes(vm), operation.directory) as found:
        stopped = {disk.id: _stopped_source(context, disk, found) for disk in vm.disks}
        yield _Moment(stopped, _consistency_of_stopped(stopped[vm.os_disk.id]))


def _stopped_source(
    context: Context, disk: ManagedDisk, found: Mapping[str, bases.Base]
) -> OverlaySource:
    base = found[disk.index] if disk.index else None
    beneath = NbdSource(base.socket, base.export) if isinstance(base, LazyBase) else base
    return OverlaySource(context.disk_path(disk.file), beneath)


def _consistency_of_stopped(source: Source) -> Consistency:
    """A stopped VM's own file system says whether it was shut down or cut off."""
    with closing(source.open()) as disk:
        clean = look.was_shut_down(disk)
    return Consistency.APPLICATION if clean else Consistency.CRASH


def _take(context: Context, disk: ManagedDisk, source: Source) -> CapturedDisk:
    with closing(source.open()) as opened:
        return _ingest(context, disk, opened, opened.changed())


def _take_generalized(
    context: Context, operation: Operation, disk: ManagedDisk, source: Source
) -> tuple[CapturedDisk, GeneralizeReport]:
    """Generalize a throw-away overlay on the OS disk; only the result reaches the store."""
    overlay_path = operation.directory / "generalized.qcow2"
    with closing(source.open()) as opened:
        changed = opened.changed()
    with writable(source, overlay_path, operation.directory) as view:
        report = generalize(view, progress=context.progress)
    with closing(view.disk()) as result:
        taken = _ingest(context, disk, result, list(stack([view.changed(), changed])))
    return taken, report


def _ingest(
    context: Context, disk: ManagedDisk, opened: Disk, changed: list[Extent]
) -> CapturedDisk:
    ingested = context.repository.ingest(
        opened, base=disk.index, changed=changed, progress=context.progress
    )
    return CapturedDisk(disk.lun, sum(extent.length for extent in changed), ingested)


def _image(
    vm: VirtualMachine, request: CaptureRequest, disks: list[CapturedDisk], moment: _Moment
) -> Image:
    managed = {disk.lun: disk for disk in vm.disks}
    os_disk, *data = [
        ImageDisk(
            index=taken.ingested.index,
            size=taken.ingested.size,
            caching=managed[taken.lun].caching,
            lun=taken.lun,
        )
        for taken in disks
    ]
    notes: tuple[str, ...] = ()
    if request.os_state is OsState.GENERALIZED and not request.generalize:
        notes = ("declared generalized by the user; Calotype did not do it",)
    state = OsState.GENERALIZED if request.generalize else request.os_state or OsState.SPECIALIZED
    return Image(
        id=names.new_id(),
        name=request.name,
        os_type=vm.os_type,
        os_state=state,
        architecture=vm.architecture,
        generation=vm.generation,
        os_disk=os_disk,
        data_disks=tuple(data),
        label=request.label,
        family=request.family,
        description=request.description,
        recommended=Recommended(vcpus=vm.vcpus, memory=vm.memory),
        tags=dict(request.tags),
        provenance=Provenance(
            kind=SourceKind.VM,
            source=vm.name,
            vm_id=vm.id,
            image_id=vm.image_id,
            consistency=moment.consistency,
            notes=notes,
        ),
        created_at=datetime.now(UTC),
    )
