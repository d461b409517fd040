"""The marks by which disk formats are known, at both ends of a file."""

import re
from dataclasses import dataclass
from typing import Final

from calotype.disk.window import Window


@dataclass(frozen=True, slots=True)
class Mark:
    """Bytes at a place of a file that name its format.

    ``place`` counts from the beginning, or, when negative, from the end. ``ours`` names the parser;
    ``archive`` says that the file wraps something else, so that a raw disk may begin so by chance.
    """

    title: str
    place: int
    value: bytes
    ours: str | None = None
    archive: bool = False


_DESCRIPTOR: Final = Mark(
    "VMDK descriptor (its data is in other files)", 0, b"# Disk DescriptorFile"
)

MARKS: Final = (
    Mark("qcow2", 0, b"QFI\xfb", "qcow2"),
    Mark("VHD", 0, b"conectix", "vhd"),
    Mark("VHD", -512, b"conectix", "vhd"),
    Mark("VHDX", 0, b"vhdxfile", "vhdx"),
    Mark("VMDK", 0, b"KDMV", "vmdk"),
    Mark("VHD with a footer of 511 bytes (before Virtual PC 2004)", -511, b"conectix"),
    Mark("VMDK of ESX (COWD)", 0, b"COWD"),
    Mark("VMDK of vSphere (SE sparse)", 0, b"\xbe\xba\xfe\xca\0\0\0\0"),
    _DESCRIPTOR,
    Mark("VDI", 64, b"\x7f\x10\xda\xbe"),
    Mark("QED", 0, b"QED\0"),
    Mark("Bochs", 0, b"Bochs Virtual HD Image"),
    Mark("Parallels", 0, b"WithoutFreeSpace"),
    Mark("Parallels", 0, b"WithouFreSpacExt"),
    Mark("cloop", 0, b"#!/bin/sh\n#V2.0 Format\n"),
    Mark("Apple disk image (dmg)", -512, b"koly"),
    Mark("Apple disk image (encrypted)", 0, b"encrcdsa"),
    Mark("Apple disk image (encrypted)", -8, b"cdsaencr"),
    Mark("Apple sparse image", 0, b"sprs"),
    Mark("Apple sparse image (ASIF)", 0, b"shdw"),
    Mark("LUKS-encrypted disk", 0, b"LUKS\xba\xbe"),
    Mark("ISO 9660", 32769, b"CD001"),
    Mark("UDF", 32769, b"BEA01"),
    Mark("UDF", 32769, b"NSR02"),
    Mark("UDF", 32769, b"NSR03"),
    Mark("Android sparse image", 0, b"\x3a\xff\x26\xed"),
    Mark("Windows image (WIM)", 0, b"MSWIM\0\0\0"),
    Mark("EnCase image (EWF)", 0, b"EVF\x09\x0d\x0a\xff\0"),
    Mark("EnCase image (EWF2)", 0, b"EVF2\x0d\x0a\x81\0"),
    Mark("AFF", 0, b"AFF10\x0d\x0a\0"),
    Mark("partclone image", 0, b"partclone-image"),
    Mark("gzip", 0, b"\x1f\x8b\x08", archive=True),
    Mark("xz", 0, b"\xfd7zXZ\0", archive=True),
    Mark("zstd", 0, b"\x28\xb5\x2f\xfd", archive=True),
    Mark("bzip2", 0, b"BZh", archive=True),
    Mark("lz4", 0, b"\x04\x22\x4d\x18", archive=True),
    Mark("lzop", 0, b"\x89LZO\0\x0d\x0a\x1a\x0a", archive=True),
    Mark("zip", 0, b"PK\x03\x04", archive=True),
    Mark("7-Zip", 0, b"7z\xbc\xaf\x27\x1c", archive=True),
    Mark("RAR", 0, b"Rar!\x1a\x07", archive=True),
    Mark("tar or OVA", 257, b"ustar", archive=True),
)

_REACH: Final = 33 << 10
#: A text that QEMU takes for a VMDK descriptor: its first line that is no comment states a version.
_DESCRIPTOR_TEXT: Final = re.compile(rb"\A(?:[ \t]*(?:#[^\n]*)?\r?\n)*[ \t]*version=\d")


def marks(window: Window) -> list[Mark]:
    """The formats that the file's two ends name, each once, in the order of :data:`MARKS`."""
    head = window.read(0, min(window.size, _REACH))
    tail = window.read(max(0, window.size - 512), min(window.size, 512))
    found: dict[str, Mark] = {}
    for mark in MARKS:
        if _at(mark, head, tail):
            found.setdefault(mark.title, mark)
    if _DESCRIPTOR_TEXT.match(head):
        found.setdefault(_DESCRIPTOR.title, _DESCRIPTOR)
    return list(found.values())


def _at(mark: Mark, head: bytes, tail: bytes) -> bool:
    if mark.place >= 0:
        return head.startswith(mark.value, mark.place)
    return len(tail) >= -mark.place and tail.startswith(mark.value, len(tail) + mark.place)
