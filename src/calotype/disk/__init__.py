"""Disk images: every format opens as a :class:`Disk`, and every disk is written in every format."""

from typing import TYPE_CHECKING

from calotype.late import late

if TYPE_CHECKING:
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

#: Where each name is defined: a command loads what it needs, and is quick.
_PLACES = {
    "Appliance": "ova",
    "Disk": "base",
    "ExportFormat": "export",
    "Extent": "base",
    "Format": "gate",
    "Kind": "layout",
    "Layout": "layout",
    "MAX_VIRTUAL_SIZE": "gate",
    "Machine": "ova_write",
    "MappedDisk": "layout",
    "OpenImage": "gate",
    "OpenUpload": "upload",
    "Packing": "compression",
    "Window": "window",
    "azure_gate": "export",
    "open_image": "gate",
    "open_upload": "upload",
    "parse_target": "export",
    "read": "base",
    "write": "export",
    "write_ova": "ova_write",
}

__getattr__ = late(__name__, _PLACES)
