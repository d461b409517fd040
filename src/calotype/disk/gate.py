"""The gate: the one way in for a disk image that somebody gives us.

An image enters when its two ends name one format that we read, that is the declared one, our strict
parser understands all of it, and two other programs see the same disk. What the gate parsed is what
is read afterwards: there is no second parser, and no second open.
"""

import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial
from typing import Final, Self

from calotype.disk import qcow2, raw, vhd, vhdx, vmdk
from calotype.disk.layout import Layout, MappedDisk
from calotype.disk.magic import marks
from calotype.disk.opinion import ask_inspector, ask_qemu
from calotype.disk.vhd import SizeRule
from calotype.disk.window import Window
from calotype.errors import Conflict, DiskRefused, InvalidInput

#: The greatest virtual size that is let in, in bytes.
MAX_VIRTUAL_SIZE: Final = 64 << 40


class Format(StrEnum):
    """The disk formats that are read."""

    RAW = "raw"
    VHD = "vhd"
    VHDX = "vhdx"
    QCOW2 = "qcow2"
    VMDK = "vmdk"


_ALIASES: Final[Mapping[str, Format]] = {"vpc": Format.VHD, "img": Format.RAW}


class OpenImage:
    """An image that passed the gate, open for reading. Closing it closes its disk.

    ``mapped`` is how many bytes of the disk the file holds, an upper bound of what an import reads.
    """

    def __init__(self, layout: Layout, window: Window) -> None:
        self.format = Format(layout.format)
        self.variant = layout.variant
        self.layout = layout
        self.disk = MappedDisk(layout, window)
        self._window = window
        self._state = _state(window)

    @property
    def virtual_size(self) -> int:
        """The size of the disk in bytes."""
        return self.layout.size

    @property
    def mapped(self) -> int:
        """Bytes of the disk that are not known to be zero."""
        return self.layout.mapped

    def unchanged(self) -> None:
        """Call when all is read: what was read is one state of the file.

        Raises:
            Conflict: something wrote to the file since it was opened.
        """
        if _state(self._window) != self._state:
            raise Conflict(
                "the file was changed while it was read",
                hint="import it again from a copy that nothing writes to",
            )

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        self.disk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_image(
    source: str | os.PathLike[str] | int,
    *,
    declared: str | None = None,
    vhd_size: SizeRule = "current",
    second_opinion: bool = True,
    max_size: int = MAX_VIRTUAL_SIZE,
) -> OpenImage:
    """Open a stranger's disk image.

    Args:
        source: a path, or an open descriptor (duplicated, not closed).
        declared: the format that the user says it is; ``None``: what its two ends say.
        vhd_size: whose word counts for a VHD's size: the footer's Current Size or the geometry.
        second_opinion: ask the two other programs. Only for files that we have just made ourselves.
        max_size: the greatest virtual size to let in, in bytes.

    Raises:
        DiskRefused: the message names what is wrong, the hint the cure.
        NotFound: there is no such file.
        InvalidInput: it is no file, or ``declared`` is no format.
        ToolMissing: there is no sandbox, and the image is not raw.
    """
    window = Window.open(source)
    try:
        return open_window(
            window,
            declared=declared,
            vhd_size=vhd_size,
            second_opinion=second_opinion,
            max_size=max_size,
        )
    except BaseException:
        window.close()
        raise


def open_window(
    window: Window,
    *,
    declared: str | None = None,
    vhd_size: SizeRule = "current",
    second_opinion: bool = True,
    max_size: int = MAX_VIRTUAL_SIZE,
) -> OpenImage:
    """As :func:`open_image`, for a part of a file. The image takes the window over."""
    wanted = parse_format(declared) if declared is not None else None
    found = sniff(window, wanted)
    if wanted is not None and wanted is not found:
        raise DiskRefused(
            f"it is declared as {wanted}, but its content is {found}",
            hint=f"declare it as {found}, or leave the format out",
        )
    layout = _parsers(vhd_size)[found](window)
    if layout.size > max_size:
        raise DiskRefused(
            f"its virtual size of {layout.size} bytes is above the limit of {max_size}",
            hint="raise the limit if the disk is really so large",
        )
    if second_opinion:
        ask_inspector(layout, window)
        if found is not Format.RAW:
            ask_qemu(layout, window, vhd_size)
    return OpenImage(layout, window)


def parse_format(name: str) -> Format:
    """The format of that name.

    Raises:
        InvalidInput: there is none; the hint lists all.
    """
    lower = name.lower()
    try:
        return _ALIASES.get(lower) or Format(lower)
    except ValueError:
        known = ", ".join(Format)
        raise InvalidInput(f"{name!r} is no disk format", hint=f"formats: {known}") from None


def sniff(window: Window, declared: Format | None = None) -> Format:
    """The one format that both ends of a file name; raw when they name none.

    Raises:
        DiskRefused: a foreign format, an archive (unless declared raw), or several formats at once.
    """
    found = marks(window)
    if declared is Format.RAW:
        found = [mark for mark in found if not mark.archive]
    if not found:
        return Format.RAW
    if len(found) > 1:
        names = " and ".join(mark.title for mark in found)
        raise DiskRefused(
            f"the file is {names} at once", hint="convert it where its format is known for certain"
        )
    mark = found[0]
    if mark.archive:
        raise DiskRefused(
            f"the file is packed ({mark.title})",
            hint="unpack it first, or declare it as raw if it is a disk that begins so by chance",
        )
    if mark.ours is None:
        raise DiskRefused(
            f"foreign format, not supported: {mark.title}",
            hint="convert it where it was made: qemu-img convert -O qcow2 IN OUT",
        )
    return Format(mark.ours)


def _parsers(rule: SizeRule) -> Mapping[Format, Callable[[Window], Layout]]:
    return {
        Format.RAW: raw.parse,
        Format.VHD: partial(vhd.parse, size_rule=rule),
        Format.VHDX: vhdx.parse,
        Format.QCOW2: qcow2.parse,
        Format.VMDK: vmdk.parse,
    }


def _state(window: Window) -> tuple[int, ...]:
    status = os.fstat(window.fd)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
