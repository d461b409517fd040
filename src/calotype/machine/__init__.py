"""VMs: the drivers that run them, what they are told at their birth, and how to talk to them."""

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
