"""What the disks themselves say: generation, OS state, whether they were shut down cleanly."""

import struct
from contextlib import closing
from dataclasses import replace

from calotype.disk import Disk, read
from calotype.engine.context import Context
from calotype.errors import GuestError, InvalidInput
from calotype.guest import Inspection, inspect_disk
from calotype.guest.locate import BIOS_BOOT, ESP, Filesystem, survey
from calotype.model import Generation, Image, OsState, OsType

_SUPERBLOCK = 1024
_NEEDS_RECOVERY = 0x4


def complete(context: Context, image: Image, *, declared: OsState | None) -> Image:
    """Fill in what the author of an image did not say, from its OS disk; note what contradicts him.

    Raises:
        InvalidInput: the OS state was not said and cannot be seen.
    """
    inspection, problem = None, "Windows disks cannot be looked into yet"
    if image.os_type is OsType.LINUX:
        with closing(context.repository.open(image.os_disk.index)) as disk:
            try:
                inspection = inspect_disk(disk)
            except GuestError as error:
                problem = error.message
    if inspection is None:
        if declared is None:
            raise InvalidInput(
                f"cannot see whether '{image.name}' is generalized: {problem}",
                hint="say so: --os-state Generalized (makes many VMs) or Specialized (one machine)",
            )
        return image
    if declared is None:
        return replace(image, os_state=inspection.os_state)
    return _noted(image, declared, inspection)


def generation(disk: Disk) -> Generation:
    """V2 when the disk can only start by UEFI, else V1."""
    found = survey(disk)
    bios = BIOS_BOOT in found.kinds() or (found.boot_code and found.table != "gpt")
    return Generation.V2 if ESP in found.kinds() and not bios else Generation.V1


def was_shut_down(disk: Disk) -> bool:
    """Whether every ext file system of a disk was left clean (no journal to replay)."""
    for partition in survey(disk).partitions:
        if partition.filesystem is Filesystem.EXT:
            block = read(disk, partition.offset + _SUPERBLOCK, 256)
            (state,) = struct.unpack_from("<H", block, 0x3A)
            (incompatible,) = struct.unpack_from("<I", block, 0x60)
            if incompatible & _NEEDS_RECOVERY or not state & 1:
                return False
    return True


def _noted(image: Image, declared: OsState, inspection: Inspection) -> Image:
    """Record it when the evidence contradicts what was declared."""
    if inspection.os_state is declared:
        return image
    note = f"declared {declared}; its disk looks {inspection.os_state}: " + "; ".join(
        inspection.reasons[:3]
    )
    provenance = replace(image.provenance, notes=(*image.provenance.notes, note))
    return replace(image, provenance=provenance)
