"""Disks out: every format that we read, each file whole or not there at all."""

import os
import struct
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final

from calotype.disk.base import Disk
from calotype.disk.compression import Packing, pack
from calotype.disk.convert import convert
from calotype.disk.draft import copy_disk, draft, scratch_file
from calotype.disk.vhd import COOKIE, FIXED, FOOTER, checksum_of, parse_footer
from calotype.disk.vmdk import rename_extent
from calotype.disk.window import Window
from calotype.errors import DiskRefused, InvalidInput
from calotype.progress import SILENT, Progress

_MIB: Final = 1 << 20
#: The greatest VHD by its specification.
MAX_VHD: Final = 2040 << 30


class ExportFormat(StrEnum):
    """The formats that a disk is written in."""

    RAW = "raw"
    VHD = "vhd"
    VHD_DYNAMIC = "vhd-dynamic"
    VHDX = "vhdx"
    QCOW2 = "qcow2"
    QCOW2_ZSTD = "qcow2-zstd"
    VMDK = "vmdk"
    VMDK_STREAM = "vmdk-stream"

    @property
    def suffix(self) -> str:
        """The usual suffix of its files, without a dot."""
        return self.value.partition("-")[0]


_QEMU: Final[Mapping[ExportFormat, tuple[str, ...]]] = {
    ExportFormat.VHD_DYNAMIC: ("-O", "vpc", "-o", "subformat=dynamic,force_size=on"),
    ExportFormat.VHDX: ("-O", "vhdx", "-o", "subformat=dynamic"),
    ExportFormat.QCOW2: ("-O", "qcow2", "-o", "compat=1.1"),
    ExportFormat.QCOW2_ZSTD: ("-c", "-O", "qcow2", "-o", "compat=1.1,compression_type=zstd"),
    ExportFormat.VMDK: ("-O", "vmdk", "-o", "subformat=monolithicSparse"),
    ExportFormat.VMDK_STREAM: ("-O", "vmdk", "-o", "subformat=streamOptimized"),
}


def parse_target(name: str) -> tuple[ExportFormat, Packing | None]:
    """A format with an optional compression, as in ``vhd`` or ``qcow2.xz``.

    Raises:
        InvalidInput: there is none of that name; the hint lists all.
    """
    kind, _, packed = name.lower().partition(".")
    try:
        return ExportFormat(kind), Packing(packed) if packed else None
    except ValueError:
        formats, packings = ", ".join(ExportFormat), ", ".join(f".{kind}" for kind in Packing)
        raise InvalidInput(
            f"{name!r} is no format to export to", hint=f"{formats}; each also with {packings}"
        ) from None


