"""The command line of a VM's QEMU."""

import json
from pathlib import Path
from typing import Literal

from calotype.errors import ToolMissing
from calotype.machine.layout import Layout
from calotype.machine.nodes import DATA_BUS, OS_BUS, Node, blockdevs, device
from calotype.machine.spec import MachineSpec
from calotype.model import Generation, Network

#: UEFI firmware: its code, and the variables that every VM gets a copy of.
OVMF_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

#: The seed's file in ``base``, and the UEFI variables in ``disks``.
SEED, VARS = "seed.iso", "uefi-vars.fd"

SECCOMP = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

#: x86-64-v2 asks for these; without them distributions of the RHEL 9 family do not start.
TCG_CPU = "qemu64,+cx16,+lahf-lm,+popcnt,+ssse3,+sse4.1,+sse4.2"


def command_line(spec: MachineSpec, layout: Layout, accel: Literal["tcg", "kvm"]) -> list[str]:
    """QEMU's arguments, to be run in ``/run`` of its sandbox."""
    uefi = spec.generation is Generation.V2
    machine = f"q35,accel={accel},sata=off,smbus=off,vmport=off,usb=off,hpet=off"
    args = [
        "qemu-system-x86_64",
        *("-nodefaults", "-no-user-config", "-display", "none", "-msg", "timestamp=on"),
        *("-sandbox", SECCOMP),
        *("-name", f"guest={_escape(spec.name)},debug-threads=on", "-uuid", spec.id),
        *("-machine", machine + (",pflash0=uefi-code,pflash1=uefi-vars" if uefi else "")),
        *("-cpu", spec.cpu or ("host" if accel == "kvm" else TCG_CPU)),
        *("-smp", str(spec.vcpus), "-m", f"{spec.memory >> 20}M"),
        *("-boot", "strict=on"),
    ]
    nodes = _firmware() if uefi else []
    devices: list[Node] = [
        {"driver": "VGA", "addr": "1.0"},
        {"driver": "virtio-scsi-pci", "id": OS_BUS, "addr": "2.0"},
        {"driver": "virtio-scsi-pci", "id": DATA_BUS, "addr": "3.0"},
        {
            "driver": "virtio-net-pci",
            "netdev": "net0",
            "mac": spec.mac,
            "addr": "4.0",
            "romfile": "",  # nobody boots from the network
        },
        {"driver": "virtio-serial-pci", "id": "ports", "addr": "5.0"},
        {"driver": "virtio-rng-pci", "rng": "rng0", "addr": "6.0"},
        {"driver": "virtserialport", "chardev": "agent", "name": "org.qemu.guest_agent.0"},
        {"driver": "isa-serial", "chardev": "serial"},
    ]
    for disk in spec.disks:
        nodes += blockdevs(disk, layout)
        devices.append(device(disk))
    if spec.seed is not None:
        nodes += _seed()
        # Not SATA: cloud kernels carry no driver for it.
        cdrom = {"driver": "scsi-cd", "id": "seed", "drive": "seed", "bus": f"{OS_BUS}.0"}
        devices.append({**cdrom, "channel": 0, "scsi-id": 1, "lun": 0})
    for entry in nodes:
        args += ["-blockdev", json.dumps(entry)]
    args += [*_sockets(), "-object", "rng-builtin,id=rng0", "-netdev", _network(spec)]
    for entry in devices:
        args += ["-device", json.dumps(entry)]
    return args


def _sockets() -> list[str]:
    args: list[str] = []
    for name in ("control", "query"):
        args += ["-chardev", f"socket,id={name},path={name}.sock,server=on,wait=off"]
        args += ["-mon", f"chardev={name},mode=control"]
    args += ["-chardev", "socket,id=agent,path=agent.sock,server=on,wait=off"]
    log = "logfile=serial.log,logappend=on"
    args += ["-chardev", f"socket,id=serial,path=serial.sock,server=on,wait=off,{log}"]
    return args


def _network(spec: MachineSpec) -> str:
    restrict = "on" if spec.network is Network.RESTRICTED else "off"
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for host, guest in spec.forwards)
    return f"user,id=net0,ipv6=off,restrict={restrict}{forwards}"


def firmware() -> Path:
    """The UEFI firmware's code.

    Raises:
        ToolMissing: it is not installed.
    """
    for path in (OVMF_CODE, OVMF_VARS):
        if not path.exists():
            raise ToolMissing(
                f"{path} is not on this machine", hint="install it: apt-get install ovmf"
            )
    return OVMF_CODE


def _firmware() -> list[Node]:
    return [
        *_file("uefi-code", str(firmware()), read_only=True),
        *_file("uefi-vars", f"/disks/{VARS}", read_only=False),
    ]


def _seed() -> list[Node]:
    return _file("seed", f"/base/{SEED}", read_only=True)


def _file(name: str, path: str, *, read_only: bool) -> list[Node]:
    file = {"node-name": f"{name}-f", "driver": "file", "filename": path, "read-only": read_only}
    raw = {"node-name": name, "driver": "raw", "file": f"{name}-f", "read-only": read_only}
    return [file, raw]


def _escape(text: str) -> str:
    return text.replace(",", ",,")
