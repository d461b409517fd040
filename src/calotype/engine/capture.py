"""From a VM to an image: every disk at one instant, and only what changed is read."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from calotype.engine import names
from calotype.engine.context import Context
from calotype.engine.moment import CapturedDisk, Freeze, Moment, moment, take, take_generalized
from calotype.engine.operation import Operation
from calotype.errors import Conflict, InvalidInput
from calotype.guest import GeneralizeReport
from calotype.model import (
    Consistency,
    Image,
    ImageDisk,
    OsState,
    OsType,
    Provenance,
    Recommended,
    SourceKind,
    VirtualMachine,
)


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
class Captured:
    """A new image, and how it was taken."""

    image: Image
    consistency: Consistency
    frozen_seconds: float
    disks: tuple[CapturedDisk, ...]
    generalized: GeneralizeReport | None


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
        _moment(context, vm, operation, request) as found,
    ):
        report: GeneralizeReport | None = None
        disks = []
        for disk in (vm.os_disk, *vm.data_disks):
            source = found.sources[disk.id]
            if disk.lun is None and request.generalize:
                taken, report = take_generalized(context, operation, disk, source)
            else:
                taken = take(context, disk, source)
            disks.append(taken)
        image = _image(vm, request, disks, found)
        context.catalog.add_image(image)
    return Captured(image, found.consistency, found.frozen_seconds, tuple(disks), report)


def _moment(
    context: Context, vm: VirtualMachine, operation: Operation, request: CaptureRequest
) -> AbstractContextManager[Moment]:
    if request.generalize and vm.os_type is not OsType.LINUX:
        raise InvalidInput("only Linux guests can be generalized yet")
    return moment(context, vm, operation, freeze=request.freeze)


def _image(
    vm: VirtualMachine, request: CaptureRequest, disks: list[CapturedDisk], found: Moment
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
    state = OsState.GENERALIZED if vm.generalized else OsState.SPECIALIZED
    state = OsState.GENERALIZED if request.generalize else request.os_state or state
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
            consistency=found.consistency,
            notes=notes,
        ),
        created_at=datetime.now(UTC),
    )
