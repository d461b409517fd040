"""From a VM to an image: every disk at one instant, and only what changed is read."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from calotype.disk.view import OverlaySource
from calotype.engine import names
from calotype.engine.context import Context
from calotype.engine.gallery.places import Managed, Place
from calotype.engine.generalize.steps import DEFAULT, Steps
from calotype.engine.moment import CapturedDisk, Freeze, Moment, moment, take, take_generalized
from calotype.engine.operation import Operation
from calotype.engine.proof import look, settle
from calotype.errors import InvalidInput
from calotype.guest import GeneralizeReport, Proof
from calotype.model import (
    Consistency,
    Image,
    ImageDisk,
    OsState,
    OsType,
    Provenance,
    Recommended,
    SourceKind,
    Verdict,
    VirtualMachine,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptureRequest:
    """The image to make, and how."""

    name: str
    generalize: bool = False
    freeze: Freeze = "auto"
    steps: Steps = DEFAULT  # of generalizing
    os_state: OsState | None = None  # declared by the user, who generalized the VM by hand
    force: bool = False  # the declared state holds, whatever the disk shows
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
    proof: Proof | None = None  # None: nobody looked


def capture_vm(
    context: Context, vm_name: str, request: CaptureRequest, place: Place | None = None
) -> Captured:
    """Make an image of a VM, by itself or in ``place``; the VM goes on as before.

    Raises:
        Conflict: the place is taken.
        GuestError: ``freeze`` is ``require`` and the guest cannot be frozen.
        InvalidInput: this guest cannot be generalized.
        NotAllowed: its disks come from images of two plans, or of two entitlements.
    """
    place = place or Managed(request.name)
    if request.generalize and request.os_state is OsState.SPECIALIZED:
        raise InvalidInput("a generalized image is not specialized", hint="leave one of them out")
    place.check(context)
    with context.vm_lock(vm_name) as held, context.operation() as operation:
        vm = _with_heritage(context, held)
        with _moment(context, vm, operation, request) as found:
            disks, report, proof = _taken(context, vm, operation, request, found)
            settled = _settled(_image(vm, place.name, request, disks, found), request, proof)
            image = settle.admit(context, settled, place, proof, report)
    return Captured(
        image=image,
        consistency=found.consistency,
        frozen_seconds=found.frozen_seconds,
        disks=disks,
        generalized=report,
        proof=proof,
    )


def _parents(vm: VirtualMachine) -> tuple[str, ...]:
    """The images that a VM's disks come from, its own first; also of disks that were attached later."""
    sources = (vm.image_id, *(disk.image_id for disk in vm.disks))
    return tuple(dict.fromkeys(source for source in sources if source is not None))


def _with_heritage(context: Context, vm: VirtualMachine) -> VirtualMachine:
    """The VM with the plan and the entitlement that an image of it inherits."""
    plan, entitlement = context.catalog.versions.heritage(_parents(vm))
    return replace(vm, plan=plan, entitlement=entitlement)


def _taken(
    context: Context,
    vm: VirtualMachine,
    operation: Operation,
    request: CaptureRequest,
    found: Moment,
) -> tuple[tuple[CapturedDisk, ...], GeneralizeReport | None, Proof | None]:
    """All disks in the store, the OS disk first; what was done to that one, and what it shows."""
    os_disk, source = vm.os_disk, found.sources[vm.os_disk.id]
    report: GeneralizeReport | None = None
    proof: Proof | None = None
    if request.generalize:
        taken = take_generalized(context, operation, os_disk, source, request.steps)
        first, report, proof = taken.disk, taken.report, taken.proof
    else:
        first = take(context, os_disk, source)
        # A running VM that nobody says anything of is specialized; to look would cost its capture half again.
        if request.os_state is not None or isinstance(source, OverlaySource):
            proof = look.prove_index(context, first.ingested.index)
    others = [take(context, disk, found.sources[disk.id]) for disk in vm.data_disks]
    return (first, *others), report, proof


def _settled(image: Image, request: CaptureRequest, proof: Proof | None) -> settle.Settled:
    """The image in the state that is declared and proved; of a running VM, what a VM is: specialized."""
    if proof is None:
        return settle.Settled(image)
    if request.generalize:
        return settle.settle_generalized(image, proof, request.steps.disable, force=request.force)
    if request.os_state is None and proof.verdict is Verdict.UNKNOWN:
        return settle.Settled(replace(image, verdict=proof.verdict))
    return settle.settle(image, request.os_state, proof, force=request.force)


def _moment(
    context: Context, vm: VirtualMachine, operation: Operation, request: CaptureRequest
) -> AbstractContextManager[Moment]:
    if request.generalize and vm.os_type is not OsType.LINUX:
        raise InvalidInput(
            "only Linux disks can be generalized outside their VM",
            hint=f"calotype vm generalize {vm.name} runs Sysprep in it, then capture it",
        )
    return moment(context, vm, operation, freeze=request.freeze)


def _image(
    vm: VirtualMachine,
    name: str,
    request: CaptureRequest,
    disks: Sequence[CapturedDisk],
    found: Moment,
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
    by_hand = request.os_state is OsState.GENERALIZED and not request.generalize
    notes = ("declared generalized by the user; Calotype did not do it",) if by_hand else ()
    return Image(
        id=names.new_id(),
        name=name,
        os_type=vm.os_type,
        os_state=OsState.SPECIALIZED,
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
        parents=_parents(vm),
        plan=vm.plan,
        entitlement=vm.entitlement,
    )
