"""VMs: the drivers that run them, what they are told at their birth, and how to talk to them."""

from importlib import import_module
from typing import TYPE_CHECKING

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


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
