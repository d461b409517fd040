"""OVA in: a tar of an OVF descriptor, a manifest and VMDK disks (DMTF DSP0243).

The descriptor is a stranger's XML: no DTD, no entities, at most a MiB. Its references are names of
members, never paths. The disks are read where they lie in the tar, through the same gate as files.
"""

import hashlib
import re
import xml.etree.ElementTree as ET
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final
from xml.parsers import expat

from calotype.disk.gate import MAX_VIRTUAL_SIZE, OpenImage, open_window
from calotype.disk.tar import Member, members
from calotype.disk.window import Window
from calotype.errors import DiskRefused
from calotype.progress import SILENT, Progress

_OVF: Final = "{*}"
_MAX_XML: Final = 1 << 20
_BLOCK: Final = 4 << 20
_DIGESTS: Final = {"SHA1": "sha1", "SHA256": "sha256", "SHA512": "sha512"}
_MANIFEST_LINE: Final = re.compile(r"(SHA1|SHA256|SHA512) ?\((.+)\) ?= ?([0-9a-fA-F]+)")
_UNIT: Final = re.compile(r"byte(?: ?\* ?(\d{1,4})(?:\^(\d{1,2}))?)?")
_MEGA: Final = {"megabytes": 1 << 20, "mb": 1 << 20, "gigabytes": 1 << 30, "gb": 1 << 30}
_CURE: Final = "export it again as an OVA of one machine with VMDK disks"

_CPU, _MEMORY, _DISK = "3", "4", "17"


@dataclass(frozen=True, kw_only=True, slots=True)
class OvaDisk:
    """A disk of an appliance: its member of the tar, and the size that the descriptor states."""

    member: Member
    capacity: int  # bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Appliance:
    """One machine as its OVF descriptor describes it; the disks in the order of its controllers."""

    name: str | None
    disks: tuple[OvaDisk, ...]
    firmware: str | None  # "bios" or "efi"
    os_hint: str | None
    vcpus: int | None
    memory: int | None  # bytes


def is_ova(window: Window) -> bool:
    """Whether a file is a tar; :func:`read_ova` says what is wrong with one that is no OVA."""
    return window.size >= 1024 and window.read(257, 5) == b"ustar"


def read_ova(window: Window, *, progress: Progress = SILENT) -> Appliance:
    """Read an OVA's descriptor, and check its manifest when it has one.

    Raises:
        DiskRefused: a member, the descriptor or the manifest is not accepted; the message says why.
    """
    found = {member.name: member for member in members(window)}
    descriptors = [member for name, member in found.items() if name.lower().endswith(".ovf")]
    if len(descriptors) != 1 or next(iter(found.values())) is not descriptors[0]:
        raise DiskRefused("an OVA must begin with its one .ovf descriptor", hint=_CURE)
    root = _safe(_text(window, descriptors[0]))
    appliance = _appliance(root, found)
    for name, member in found.items():
        if name.lower().endswith(".mf"):
            _verify(window, member, found, progress)
    return appliance


def open_disks(
    window: Window, appliance: Appliance, *, max_size: int = MAX_VIRTUAL_SIZE
) -> list[OpenImage]:
    """Open all disks of an appliance through the gate (the caller closes them)."""
    with ExitStack() as undo:
        images = [
            undo.enter_context(_open_disk(window, disk, max_size)) for disk in appliance.disks
        ]
        undo.pop_all()
    return images


