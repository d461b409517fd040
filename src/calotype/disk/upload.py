"""What a user uploads: one disk image, plain or packed, or an OVA with several."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from calotype.disk import ova
from calotype.disk.compression import Packing, packing, unpack
from calotype.disk.gate import MAX_VIRTUAL_SIZE, OpenImage, open_window
from calotype.disk.vhd import SizeRule
from calotype.disk.window import Window
from calotype.errors import DiskRefused
from calotype.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenUpload:
    """The open images of an upload; iterating gives them, the OS disk first."""

    images: tuple[OpenImage, ...]
    packing: Packing | None = None
    appliance: ova.Appliance | None = None

    def __iter__(self) -> Iterator[OpenImage]:
        return iter(self.images)

    def __len__(self) -> int:
        return len(self.images)


@contextmanager
def open_upload(
    source: str | os.PathLike[str] | int | Window,
    *,
    scratch: Path,
    packed: Packing | None = None,
    declared: str | None = None,
    vhd_size: SizeRule = "current",
    limit: int = MAX_VIRTUAL_SIZE,
    progress: Progress = SILENT,
) -> Iterator[OpenUpload]:
    """Open an uploaded file through the gate, unpacked where it is packed; close it at the end.

    When the block ends well, every byte read came from one state of the file.

    Args:
        source: a path, or an open descriptor (duplicated, not closed), or a window (not closed), of
            which ``packed`` says whether it holds what a packed file unpacked to.
        scratch: a directory for what a packed file unpacks to (nameless, sparse).
        packed: the compression that the file had and has no more.
        declared: the format that the user says the disk has, without its compression, or ``ova``.
        vhd_size: whose word counts for a VHD's size.
        limit: the most bytes that a disk may have, and that a packed file may unpack to.
        progress: told of unpacking and of checking a manifest.

    Raises:
        DiskRefused: the message names what is wrong, the hint the cure.
        Conflict: something wrote to the file meanwhile.
    """
    with ExitStack() as stack:
        window = source
        if not isinstance(window, Window):
            window = stack.enter_context(Window.open(window))
        if packed is None and (packed := packing(window)) is not None:
            plain = unpack(window, packed, scratch, limit=limit, progress=progress)
            window = stack.enter_context(plain)
        appliance = None
        if declared in {None, "ova"} and ova.is_ova(window):
            appliance = ova.read_ova(window, progress=progress)
            images = ova.open_disks(window, appliance, max_size=limit)
        elif declared == "ova":
            raise DiskRefused(
                "it is declared as an OVA, but is no tar file",
                hint="leave the declaration out, or declare the format of the disk",
            )
        else:
            part = stack.enter_context(window.part(0, window.size))
            images = [open_window(part, declared=declared, vhd_size=vhd_size, max_size=limit)]
        for image in images:
            stack.callback(image.close)
        yield OpenUpload(images=tuple(images), packing=packed, appliance=appliance)
        for image in images:
            image.unchanged()
