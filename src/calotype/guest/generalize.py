"""Makes a copy of an OS disk general, and shows that it is.

The copy is a throw-away view: whatever goes wrong here, the source is untouched and nothing is captured.
"""

import os
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from calotype.disk.base import Disk
from calotype.disk.layout import MappedDisk
from calotype.disk.raw import parse
from calotype.disk.view import WritableView
from calotype.disk.window import Window
from calotype.errors import GuestError
from calotype.guest import tools
from calotype.guest.guest import Action, Edit, Guest
from calotype.guest.inspect import Inspection, inspect_guest
from calotype.guest.locate import DiskMap, Filesystem, Partition, find_root, survey
from calotype.guest.offline import offline, zero
from calotype.guest.proof import preferences
from calotype.guest.secrets import Secret, secrets
from calotype.guest.steps import SysprepStep, select
from calotype.guest.steps.step import KNOWN, Concern
from calotype.guest.steps.swap_files import PAGE
from calotype.guest.wipe import data_runs, wipe
from calotype.progress import SILENT, Progress


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did, and what its check found ``left`` (nothing, or the disk is refused)."""

    name: str
    heading: str
    edits: tuple[Edit, ...]
    left: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneralizeReport:
    """What was done to make a disk general.

    ``before`` is what stood on it; ``steps`` are in order; ``secrets`` are those of applications, which
    stay; ``wiped`` is the number of bytes of deleted content that were overwritten; ``filesystem`` is the
    closing line of the last check.
    """

    before: Inspection
    steps: tuple[StepReport, ...]
    disabled: tuple[str, ...]
    secrets: tuple[Secret, ...]
    notes: tuple[str, ...]
    wiped: int
    filesystem: str
    dry_run: bool


def generalize(
    view: WritableView,
    *,
    enable: Collection[str] = (),
    disable: Collection[str] = (),
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> GeneralizeReport:
    """Generalize the OS disk behind a view.

    Args:
        view: a view of the disk; after an error, or a dry run, it is worth nothing.
        enable: steps to perform that are not by default.
        disable: steps to leave out (and not to check).
        dry_run: say what would go; the checks' findings in the report are then of the disk as it was.
        progress: is told of each step.

    Raises:
        GuestError: the disk has no operating system that can be generalized, is damaged, or a check
            found that something is left.
        InvalidInput: a step's name is wrong.
    """
    with closing(_disk(view.path)) as disk:
        found = survey(disk)
        root, _ = find_root(disk, found)
    with view.partition(root.offset, root.size) as path:
        with progress.phase("checking the file system", None):
            tools.repair(path)
        with offline(path) as guest:
            before = suitable(guest, found)
            chosen = select(before.distribution, enable=enable, disable=disable)
            steps = perform_and_check(guest, chosen, progress, dry_run=dry_run)
            notes = preferences(before)
            kept = tuple(secrets(guest))
        wiped, state = (0, "not changed") if dry_run else _finish(view, root, path, progress)
    if not dry_run:
        _wipe_swap(view, found)
        more, untouched = _erase_others(view, found, root, progress)
        wiped, notes = wiped + more, (*notes, *untouched)
    return GeneralizeReport(
        before=before,
        steps=tuple(steps),
        disabled=tuple(sorted(disable)),
        secrets=kept,
        notes=notes,
        wiped=wiped,
        filesystem=state,
        dry_run=dry_run,
    )


def suitable(guest: Guest, found: DiskMap, reached: Collection[str] = ("/",)) -> Inspection:
    """What stands on the disk, if it is one that the steps know.

    Args:
        guest: the guest.
        found: the map of its disk.
        reached: the mount points whose file systems are in ``guest``.

    Raises:
        GuestError: it is another one, or the steps would not reach all of it.
    """
    before = inspect_guest(guest, found)
    name = before.os_name or "this operating system"
    if not before.distribution & KNOWN:
        raise GuestError(
            f"{name} cannot be generalized yet",
            hint="generalize it in the VM and capture it with --os-state Generalized",
        )
    apart = [path for path in before.apart if path not in reached]
    if apart:
        raise GuestError(
            f"{', '.join(apart)} is on a file system of its own, which the steps would not reach",
            hint="generalize it in the VM and capture it with --os-state Generalized",
        )
    return before


class Flushed(Guest, Protocol):
    """A guest whose changes wait for a flush."""

    def flush(self) -> None:
        """Carry them out; what is read next is read anew."""
        ...


def perform_and_check(
    guest: Flushed,
    chosen: list[SysprepStep],
    progress: Progress,
    *,
    dry_run: bool,
    alive: bool = False,
) -> list[StepReport]:
    """Perform all steps, then check all: a later step may bring back what an earlier one removed.

    A guest that is ``alive`` writes logs and the like at once; such traces are told of, and no error.
    """
    target: Guest = _Rehearsal(guest) if dry_run else guest
    done: list[tuple[SysprepStep, tuple[Edit, ...]]] = []
    with progress.phase("generalizing", len(chosen), unit="steps") as advance:
        for step in chosen:
            before = len(target.edits)
            step.perform(target)
            done.append((step, tuple(target.edits[before:])))
            advance(1)
    guest.flush()
    with progress.phase("checking what is left", len(chosen), unit="steps") as advance:
        reports = []
        for step, edits in done:
            left = tuple(step.check(guest))
            reports.append(StepReport(step.name, step.heading, edits, left))
            advance(1)
    left_over = [
        f"{report.name}: {line}"
        for (step, _), report in zip(done, reports, strict=True)
        if not (alive and step.concern is Concern.TRACE)
        for line in report.left
    ]
    if left_over and not dry_run:
        shown = "; ".join(left_over[:5]) + ("; …" if len(left_over) > 5 else "")
        raise GuestError(
            f"the disk is not general: {shown}",
            hint="remove it in the VM, or leave the step out with --disable",
        )
    return reports


def _finish(view: WritableView, root: Partition, path: Path, progress: Progress) -> tuple[int, str]:
    """Erase what was deleted, here and before; the file system must be clean then."""
    with progress.phase("erasing deleted files", None):
        tools.repair(path, directories=True)
        wiped = wipe(path, view.path, root.offset)
    with progress.phase("checking the file system", None):
        return wiped, tools.verify(path)


def _erase_others(
    view: WritableView, found: DiskMap, root: Partition, progress: Progress
) -> tuple[int, list[str]]:
    """Erase what was deleted on the disk's other ext4 partitions; what is damaged there is told and stays."""
    wiped, notes = 0, []
    for partition in found.partitions:
        if partition.filesystem is not Filesystem.EXT or partition == root:
            continue
        try:
            with view.partition(partition.offset, partition.size) as path:
                wiped += _finish(view, partition, path, progress)[0]
        except GuestError as error:
            notes.append(
                f"deleted files of partition {partition.number} were not erased: {error.message}"
            )
    return wiped, notes


