"""Images, and what is said of them."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from calotype.model.access import Scope
from calotype.model.offer import PurchasePlan

GIB = 1 << 30
MIB = 1 << 20
#: The highest LUN of a data disk (Azure's largest sizes have 64 data disks).
MAX_LUN = 63


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


class Shelf(StrEnum):
    """Where an image stands; on all but the first its name is a whole reference."""

    MANAGED = "Managed"  # an image of its own
    GALLERY = "Gallery"  # a version in a gallery: GALLERY/DEFINITION/VERSION
    MARKETPLACE = "Marketplace"  # pulled: PUBLISHER:OFFER:SKU:VERSION
    COMMUNITY = "Community"  # pulled: community/PUBLIC_NAME/DEFINITION/VERSION


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
    DISK = "disk"  # a managed disk, or a snapshot of one
    MARKETPLACE = "marketplace"  # pulled from a catalogue of offers
    COMMUNITY = "community"  # pulled from another installation


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
    scope: Scope = Scope()
    shelf: Shelf = Shelf.MANAGED
    parents: tuple[str, ...] = ()  # the images that its disks come from, the OS disk's first
    plan: PurchasePlan | None = None  # whose terms must be accepted; descendants inherit it
    entitlement: str | None = None  # that a subscription must hold; descendants inherit it

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
