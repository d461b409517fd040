"""VMs: the drivers that run them, what they are told at their birth, and how to talk to them."""

from typing import TYPE_CHECKING

from calotype.late import late

if TYPE_CHECKING:
    from calotype.machine.agent import Agent, Completed
    from calotype.machine.qemu import QemuDriver
    from calotype.machine.spec import (
        Acceleration,
        DiskSpec,
        Driver,
        LazyBase,
        MachineSpec,
        NbdEndpoint,
        Snapshot,
    )

__all__ = [
    "Acceleration",
    "Agent",
    "Completed",
    "DiskSpec",
    "Driver",
    "LazyBase",
    "MachineSpec",
    "NbdEndpoint",
    "QemuDriver",
    "Snapshot",
]

#: Where each name is defined: a command loads what it needs, and is quick.
_PLACES = {
    "Acceleration": "spec",
    "Agent": "agent",
    "Completed": "agent",
    "DiskSpec": "spec",
    "Driver": "spec",
    "LazyBase": "spec",
    "MachineSpec": "spec",
    "NbdEndpoint": "spec",
    "QemuDriver": "qemu",
    "Snapshot": "spec",
}

__getattr__ = late(__name__, _PLACES)