def _wipe_swap(view: WritableView, found: DiskMap) -> None:
    for partition in found.partitions:
        if partition.filesystem is Filesystem.SWAP:
            _blank(view, partition)


def _blank(view: WritableView, partition: Partition) -> None:
    begin, end = partition.offset + PAGE, partition.offset + partition.size
    with view.partition(partition.offset, partition.size) as path:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        holes = os.open(view.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for at, length in data_runs(holes, begin, end):
                zero(fd, at - partition.offset, length)
            os.fsync(fd)
        finally:
            os.close(holes)
            os.close(fd)


def _disk(path: Path) -> Disk:
    window = Window.open(path)
    return MappedDisk(parse(window), window)


class _Rehearsal:
    """A guest on which changes are noted and not made."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self.edits: list[Edit] = []
        self.stat = guest.stat
        self.list = guest.list
        self.read = guest.read
        self.real = guest.real
        self.is_blank = guest.is_blank

    def remove(self, path: str) -> None:
        """Note a removal."""
        if self._guest.stat(path) is not None:
            self.edits.append(Edit(Action.REMOVED, path))

    def truncate(self, path: str) -> None:
        """Note an emptying."""
        self.edits.append(Edit(Action.EMPTIED, path))

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Note a change of content."""
        del mode
        if self._guest.read(path, len(data) + 1) != data:
            self.edits.append(Edit(Action.WRITTEN, path))

    def blank(self, path: str, keep: int) -> None:
        """Note an overwriting."""
        del keep
        self.edits.append(Edit(Action.BLANKED, path))

    def execute(self, argv: Sequence[str]) -> bool:
        """Nothing is run."""
        del argv
        return False
