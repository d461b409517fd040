"""From an image to a running VM."""

import hashlib
import os
import secrets
import zoneinfo
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

from calotype.disk import blank
from calotype.disk.durable import fsync_directory
from calotype.engine import names, references
from calotype.engine.base import bases
from calotype.engine.context import Context
from calotype.engine.machines import indexes, seed_path, specification
from calotype.engine.proof import keys
from calotype.engine.usable import require_there, require_usable
from calotype.errors import Conflict, InvalidInput
from calotype.machine import ssh
from calotype.machine.seed import Provisioning, build_seed, hash_password
from calotype.machine.windows_seed import WindowsProvisioning, build_windows_seed
from calotype.model import (
    GIB,
    MIB,
    Architecture,
    Image,
    ImageDisk,
    ManagedDisk,
    Network,
    OsState,
    OsType,
    VirtualMachine,
)

#: Where uids of VMs start when Calotype runs as root; each installation takes a block of its own.
_FIRST_UID = 1_900_000_000
_UIDS_PER_HOME = 10_000
_ADMIN = "azureuser"  # unless another is named
_MAX_VCPUS = 255
_MIN_MEMORY = 64 * MIB


@dataclass(frozen=True, kw_only=True, slots=True)
class VmRequest:
    """What a new VM is to be. Sizes in bytes; ``None`` takes the image's or Calotype's default."""

    name: str
    image: str
    vcpus: int | None = None
    memory: int | None = None
    computer_name: str | None = None
    admin_user: str | None = None
    admin_password: str | None = None
    ssh_keys: Sequence[str] = ()
    custom_data: bytes | None = None
    timezone: str | None = None
    os_disk_size: int | None = None
    new_data_disks: Mapping[int, int] = field(default_factory=dict)  # LUN -> size
    forwards: Sequence[tuple[int, int]] = ()  # (port on 127.0.0.1 or 0, port in the guest)
    network: Network = Network.RESTRICTED
    allow_duplicate_identity: bool = False
    start: bool = True
    tags: Mapping[str, str] = field(default_factory=dict)


def create_vm(context: Context, request: VmRequest) -> VirtualMachine:
    """Make a VM of an image: overlays over shared bases, a seed, a row, a process.

    Raises:
        InvalidInput: a part of the request does not fit the image (as ``osProfile`` on Azure).
        NotFound: there is no such image (any more).
        NotAllowed: the image makes no VMs (any more); or a second VM from a specialized one.
        Conflict: the name is taken.
    """
    bases.revive(context)
    with context.operation() as operation:
        image = references.find(context, request.image)
        warnings = require_usable(context, image)
        _check(request, image)
        context.catalog.require_free("VM", request.name)
        vm = _plan(context, request, image)
        vm = replace(vm, notes=(*vm.notes, *warnings))
        operation.claim_all([("vm", vm.id), *(("disk", disk.id) for disk in vm.disks)])
        with bases.held(context, indexes(vm), operation.directory) as found:
            _make_files(context, vm, request)
            with context.lock(f"vm-{vm.id}"):  # nobody else starts or deletes it before we are done
                with context.lock("launch"):  # two commands must not choose the same port or uid
                    vm = _placed(context, vm, request)
                    context.catalog.add_vm(
                        vm,
                        allow_second=request.allow_duplicate_identity,
                        check=partial(require_there, context, image),
                    )
                if request.start:
                    _start_or_undo(context, vm, found)
    return vm


def _check(request: VmRequest, image: Image) -> None:
    """Refuse what does not fit the image, before anything is made."""
    names.resource(request.name, "a VM")
    _check_size(request)
    if image.architecture is not Architecture.X64:
        raise InvalidInput(f"image '{image.name}' is for {image.architecture}; this host runs x64")
    profile = {
        "--admin-username": request.admin_user,
        "--admin-password": request.admin_password,
        "--ssh-key-values": request.ssh_keys,
        "--custom-data": request.custom_data,
        "--computer-name": request.computer_name,
        "--time-zone": request.timezone,
    }
    given = [flag for flag, value in profile.items() if value]
    if image.os_state is OsState.SPECIALIZED and given:
        raise InvalidInput(
            f"{', '.join(given)}: not allowed, because image '{image.name}' is specialized: it starts "
            "as the machine that it was",
            hint="leave them out, or make a generalized image of it",
        )
    if image.os_state is OsState.GENERALIZED and image.os_type is OsType.WINDOWS:
        _check_windows(request)
    taken = {disk.lun for disk in image.data_disks}
    for lun, size in request.new_data_disks.items():
        if lun in taken or not 0 <= lun <= 63:
            raise InvalidInput(
                f"LUN {lun} is taken by the image"
                if lun in taken
                else f"{lun} is not a LUN (0-63)",
                hint=f"the image uses LUNs {sorted(x for x in taken if x is not None)}",
            )
        if size < MIB or size % 512:
            raise InvalidInput(f"{size} bytes is no size for a disk", hint="1M or more")
    if request.os_disk_size is not None and request.os_disk_size < image.os_disk.size:
        raise InvalidInput(
            f"the OS disk of image '{image.name}' has {image.os_disk.size} bytes and cannot shrink"
        )


