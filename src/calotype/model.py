"""The nouns: frozen records without I/O. Names and enum values are Azure's."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

GIB = 1 << 30
MIB = 1 << 20


class OsType(StrEnum):
    """The family of operating system on an OS disk."""

    LINUX = "Linux"
    WINDOWS = "Windows"


class OsState(StrEnum):
    """Whether an OS disk may become many VMs (generalized) or is one machine (specialized)."""

    GENERALIZED = "Generalized"
    SPECIALIZED = "Specialized"


class Verdict(StrEnum):
    """What the evidence on an image's disks says of it."""

    GENERALIZED = "Generalized"  # nothing of one machine or person was found
    SPECIALIZED = "Specialized"  # it is one machine
    MIXED = "Mixed"  # some of one machine is gone, some is left
    UNKNOWN = "Unknown"  # no operating system that could be looked into


class Stage(StrEnum):
    """How far an image has come."""

    STAGED = "Staged"  # stored; nobody saw it start
    PROMOTED = "Promoted"  # clones started and differed where they must (a specialized image: one)


class Architecture(StrEnum):
    """The processor that an image runs on."""

    X64 = "x64"
    ARM64 = "Arm64"


class Generation(StrEnum):
    """The firmware: V1 starts by BIOS, V2 by UEFI."""

    V1 = "V1"
    V2 = "V2"


class Caching(StrEnum):
    """The host's caching of a disk."""

    NONE = "None"
    READ_ONLY = "ReadOnly"
    READ_WRITE = "ReadWrite"


class ImageKind(StrEnum):
    """An OS image holds a generalized OS disk and nothing else; every other image is a VM image."""

    OS_IMAGE = "OSImage"
    VM_IMAGE = "VMImage"


class Consistency(StrEnum):
    """What a capture may promise about the moment that it shows."""

    APPLICATION = "application"  # the VM was shut down cleanly, or the guest ran its freeze hooks
    FILESYSTEM = "filesystem"  # the guest's file systems were frozen
    CRASH = "crash"  # as after a power cut


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


class SourceKind(StrEnum):
    """Where an image's bytes came from."""

    FILE = "file"
    URL = "url"
    STDIN = "stdin"
    DEVICE = "device"
    VM = "vm"
    RECIPE = "recipe"
    IMAGE = "image"  # another image, of which this is a generalized copy
    STORE = "store"  # found in a store whose catalogue was lost


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDisk:
    """One disk of an image: ``index`` is the store's Index id, ``size`` is in bytes."""

    index: str
    size: int
    caching: Caching = Caching.READ_WRITE
    lun: int | None = None  # None: the OS disk


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where an image came from, and how it was taken."""

    kind: SourceKind
    source: str  # file name or URL without credentials, or the VM's name
    source_format: str | None = None
    sha256: str | None = None  # of the uploaded file, in hex
    vm_id: str | None = None
    image_id: str | None = None  # the image that the VM came from
    consistency: Consistency | None = None
    notes: tuple[str, ...] = ()  # overrides and other things worth a line


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommended:
    """The size of VM that the image's author recommends."""

    vcpus: int | None = None
    memory: int | None = None  # bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """An OS disk and the data disks taken with it."""

    id: str
    name: str
    os_type: OsType
    os_state: OsState
    os_disk: ImageDisk
    data_disks: tuple[ImageDisk, ...] = ()
    architecture: Architecture = Architecture.X64
    generation: Generation = Generation.V1
    label: str | None = None
    family: str | None = None
    description: str | None = None
    eula: str | None = None
    recommended: Recommended = Recommended()
    tags: dict[str, str] = field(default_factory=dict)
    stage: Stage = Stage.STAGED
    verdict: Verdict | None = None  # None: nobody looked
    provenance: Provenance
    created_at: datetime

    @property
    def kind(self) -> ImageKind:
        """OS image or VM image, derived from the content."""
        if self.os_state is OsState.GENERALIZED and not self.data_disks:
            return ImageKind.OS_IMAGE
        return ImageKind.VM_IMAGE

    @property
    def disks(self) -> tuple[ImageDisk, ...]:
        """The OS disk, then the data disks by LUN."""
        return (self.os_disk, *sorted(self.data_disks, key=lambda d: d.lun or 0))

    @property
    def size(self) -> int:
        """The sum of the disks' virtual sizes in bytes."""
        return sum(d.size for d in self.disks)


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
