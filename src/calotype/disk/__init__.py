"""Disk images: every format opens as a :class:`Disk`, and every disk is written in every format."""

from calotype.disk.base import Disk, Extent, read
from calotype.disk.compression import Packing
from calotype.disk.export import ExportFormat, azure_gate, parse_target, write
from calotype.disk.gate import MAX_VIRTUAL_SIZE, Format, OpenImage, open_image
from calotype.disk.layout import Kind, Layout, MappedDisk
from calotype.disk.ova import Appliance
from calotype.disk.ova_write import Machine, write_ova
from calotype.disk.upload import OpenUpload, open_upload
from calotype.disk.window import Window

__all__ = [
    "MAX_VIRTUAL_SIZE",
    "Appliance",
    "Disk",
    "ExportFormat",
    "Extent",
    "Format",
    "Kind",
    "Layout",
    "Machine",
    "MappedDisk",
    "OpenImage",
    "OpenUpload",
    "Packing",
    "Window",
    "azure_gate",
    "open_image",
    "open_upload",
    "parse_target",
    "read",
    "write",
    "write_ova",
]
