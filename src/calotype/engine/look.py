"""What the disks themselves say: generation, OS state, whether they were shut down cleanly."""

import struct
from dataclasses import replace

from calotype.disk import Disk, read
from calotype.errors import InvalidInput
from calotype.guest import Filesystem, Inspection, survey
from calotype.model import Image, OsState, SourceKind

_SUPERBLOCK = 1024
_NEEDS_RECOVERY = 0x4


def settle(image: Image, declared: OsState | None, seen: Inspection) -> Image:
    """The image with its OS state as declared, else as seen; a contradiction is noted in it.

    Raises:
        InvalidInput: the state was neither declared, nor can it be seen.
    """
    if declared is None:
        if seen.os_state is None:
            problem = "; ".join(seen.notes) or "no operating system was found"
            raise InvalidInput(
                f"cannot see whether '{image.name}' is generalized: {problem}",
                hint="say so: --os-state Generalized (makes many VMs) or Specialized (one machine)",
            )
        return replace(image, os_state=seen.os_state)
    if seen.os_state in (None, declared) or image.provenance.kind is SourceKind.RECIPE:
        return replace(image, os_state=declared)
    reasons = "; ".join(seen.evidence[:3]) or "nothing of one machine is on it"
    note = f"declared {declared}, but its disk looks {seen.os_state}: {reasons}"
    provenance = replace(image.provenance, notes=(*image.provenance.notes, note))
    return replace(image, os_state=declared, provenance=provenance)


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