def _check_windows(request: VmRequest) -> None:
    """Refuse what a generalized Windows cannot be given; nobody could log on to it without a password."""
    if request.ssh_keys:
        raise InvalidInput(
            "--ssh-key-values: a Windows takes a password", hint="give --admin-password"
        )
    if not request.admin_password:
        raise InvalidInput(
            "a generalized Windows needs a password for its administrator",
            hint="give --admin-password: 12 characters or more, of three kinds",
        )
    _windows_provisioning(request)


def _check_size(request: VmRequest) -> None:
    """Refuse a size that no VM can have, and a time zone that does not exist."""
    if request.vcpus is not None and not 1 <= request.vcpus <= _MAX_VCPUS:
        raise InvalidInput(f"a VM cannot have {request.vcpus} vCPUs", hint=f"1 to {_MAX_VCPUS}")
    if request.memory is not None and request.memory < _MIN_MEMORY:
        raise InvalidInput(
            f"{request.memory} bytes of memory are too little", hint="write 512M, 2G; 64M at least"
        )
    if request.timezone is not None and request.timezone not in zoneinfo.available_timezones():
        raise InvalidInput(
            f"there is no time zone '{request.timezone}'", hint="such as Europe/Madrid"
        )
    names.vm_size(request.vcpus, request.memory)


def _plan(context: Context, request: VmRequest, image: Image) -> VirtualMachine:
    """The VM and its disks; it has no port and no uid yet."""
    vm_id = names.new_id()
    now = datetime.now(UTC)

    def disk(source: ImageDisk | None, lun: int | None, size: int) -> ManagedDisk:
        suffix = "os" if lun is None else f"lun{lun}"
        managed = ManagedDisk(
            id=names.new_id(),
            name=context.catalog.free_disk_name(f"{request.name}-{suffix}"),
            size=size,
            vm_id=vm_id,
            lun=lun,
            created_at=now,
            scope=context.scope,
        )
        if source is None:
            return managed
        return replace(managed, index=source.index, image_id=image.id, caching=source.caching)

    disks = [disk(image.os_disk, None, request.os_disk_size or image.os_disk.size)]
    disks += [disk(source, source.lun, source.size) for source in image.data_disks]
    disks += [disk(None, lun, size) for lun, size in sorted(request.new_data_disks.items())]
    generalized = image.os_state is OsState.GENERALIZED
    notes: tuple[str, ...] = ()
    if request.allow_duplicate_identity and not generalized:
        notes = ("made with --allow-duplicate-identity: it may share another VM's identity",)
    if not generalized:
        notes += _beside_its_source(context, image)
    return VirtualMachine(
        id=vm_id,
        name=request.name,
        vcpus=request.vcpus or image.recommended.vcpus or 1,
        memory=request.memory or image.recommended.memory or GIB,
        os_type=image.os_type,
        generation=image.generation,
        architecture=image.architecture,
        image_id=image.id,
        os_state=image.os_state,
        computer_name=_computer_name(request, image.os_type) if generalized else None,
        admin_user=(request.admin_user or _ADMIN) if generalized else None,
        ssh_port=0,
        mac="52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3)),
        network=request.network,
        notes=notes,
        disks=tuple(disks),
        tags=dict(request.tags),
        created_at=now,
        scope=context.scope,
        plan=image.plan,
        entitlement=image.entitlement,
    )


