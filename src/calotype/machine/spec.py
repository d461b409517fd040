"""What a driver is asked for, and what it answers."""

import re
import socket
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from calotype.errors import InvalidInput
from calotype.machine.channel import connect
from calotype.model import MAX_LUN, Caching, Consistency, Generation, Network, PowerState

_DISK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,35}")
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class LazyBase:
    """A base that an NBD server on a Unix socket serves until its file is whole."""

    socket: Path
    export: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskSpec:
    """A disk of a VM: a writable file, over a read-only raw ``base`` when it is an overlay.

    ``path`` and ``base`` are on the file system of the VM's directory. ``id`` is
    the serial number that the guest sees, at most 36 letters, digits, ``.``, ``_`` and ``-``.
    ``size`` is the virtual size in bytes. ``lun`` is ``None`` for the OS disk.
    """

    id: str
    path: Path
    size: int
    base: Path | LazyBase | None = None
    lun: int | None = None
    caching: Caching = Caching.READ_WRITE
    fmt: Literal["qcow2", "raw"] = "qcow2"

    def __post_init__(self) -> None:
        if not _DISK_ID.fullmatch(self.id):
            raise InvalidInput(f"{self.id!r} cannot be used as a disk's id")
        if self.lun is not None and not 0 <= self.lun <= MAX_LUN:
            raise InvalidInput(f"LUN {self.lun} is out of range", hint=f"use 0 to {MAX_LUN}")
        if self.base is not None and self.fmt != "qcow2":
            raise InvalidInput(f"a {self.fmt} disk cannot have a base")


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineSpec:
    """A VM as its driver starts it. ``memory`` is in bytes; ``id`` is a UUID, the guest sees it.

    ``directory`` belongs to this VM alone. ``forwards`` are (port on 127.0.0.1, port in the guest).
    ``uid`` is the unprivileged user that runs it, when the caller is root. ``accel`` ``None`` is what
    the driver found to work; ``cpu`` is QEMU's name of a processor model, ``None`` the best for that.
    """

    id: str
    name: str
    directory: Path
    vcpus: int
    memory: int
    disks: tuple[DiskSpec, ...]
    mac: str
    generation: Generation = Generation.V1
    seed: Path | None = None
    forwards: tuple[tuple[int, int], ...] = ()
    uid: int | None = None
    accel: Literal["tcg", "kvm"] | None = None
    cpu: str | None = None
    network: Network = Network.RESTRICTED

    def __post_init__(self) -> None:
        try:
            valid = str(uuid.UUID(self.id)) == self.id
        except ValueError:
            valid = False
        if not valid:
            raise InvalidInput(f"{self.id!r} cannot be used as a VM's id", hint="it is a UUID")
        if not _MAC.fullmatch(self.mac):
            raise InvalidInput(f"{self.mac!r} is not a MAC address", hint="as in 52:54:00:12:34:56")
        if self.vcpus < 1 or self.memory < 16 << 20:
            raise InvalidInput("a VM needs a processor and 16 MiB of memory")
        if self.uid == 0:
            raise InvalidInput("a VM never runs as root")
        luns = [disk.lun for disk in self.disks]
        if luns.count(None) != 1:
            raise InvalidInput("a VM has one OS disk")
        if len(set(luns)) < len(luns) or len({disk.id for disk in self.disks}) < len(luns):
            raise InvalidInput("two disks of the VM have the same LUN or id")


@dataclass(frozen=True, kw_only=True, slots=True)
class NbdEndpoint:
    """An NBD export on a Unix socket.

    It offers the meta contexts ``base:allocation`` and ``qemu:allocation-depth``. The layers from the
    top are: what the guest has overwritten since, its overlay, the base. So the ``changed_depth``
    layers of smallest depth (1 and 2) differ from the base; 0 is in no layer.
    """

    path: Path
    export: str
    size: int
    changed_depth: int = 2

    def connect(self) -> socket.socket:
        """A connection to the server (works for paths of any length)."""
        return connect(self.path)


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """All disks of a VM at one moment, readable while the VM goes on."""

    consistency: Consistency
    frozen_seconds: float  # how long the guest's writers waited
    exports: Mapping[str, NbdEndpoint]  # by disk id
    note: str | None = None  # why the guest was not frozen


class Acceleration(NamedTuple):
    """What VMs are run by; ``reason``: why not by KVM (empty when they are)."""

    name: Literal["kvm", "tcg"]
    reason: str


class Driver(Protocol):
    """What runs VMs. Every VM is named by its directory; concurrent calls wait for each other."""

    def start(self, spec: MachineSpec) -> None:
        """Start a VM that outlives the caller; return when it runs."""
        ...

    def state(self, directory: Path) -> PowerState:
        """Running, paused or stopped, asked of the live process."""
        ...

    def shutdown(self, directory: Path, timeout: float = 120.0) -> None:
        """Ask the guest to power off, and wait until it has."""
        ...

    def kill(self, directory: Path) -> None:
        """Power off at once; harmless when it is stopped."""
        ...

    def restart(self, directory: Path, timeout: float = 120.0) -> bool:
        """Reboot; true when the guest did it in an orderly way, false after a reset."""
        ...

    def attach(self, directory: Path, disk: DiskSpec) -> None:
        """Add a data disk to a running VM."""
        ...

    def detach(self, directory: Path, disk_id: str) -> None:
        """Take a data disk off a VM."""
        ...

    def release(self, directory: Path) -> None:
        """Let go of a stopped VM's disks and bases; logs stay."""
        ...

    def hand_over(self, directory: Path, disk: DiskSpec) -> None:
        """Put a disk on the file of its base; harmless when it is there, or the VM does not run."""
        ...

    def reconnect(self, directory: Path, disk: DiskSpec) -> None:
        """Lead a disk to the new server of its lazy base; go on where the old one's end stopped the VM."""
        ...

    def screenshot(self, directory: Path, target: Path) -> None:
        """Write the guest's screen as PNG."""
        ...

    def console(self, directory: Path) -> None:
        """Connect the terminal to the guest's serial port until Ctrl-]."""
        ...

    def serial_log(self, directory: Path, limit: int = ...) -> bytes:
        """What the guest has printed on its serial port."""
        ...

    def point_in_time(
        self,
        directory: Path,
        disk_ids: Sequence[str],
        freeze: Literal["auto", "require", "never"] = "auto",
    ) -> AbstractContextManager[Snapshot]:
        """Hold all these disks of a running VM at one moment, for reading."""
        ...

    def clear_point_in_time(self, directory: Path) -> None:
        """Remove what a killed capture left in a VM; harmless when there is nothing."""
        ...

    def acceleration(self) -> Acceleration:
        """Whether VMs run under KVM here, found by running one."""
        ...

    def firmware(self) -> Path:
        """The UEFI firmware of VMs of generation V2."""
        ...
