"""What the disks themselves say: the proof of their state, and whether they were shut down cleanly."""

import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace

from calotype.disk import Disk, read
from calotype.disk.view import RawSource, WritableView
from calotype.engine.context import Context
from calotype.engine.generalize.steps import DEFAULT, Steps
from calotype.errors import CalotypeError, GuestError
from calotype.guest import (
    DiskMap,
    Filesystem,
    GeneralizeReport,
    Inspection,
    Proof,
    Tree,
    inspect,
    prove_disk,
    survey,
)
from calotype.guest import generalize as generalize_view
from calotype.guest.inspect import generations
from calotype.guest.locate import find_root
from calotype.guest.proof import prove_tree
from calotype.model import Generation, Verdict

_SUPERBLOCK = 1024
_NEEDS_RECOVERY = 0x4
#: What an appliance mounts and we do not read.
_MOUNTABLE = {Filesystem.XFS, Filesystem.BTRFS, Filesystem.LVM}


@dataclass(frozen=True, slots=True)
class Look:
    """An OS disk that is looked at: its proof, its map, and the guest's tree (None: it cannot be read)."""

    proof: Proof
    found: DiskMap
    tree: Tree | None


def prove_index(context: Context, index: str) -> Proof:
    """The proof of a stored OS disk."""
    with closing(context.repository.open(index)) as disk:
        return prove(context, disk)


def prove(context: Context, disk: Disk) -> Proof:
    """The proof of an OS disk (see :func:`looked`)."""
    with looked(context, disk) as look:
        return look.proof


def firmware(context: Context, index: str) -> tuple[Generation, ...]:
    """The firmware that a stored OS disk can start by, as far as its partitions tell."""
    with closing(context.repository.open(index)) as disk:
        return generations(survey(disk))


@contextmanager
def looked(context: Context, disk: Disk) -> Iterator[Look]:
    """Look at an OS disk within the block; what we do not read ourselves is mounted in an appliance."""
    found, proof = survey(disk), prove_disk(disk)
    if proof.verdict is not Verdict.UNKNOWN or not beyond_us(disk, proof.seen):
        yield Look(proof, found, _tree(disk, found))
        return
    from calotype.engine.generalize.appliance import appliance_tree  # noqa: PLC0415 (few disks need one)

    with ExitStack() as stack:
        tree: Tree | None = None
        try:
            mounted = stack.enter_context(appliance_tree(context, disk))
            proof = prove_tree(mounted.guest, disk, found, reached=mounted.reached)
            tree = mounted.guest
        except CalotypeError as error:
            proof = replace(proof, reasons=(*proof.reasons, error.message))
        yield Look(proof, found, tree)


def _tree(disk: Disk, found: DiskMap) -> Tree | None:
    from calotype.guest.windows import open_windows  # noqa: PLC0415 (most disks are Linux's)

    try:
        return open_windows(disk, found) or find_root(disk, found)[1]
    except GuestError:
        return None


def generalize(
    context: Context, view: WritableView, steps: Steps = DEFAULT, *, dry_run: bool = False
) -> GeneralizeReport:
    """Generalize the OS disk behind a view: by ourselves, or in an appliance.

    Raises:
        GuestError: this guest cannot be generalized, or something was left.
    """
    with closing(RawSource(view.path).open()) as disk:
        far = beyond_us(disk, inspect(disk))
    if far:
        from calotype.engine.generalize.appliance import generalize_in_appliance  # noqa: PLC0415 (see above)

        return generalize_in_appliance(context, view, steps, dry_run=dry_run)
    return generalize_view(
        view,
        enable=steps.enable,
        disable=steps.disable,
        dry_run=dry_run,
        progress=context.progress,
    )


def beyond_us(disk: Disk, seen: Inspection) -> bool:
    """Whether an appliance can look into a disk of which we see nothing, or not all."""
    kinds = {partition.filesystem for partition in survey(disk).partitions}
    unseen = seen.os_type is None and bool(kinds & _MOUNTABLE)
    return unseen or bool(seen.apart)


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