def _placed(context: Context, vm: VirtualMachine, request: VmRequest) -> VirtualMachine:
    """The VM with ports and a uid that no other has."""
    others = context.system.every_vm()
    used = {other.ssh_port for other in others}
    used |= {port for other in others for port, _ in other.forwards}
    ssh_port = ssh.free_port(taken=used)
    return replace(
        vm,
        ssh_port=ssh_port,
        forwards=_forwards(request.forwards, used | {ssh_port}),
        uid=_free_uid(context, {other.uid for other in others}) if os.geteuid() == 0 else None,
    )


def _beside_its_source(context: Context, image: Image) -> tuple[str, ...]:
    """A note when the VM that a specialized image was taken from is still there: both are one machine."""
    source = image.provenance.vm_id
    if source not in {vm.id for vm in context.system.every_vm()}:
        return ()
    note = f"it is the same machine as VM '{image.provenance.source}', which is still there"
    return (f"{note}: do not let both serve at once",)


def _make_files(context: Context, vm: VirtualMachine, request: VmRequest) -> None:
    """Overlays, the VM's directory, and for a generalized image the seed.

    They are synced together, for that takes the disk no longer than one of them.
    """
    directory = context.vm_path(vm.id)
    directory.mkdir(mode=0o700)
    with ThreadPoolExecutor() as pool:
        jobs: list[Future[None]] = [pool.submit(fsync_directory, directory.parent)]
        jobs += [pool.submit(blank.create, context.disk_path(d.id), d.size) for d in vm.disks]
        if vm.os_state is OsState.GENERALIZED:
            seed = seed_path(directory)
            if vm.os_type is OsType.WINDOWS:
                jobs.append(pool.submit(build_windows_seed, seed, _windows_provisioning(request)))
            else:
                jobs.append(pool.submit(build_seed, seed, _provisioning(context, vm, request)))
        for job in jobs:
            job.result()


def _provisioning(context: Context, vm: VirtualMachine, request: VmRequest) -> Provisioning:
    public_keys = list(request.ssh_keys)
    if not public_keys and not request.admin_password:
        public_keys = [keys.ensure(context.home)]
    assert vm.computer_name is not None  # noqa: S101 (a generalized VM has one; for the type checker)
    return Provisioning(
        instance_id=vm.id,
        hostname=vm.computer_name,
        admin_user=vm.admin_user,
        ssh_keys=public_keys,
        password_hash=hash_password(request.admin_password) if request.admin_password else None,
        timezone=request.timezone,
        custom_data=request.custom_data,
    )


def _windows_provisioning(request: VmRequest) -> WindowsProvisioning:
    return WindowsProvisioning(
        computer_name=_computer_name(request, OsType.WINDOWS),
        admin_user=request.admin_user or _ADMIN,
        password=request.admin_password or "",
        timezone=request.timezone,
        custom_data=request.custom_data,
    )


def _start_or_undo(context: Context, vm: VirtualMachine, found: Mapping[str, bases.Base]) -> None:
    """Start the new VM; when it does not start, it does not exist (its files go with the operation)."""
    try:
        context.driver.start(specification(context, vm, found))
    except BaseException:
        context.catalog.delete_vm(vm.id, delete_disks=[disk.id for disk in vm.disks])
        raise


def _computer_name(request: VmRequest, os_type: OsType) -> str:
    if os_type is OsType.WINDOWS:  # which has rules of its own, and checks them
        short = request.name.replace("_", "-").replace(".", "-")[:15].strip("-")
        return request.computer_name or short
    if request.admin_user:
        names.admin_user(request.admin_user)
    return names.computer_name(
        request.computer_name or request.name.replace("_", "-").replace(".", "-")
    )


def _forwards(wanted: Sequence[tuple[int, int]], used: set[int]) -> tuple[tuple[int, int], ...]:
    result: list[tuple[int, int]] = []
    for host, guest in wanted:
        port = host or ssh.free_port(taken=used)
        if port in used or not ssh.is_free(port):
            raise Conflict(f"port {port} of 127.0.0.1 is taken", hint="write 0:PORT for a free one")
        used.add(port)
        result.append((port, guest))
    return tuple(result)


def _free_uid(context: Context, used: set[int | None]) -> int:
    return next(uid for uid in uids(context) if uid not in used)


def uids(context: Context) -> range:
    """The unprivileged users that this installation's VMs run as, when Calotype runs as root."""
    block = int.from_bytes(hashlib.sha256(os.fsencode(context.home.root)).digest()[:2])
    first = _FIRST_UID + block % 20_000 * _UIDS_PER_HOME
    return range(first, first + _UIDS_PER_HOME)
