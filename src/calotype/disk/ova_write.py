"""OVA out: an OVF descriptor, its manifest, and one streamOptimized VMDK for each disk, in one tar."""

import hashlib
import html
import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from calotype.disk.base import Disk
from calotype.disk.draft import draft, scratch_file
from calotype.disk.export import ExportFormat, write_into
from calotype.errors import InvalidInput
from calotype.progress import SILENT, Progress

_BLOCK: Final = 4 << 20
_RECORD: Final = 10240

_ENVELOPE: Final = """<?xml version="1.0" encoding="UTF-8"?>
<Envelope vmw:buildId="calotype" xmlns="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
 xmlns:vmw="http://www.vmware.com/schema/ovf"
 xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
<References>
{files}</References>
<DiskSection><Info>Virtual disks</Info>
{disks}</DiskSection>
<NetworkSection><Info>Networks</Info><Network ovf:name="nat"/></NetworkSection>
<VirtualSystem ovf:id="{name}"><Info>A virtual machine</Info>
<OperatingSystemSection ovf:id="{os_id}" vmw:osType="{os_type}"><Info>Guest</Info>
</OperatingSystemSection>
<VirtualHardwareSection><Info>Virtual hardware</Info>
<System><vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
<vssd:InstanceID>0</vssd:InstanceID><vssd:VirtualSystemType>vmx-13</vssd:VirtualSystemType></System>
{items}<vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="{firmware}"/>
</VirtualHardwareSection></VirtualSystem></Envelope>
"""

#: CIM's number and VMware's name of the guest: other 64-bit Linux, Windows Server 2016 or later.
_SYSTEMS: Final = {"Linux": (101, "otherLinux64Guest"), "Windows": (112, "windows9Server64Guest")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What the descriptor says of the machine besides its disks."""

    name: str
    vcpus: int = 1
    memory: int = 1 << 30  # bytes
    efi: bool = False
    os_type: str = "Linux"  # or "Windows"


@dataclass(frozen=True, slots=True)
class _Part:
    """A file of the appliance: its name, and an open file or bytes."""

    name: str
    size: int
    sha256: str
    fd: int


def write_ova(
    disks: Sequence[Disk],
    target: Path,
    machine: Machine,
    *,
    scratch: Path,
    raws: Sequence[Path | None] | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> None:
    """Write an appliance with the OS disk first, then the data disks.

    Args:
        disks: what it holds, at most 15 (the places of one SCSI controller).
        target: the file; it appears when it is complete and on stable storage.
        machine: name, size and firmware.
        scratch: a directory for nameless intermediate files.
        raws: for each disk a raw file with the same content, or ``None``.
        overwrite: replace an existing file.
        progress: told of bytes of the disks.

    Raises:
        Conflict: the file exists.
        InvalidInput: no disks, or too many.
        ToolFailed: qemu-img ended with an error.
    """
    if not 1 <= len(disks) <= 15:
        raise InvalidInput(f"an OVA holds 1 to 15 disks, not {len(disks)}")
    base = re.sub(r"[^A-Za-z0-9._-]", "_", machine.name)[:60] or "machine"
    with draft(target, overwrite=overwrite) as out, ExitStack() as stack:
        parts = []
        for number, disk in enumerate(disks):
            fd = stack.enter_context(scratch_file(scratch))
            name, raw = f"{base}-disk{number + 1}.vmdk", raws[number] if raws else None
            kind = ExportFormat.VMDK_STREAM
            write_into(disk, fd, kind, name=name, scratch=scratch, raw=raw, progress=progress)
            parts.append(_part(name, fd))
        _write_tar(out, base, _descriptor(machine, disks, parts), parts)


def _part(name: str, fd: int) -> _Part:
    digest, size = hashlib.sha256(), os.fstat(fd).st_size
    for offset in range(0, size, _BLOCK):
        digest.update(os.pread(fd, _BLOCK, offset))
    return _Part(name, size, digest.hexdigest(), fd)


def _write_tar(out: int, base: str, descriptor: bytes, parts: list[_Part]) -> None:
    ovf = f"{base}.ovf"
    lines = [f"SHA256({ovf})= {hashlib.sha256(descriptor).hexdigest()}"]
    lines += [f"SHA256({part.name})= {part.sha256}" for part in parts]
    manifest = "".join(f"{line}\n" for line in lines).encode()
    with open(out, "wb", closefd=False) as file:
        for name, content in ((ovf, descriptor), (f"{base}.mf", manifest)):
            _member(file, name, len(content), [content])
        for part in parts:
            places = range(0, part.size, _BLOCK)
            _member(file, part.name, part.size, (os.pread(part.fd, _BLOCK, o) for o in places))
        file.write(bytes(1024))
        file.write(bytes(-file.tell() % _RECORD))


def _member(file: IO[bytes], name: str, size: int, blocks: Iterable[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    file.write(info.tobuf(tarfile.GNU_FORMAT))  # sizes of 8 GiB and more in base 256
    file.writelines(blocks)
    file.write(bytes(-size % 512))


def _descriptor(machine: Machine, disks: Sequence[Disk], parts: list[_Part]) -> bytes:
    files = [
        f'<File ovf:id="file{n}" ovf:href="{html.escape(part.name)}" ovf:size="{part.size}"/>\n'
        for n, part in enumerate(parts, 1)
    ]
    layouts = [
        f'<Disk ovf:diskId="vmdisk{n}" ovf:fileRef="file{n}" ovf:capacity="{disk.size}" '
        'ovf:capacityAllocationUnits="byte" ovf:format='
        '"http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>\n'
        for n, disk in enumerate(disks, 1)
    ]
    os_id, os_type = _SYSTEMS.get(machine.os_type, _SYSTEMS["Linux"])
    text = _ENVELOPE.format(
        files="".join(files),
        disks="".join(layouts),
        items="".join(_items(machine, len(disks))),
        name=html.escape(machine.name),
        firmware="efi" if machine.efi else "bios",
        os_id=os_id,
        os_type=os_type,
    )
    return text.encode()


def _items(machine: Machine, disks: int) -> list[str]:
    memory = -(-machine.memory // (1 << 20))
    items = [
        _item(1, 3, f"{machine.vcpus} virtual CPUs", VirtualQuantity=machine.vcpus),
        _item(2, 4, f"{memory} MB", AllocationUnits="byte * 2^20", VirtualQuantity=memory),
        _item(3, 6, "SCSI controller", Address=0, ResourceSubType="VirtualSCSI"),
    ]
    # Address 7 on a SCSI bus is the controller's own.
    places = [place for place in range(16) if place != 7]
    items += [
        _item(
            10 + number,
            17,
            f"disk {number + 1}",
            AddressOnParent=places[number],
            HostResource=f"ovf:/disk/vmdisk{number + 1}",
            Parent=3,
        )
        for number in range(disks)
    ]
    items += [
        _item(40, 10, "network", AddressOnParent=0, Connection="nat", ResourceSubType="VmxNet3")
    ]
    return items


def _item(instance: int, kind: int, name: str, **fields: str | int) -> str:
    """A hardware item; the schema wants its elements in alphabetical order."""
    values = {**fields, "ElementName": name, "InstanceID": instance, "ResourceType": kind}
    inner = "".join(f"<rasd:{key}>{values[key]}</rasd:{key}>" for key in sorted(values))
    return f"<Item>{inner}</Item>\n"
