"""VMs, their disks, and the ways back to what they were."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from calotype.model.access import Scope
from calotype.model.image import Architecture, Caching, Consistency, Generation, OsState, OsType
from calotype.model.offer import PurchasePlan


class PowerState(StrEnum):
    """What a VM does now; derived from its process, never stored."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    DEALLOCATED = "deallocated"


class Network(StrEnum):
    """What a guest reaches by itself; connections to its forwarded ports work in both."""

    RESTRICTED = "restricted"  # nothing
    OUTBOUND = "outbound"  # all that the host reaches, the host's own loopback services included


@dataclass(frozen=True, kw_only=True, slots=True)
class ManagedDisk:
    """A disk that VMs write to: a qcow2 overlay over the base of ``index`` (``None``: starts empty)."""

    id: str
    name: str
    size: int  # bytes
    index: str | None = None  # the store's Index that it started from
    image_id: str | None = None
    vm_id: str | None = None  # the VM that it is attached to
    lun: int | None = None  # None on a VM: its OS disk
    caching: Caching = Caching.READ_WRITE
    tags: dict[str, str] = field(default_factory=dict)
    created_at: datetime
    overlay: str | None = None  # what its file is called, once that is not the id any more
    scope: Scope = Scope()

    @property
    def file(self) -> str:
        """What its overlay's file is called."""
        return self.overlay or self.id


@dataclass(frozen=True, kw_only=True, slots=True)
class VirtualMachine:
    """A VM: what it was asked to be. What it does now is asked of its process."""

    id: str
    name: str
    vcpus: int
    memory: int  # bytes
    os_type: OsType
    generation: Generation
    architecture: Architecture = Architecture.X64
    image_id: str | None = None
    os_state: OsState  # of the image that it came from
    computer_name: str | None = None
    admin_user: str | None = None
    ssh_port: int  # on 127.0.0.1, forwarded to the guest's port 22
    forwards: tuple[tuple[int, int], ...] = ()  # (port on 127.0.0.1, port in the guest)
    mac: str
    network: Network = Network.RESTRICTED
    uid: int | None = None  # the unprivileged user that QEMU runs as, when Calotype runs as root
    deallocated: bool = False
    generalized: bool = False  # in place: it makes images, and does not start until it is restored
    notes: tuple[str, ...] = ()  # overrides, such as a second VM from a specialized image
    disks: tuple[ManagedDisk, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    created_at: datetime
    scope: Scope = Scope()
    plan: PurchasePlan | None = None  # of the image that it came from
    entitlement: str | None = None  # of the image that it came from

    @property
    def os_disk(self) -> ManagedDisk:
        """The disk that it starts from."""
        return next(d for d in self.disks if d.lun is None)

    @property
    def data_disks(self) -> tuple[ManagedDisk, ...]:
        """The other disks, by LUN."""
        return tuple(sorted((d for d in self.disks if d.lun is not None), key=lambda d: d.lun or 0))


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreDisk:
    """One disk of a restore point: which managed disk it was, and what it held."""

    disk_id: str
    name: str
    index: str
    size: int  # bytes
    image_id: str | None = None  # that the managed disk came from
    lun: int | None = None  # None: the OS disk
    caching: Caching = Caching.READ_WRITE
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class RestorePoint:
    """All disks of a VM at one instant, kept in the store so that the VM can go back to them."""

    id: str
    vm_id: str
    reason: str  # what it was taken before
    consistency: Consistency
    disks: tuple[RestoreDisk, ...]
    created_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """What a managed disk held at one instant; ``index`` is the store's."""

    id: str
    name: str
    size: int  # bytes
    index: str
    disk_id: str  # that it was taken of
    image_id: str | None = None  # that the disk came from
    os_type: OsType | None = None  # None: a data disk
    consistency: Consistency
    tags: dict[str, str] = field(default_factory=dict)
    created_at: datetime
    scope: Scope = Scope()
