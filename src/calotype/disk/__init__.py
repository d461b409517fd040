"""Disk images: every format opens as a :class:`Disk`, and every disk is written in every format."""

from calotype.disk.base import Disk, Extent, read
from calotype.disk.gate import MAX_VIRTUAL_SIZE, Format, OpenImage, open_image
from calotype.disk.layout import Kind, Layout, MappedDisk
from calotype.disk.window import Window

__all__ = [
    "MAX_VIRTUAL_SIZE",
    "Disk",
    "Extent",
    "Format",
    "Kind",
    "Layout",
    "MappedDisk",
    "OpenImage",
    "Window",
    "open_image",
    "read",
]