def _open_disk(window: Window, disk: OvaDisk, max_size: int) -> OpenImage:
    with ExitStack() as undo:
        part = undo.enter_context(window.part(disk.member.offset, disk.member.size))
        image = open_window(part, max_size=max_size)
        if image.virtual_size > -(-disk.capacity // 512) * 512:
            raise DiskRefused(
                f"{disk.member.name} holds {image.virtual_size} bytes, and the descriptor states "
                f"{disk.capacity}",
                hint=_CURE,
            )
        undo.pop_all()
    return image


def _text(window: Window, member: Member) -> bytes:
    if member.size > _MAX_XML:
        raise DiskRefused(f"{member.name} is larger than {_MAX_XML} bytes", hint=_CURE)
    return window.read(member.offset, member.size)


def _safe(raw: bytes) -> ET.Element:
    """Parse XML that holds no document type and no entities."""

    def refuse(*_: object) -> None:
        raise DiskRefused("the OVF descriptor has a DTD, which is not accepted", hint=_CURE)

    scout = expat.ParserCreate()
    scout.StartDoctypeDeclHandler = refuse
    scout.EntityDeclHandler = refuse
    try:
        scout.Parse(raw, True)
        return ET.fromstring(raw)  # noqa: S314 - the scout has found no DTD
    except (expat.ExpatError, ET.ParseError, ValueError, LookupError) as error:
        raise DiskRefused(f"the OVF descriptor is no XML: {error}", hint=_CURE) from None


def _attribute(element: ET.Element, name: str) -> str | None:
    """An attribute of any namespace: writers differ in which ones they qualify."""
    return next((v for k, v in element.attrib.items() if k.rpartition("}")[2] == name), None)


def _child(element: ET.Element, name: str) -> str | None:
    text = element.findtext(f"{_OVF}{name}")
    return text.strip() if text else None


def _appliance(root: ET.Element, found: dict[str, Member]) -> Appliance:
    systems = root.findall(f".//{_OVF}VirtualSystem")
    if len(systems) != 1:
        raise DiskRefused(f"the OVA holds {len(systems)} machines instead of one", hint=_CURE)
    items = [i for s in systems[0].findall(f"{_OVF}VirtualHardwareSection") for i in s]
    items = [i for i in items if i.tag.endswith("Item")]
    files = _files(root, found)
    disks = _disks(root, files)
    return Appliance(
        name=_attribute(systems[0], "id"),
        disks=tuple(disks[key] for key in _order(items, disks)),
        firmware=_firmware(systems[0]),
        os_hint=_os_hint(systems[0]),
        vcpus=_quantity(items, _CPU, 1),
        memory=_quantity(items, _MEMORY, 1 << 20),
    )


def _files(root: ET.Element, found: dict[str, Member]) -> dict[str, Member]:
    files: dict[str, Member] = {}
    for element in root.findall(f"{_OVF}References/{_OVF}File"):
        key, href = _attribute(element, "id"), _attribute(element, "href")
        packed, pieces = _attribute(element, "compression"), _attribute(element, "chunkSize")
        if packed not in {None, "", "identity"} or pieces is not None:
            raise DiskRefused(f"{href!r} is packed or in pieces inside the OVA", hint=_CURE)
        if key is None or href not in found or key in files:
            raise DiskRefused(f"the OVF descriptor refers to {href!r}, no member of it", hint=_CURE)
        stated = _attribute(element, "size")
        if stated is not None and stated != str(found[href].size):
            raise DiskRefused(f"{href!r} has {found[href].size} bytes, not {stated}", hint=_CURE)
        files[key] = found[href]
    return files


def _disks(root: ET.Element, files: dict[str, Member]) -> dict[str, OvaDisk]:
    disks: dict[str, OvaDisk] = {}
    for element in root.findall(f"{_OVF}DiskSection/{_OVF}Disk"):
        key, file = _attribute(element, "diskId"), _attribute(element, "fileRef")
        if _attribute(element, "parentRef") is not None:
            raise DiskRefused(f"disk {key!r} has a parent disk", hint=_CURE)
        if key is None or file is None or file not in files or key in disks:
            raise DiskRefused(f"disk {key!r} of the OVF descriptor has no file", hint=_CURE)
        unit = _unit(_attribute(element, "capacityAllocationUnits") or "byte")
        capacity = _attribute(element, "capacity") or ""
        if not re.fullmatch(r"[0-9]{1,20}", capacity):
            raise DiskRefused(f"disk {key!r} states a capacity of {capacity!r}", hint=_CURE)
        disks[key] = OvaDisk(member=files[file], capacity=int(capacity) * unit)
    if not disks:
        raise DiskRefused("the OVA holds no disk", hint=_CURE)
    return disks


def _unit(text: str) -> int:
    """Bytes of an allocation unit such as ``byte * 2^30``."""
    if (known := _MEGA.get(text.lower())) is not None:
        return known
    match = _UNIT.fullmatch(text.strip())
    if match is None:
        raise DiskRefused(f"the unit {text!r} is not known", hint=_CURE)
    base, power = match.groups()
    return 1 if base is None else int(base) ** int(power or 1)


def _order(items: list[ET.Element], disks: dict[str, OvaDisk]) -> list[str]:
    """The disks' ids by controller and place on it; all of them must be attached, each once."""
    places: list[tuple[int, int, str]] = []
    controllers = [_child(item, "InstanceID") for item in items]
    for item in items:
        if _child(item, "ResourceType") != _DISK:
            continue
        key = (_child(item, "HostResource") or "").rpartition("/")[2]
        parent = _child(item, "Parent")
        number = controllers.index(parent) if parent in controllers else len(controllers)
        address = _child(item, "AddressOnParent") or ""
        places.append((number, int(address) if address.isdigit() else len(places), key))
    order = [key for *_, key in sorted(places)]
    if sorted(order) != sorted(disks):
        raise DiskRefused("not every disk of the OVA is attached to its machine once", hint=_CURE)
    return order


def _quantity(items: list[ET.Element], kind: str, unit: int) -> int | None:
    for item in items:
        if _child(item, "ResourceType") == kind:
            amount = _child(item, "VirtualQuantity") or ""
            units = _child(item, "AllocationUnits")
            if not re.fullmatch(r"[0-9]{1,12}", amount):
                return None
            return int(amount) * (_unit(units) if units and kind == _MEMORY else unit)
    return None


def _firmware(system: ET.Element) -> str | None:
    """VMware's ``<vmw:Config key="firmware">`` and VirtualBox's ``<Firmware type="EFI">``."""
    for element in system.iter():
        name = element.tag.rpartition("}")[2]
        if name == "Config" and _attribute(element, "key") == "firmware":
            value = (_attribute(element, "value") or "").lower()
            return value if value in {"bios", "efi"} else None
        if name == "Firmware":
            return "efi" if "efi" in (_attribute(element, "type") or "").lower() else "bios"
    return None


def _os_hint(system: ET.Element) -> str | None:
    section = system.find(f"{_OVF}OperatingSystemSection")
    if section is None:
        return None
    return _attribute(section, "osType") or _child(section, "Description")


def _verify(window: Window, manifest: Member, found: dict[str, Member], progress: Progress) -> None:
    """Compare every member that the manifest names with its digest."""
    text = _text(window, manifest).decode("utf-8", "replace")
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _MANIFEST_LINE.fullmatch(line)
        if match is None or match[2] not in found:
            raise DiskRefused(
                f"the manifest of the OVA has a wrong line: {line[:120]!r}", hint=_CURE
            )
        if _digest(window, found[match[2]], _DIGESTS[match[1]], progress) != match[3].lower():
            raise DiskRefused(
                f"{match[2]} does not match the manifest of the OVA",
                hint="fetch it again; it was damaged or changed on the way",
            )


def _digest(window: Window, member: Member, algorithm: str, progress: Progress) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with progress.phase(f"checking {member.name}", member.size) as advance:
        for offset in range(0, member.size, _BLOCK):
            block = window.read(member.offset + offset, min(_BLOCK, member.size - offset))
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()