def write(
    disk: Disk,
    target: Path,
    kind: ExportFormat,
    *,
    scratch: Path,
    packing: Packing | None = None,
    raw: Path | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> None:
    """Write a disk to a file.

    Args:
        disk: the disk.
        target: the file; it appears when it is complete and on stable storage.
        kind: its format. A fixed VHD is filled up to a whole MiB, as Azure wants it.
        scratch: a directory for nameless intermediate files.
        packing: a compression of the whole file.
        raw: a raw file with the same content as ``disk``, if there is one, which saves a copy.
        overwrite: replace an existing file.
        progress: told of bytes of the disk.

    Raises:
        Conflict: the file exists.
        InvalidInput: the format cannot hold a disk of that size.
        ToolFailed: qemu-img ended with an error.
    """
    check_size(kind, disk.size)
    with draft(target, overwrite=overwrite) as out, ExitStack() as stack:
        plain = out if packing is None else stack.enter_context(scratch_file(scratch))
        write_into(disk, plain, kind, name=target.name, scratch=scratch, raw=raw, progress=progress)
        if packing is not None:
            pack(plain, out, packing, progress=progress)


def write_into(
    disk: Disk,
    out: int,
    kind: ExportFormat,
    *,
    name: str,
    scratch: Path,
    raw: Path | None = None,
    progress: Progress = SILENT,
) -> None:
    """As :func:`write`, into an open, empty file; ``name`` is what a VMDK calls itself."""
    if kind not in _QEMU:
        copy_disk(disk, out, label=f"writing {kind}", progress=progress)
        if kind is ExportFormat.VHD:
            _finish_vhd(out, disk.size)
        return
    with _as_raw(disk, raw, scratch, progress) as source:
        convert(source, out, list(_QEMU[kind]), label=f"writing {kind}", progress=progress)
    if kind.suffix == "vmdk":
        rename_extent(out, name)


def check_size(kind: ExportFormat, size: int) -> None:
    """Refuse a size that the format cannot hold.

    Raises:
        InvalidInput: it is too large.
    """
    if kind.suffix == "vhd" and size > MAX_VHD:
        raise InvalidInput(
            f"a VHD holds at most {MAX_VHD >> 30} GiB, and the disk has {size} bytes",
            hint="export it as vhdx or qcow2",
        )


@contextmanager
def _as_raw(disk: Disk, raw: Path | None, scratch: Path, progress: Progress) -> Iterator[int]:
    """The disk as a raw file: the one that there is, or a sparse copy."""
    if raw is not None:
        with Window.open(raw) as window:
            if window.size != disk.size:
                raise InvalidInput(f"{raw} has {window.size} bytes, and the disk {disk.size}")
            yield window.fd
        return
    with scratch_file(scratch) as fd:
        copy_disk(disk, fd, label="reading", progress=progress)
        yield fd


def _finish_vhd(fd: int, size: int) -> None:
    whole = -(-size // _MIB) * _MIB
    os.ftruncate(fd, whole)
    os.pwrite(fd, fixed_footer(whole), whole)


def fixed_footer(
    size: int, *, unique_id: uuid.UUID | None = None, now: float | None = None
) -> bytes:
    """The last 512 bytes of a fixed VHD of ``size`` bytes."""
    since_2000 = int(now if now is not None else time.time()) - 946_684_800
    fields = struct.pack(
        ">8sIIQI4sI4sQQHBBI",
        COOKIE,
        2,  # reserved, always set
        0x10000,
        (1 << 64) - 1,  # no dynamic header
        max(0, since_2000) & 0xFFFFFFFF,
        b"win ",  # QEMU takes the geometry for the size unless it knows the creator
        0x000A0000,
        b"Wi2k",
        size,
        size,
        *geometry(size),
        FIXED,
    )
    raw = (fields + bytes(4) + (unique_id or uuid.uuid4()).bytes).ljust(FOOTER, b"\0")
    return raw[:64] + struct.pack(">I", checksum_of(raw, 64)) + raw[68:]


def geometry(size: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors per track by the algorithm of the VHD specification."""
    total = min(size // 512, 65535 * 16 * 255)
    if total > 65535 * 16 * 63:
        return total // 255 // 16, 16, 255
    sectors, rounds = 17, total // 17
    heads = max(4, (rounds + 1023) // 1024)
    if rounds >= heads * 1024 or heads > 16:
        sectors, heads = 31, 16
        rounds = total // sectors
    if rounds >= heads * 1024:
        sectors, heads = 63, 16
        rounds = total // sectors
    return rounds // heads, heads, sectors


def azure_gate(path: Path) -> list[str]:
    """What Azure would object to in a VHD file (users.md: the VHD gate); empty when nothing."""
    with Window.open(path) as window:
        if window.size < FOOTER:
            return ["it is too short for a VHD"]
        tail = window.read(window.size - FOOTER, FOOTER)
        if not tail.startswith(COOKIE):
            return ["it does not end with a VHD footer (cookie conectix)"]
        try:
            footer = parse_footer(tail)
        except DiskRefused as error:
            return [error.message]
    size, found = footer.current_size, []
    if footer.kind != FIXED:
        found.append("it is not a fixed VHD")
    if size < 20 * _MIB:
        found.append(f"its virtual size of {size} bytes is below 20 MiB")
    if size % _MIB:
        found.append(f"its virtual size of {size} bytes is not a whole number of MiB")
    if window.size != size + FOOTER:
        found.append(f"the file has {window.size} bytes instead of {size + FOOTER}")
    return found
