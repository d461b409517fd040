"""The boot test: clones of an image start in throw-away overlays, are looked at, and must differ.

Clones are in no catalogue. Each has a directory of its own among the VMs', which the operation has claimed:
however the command ends, the next operation ends the clone's process and removes the directory.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from calotype.engine import references
from calotype.engine.base import bases
from calotype.engine.boot.bootclone import OFF, STEPS, Clone, Examination, Test, memory
from calotype.engine.boot.bootreport import BootReport, CloneReport, compare
from calotype.engine.context import Context
from calotype.engine.proof import look
from calotype.engine.proof.evidence import find_evidence, write_evidence
from calotype.errors import InvalidInput
from calotype.model import Architecture, Image, OsState, OsType, Role, Stage
from calotype.run import run

_MAX_CLONES = 8
#: Of the host's memory, what clones may take together.
_SHARE = 0.7


def boot_test(
    context: Context,
    image_name: str,
    *,
    clones: int = 2,
    timeout: float = 600.0,
    keep_artifacts: Path | None = None,
) -> BootReport:
    """Start clones of an image, look at them, and promote the image when nothing speaks against it.

    A specialized image is started once, for two of it would be one machine twice. A test that fails makes
    a promoted image staged again; a test that could not be done (no QEMU, a damaged store) changes nothing.
    What was seen goes into the image's evidence report before its stage changes.

    Args:
        context: the installation.
        image_name: the image, by name or id.
        clones: how many of a generalized image, 2 to 8.
        timeout: seconds that each clone has to start until it can be looked into.
        keep_artifacts: a directory for screenshots and serial logs; ``None`` keeps them in the evidence only.

    Raises:
        InvalidInput: an image that this host cannot start, or no number of clones.
        NotFound: there is no such image.
        ReportRefused: the image's evidence report was changed by somebody.
    """
    image = context.catalog.image(references.find(context, image_name).id, Role.CONTRIBUTOR)
    _check(image, clones, timeout)
    known = find_evidence(context, image)
    begun, started_at = time.monotonic(), datetime.now(UTC)
    count = clones if image.os_state is OsState.GENERALIZED else 1
    with context.operation() as operation:
        cast = [Clone.new(context, letter) for letter in "ABCDEFGH"[:count]]
        operation.claim_all([("vm", clone.id) for clone in cast])
        shared = {
            disk.index: bases.ensure(context, disk.index, operation.directory)
            for disk in image.disks
        }
        before = [_state(path) for path in shared.values()]
        kept = keep_artifacts or operation.directory / "artifacts"
        kept.mkdir(parents=True, exist_ok=True)
        side_by_side = len(cast) > 1 and _fits(image, len(cast))
        test = Test(context, image, shared, operation.directory, timeout, kept, side_by_side)
        reports = _run(test, cast)
        untouched = before == [_state(path) for path in shared.values()]
        report = _report(
            test, reports, started_at, seconds=time.monotonic() - begun, untouched=untouched
        )
        proof = None if known else look.prove_index(context, image.os_disk.index)
        write_evidence(context, image, proof, boot=report)
        context.catalog.promote_image(image.id, report.stage)
    return report if keep_artifacts else _without_paths(report)


def _check(image: Image, clones: int, timeout: float) -> None:
    if timeout < 1:
        raise InvalidInput("no guest starts in less than a second", hint="--timeout 10m")
    if not 2 <= clones <= _MAX_CLONES:
        raise InvalidInput(
            f"{clones} clones cannot be compared", hint=f"2 to {_MAX_CLONES} clones of an image"
        )
    if image.architecture is not Architecture.X64:
        raise InvalidInput(f"image '{image.name}' is for {image.architecture}; this host runs x64")
    if image.os_state is OsState.GENERALIZED and image.os_type is OsType.WINDOWS:
        raise InvalidInput(
            "a generalized Windows cannot be boot-tested: its clones have no key to log in with",
            hint="make a VM of it and look: calotype vm create NAME --image IMAGE --admin-password -",
        )


def _state(base: Path) -> tuple[int, ...]:
    """What changes when a file is written to."""
    status = base.stat()
    return (status.st_ino, status.st_size, status.st_blocks, status.st_mtime_ns)


def _run(test: Test, cast: Sequence[Clone]) -> list[CloneReport]:
    """Examine all clones, at once when the host has room; none runs any more at the end."""
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(test.key)])
    workers = len(cast) if test.parallel else 1
    phase = test.context.progress.phase("starting clones", STEPS * len(cast), unit="steps")
    with phase as advance, ThreadPoolExecutor(workers) as pool:
        try:
            work = [pool.submit(Examination(test, clone, advance).run) for clone in cast]
            return [job.result() for job in work]
        except BaseException:  # those that have not begun see it, those that run lose their VMs
            test.stop.set()
            for clone in cast:
                test.context.driver.kill(clone.directory)
            raise


def _fits(image: Image, count: int) -> bool:
    """Whether the host has a processor and the memory for each of so many clones at once."""
    words = Path("/proc/meminfo").read_text(encoding="ascii").split()
    room = int(words[words.index("MemAvailable:") + 1]) << 10
    return (os.cpu_count() or 1) >= count and count * memory(image) <= _SHARE * room


def _without_paths(report: BootReport) -> BootReport:
    """The report of files that are not where it says any more."""
    clones = (
        replace(clone, artifacts=tuple(replace(file, path=None) for file in clone.artifacts))
        for clone in report.clones
    )
    return replace(report, clones=tuple(clones))


def _report(
    test: Test,
    clones: Sequence[CloneReport],
    started_at: datetime,
    *,
    seconds: float,
    untouched: bool,
) -> BootReport:
    differences = compare(clones) if len(clones) > 1 else ()
    problems = [f"clone {clone.name}: {clone.problem}" for clone in clones if clone.problem]
    for found in differences:
        if not found.ok:
            fault = "is the same" if found.must_differ else "is not the same"
            values = " / ".join(dict.fromkeys(str(value) for value in found.values))
            problems.append(f"the {found.what} {fault} in the clones: {values}")
    if not untouched:
        problems.append("the shared base was written to")
    return BootReport(
        image_id=test.image.id,
        image_name=test.image.name,
        os_state=test.image.os_state,
        indexes=tuple(disk.index for disk in test.image.disks),
        acceleration=test.context.driver.acceleration().name,
        parallel=test.parallel,
        started_at=started_at.isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        clones=tuple(clones),
        differences=differences,
        base_untouched=untouched,
        problems=tuple(problems),
        notes=tuple(_notes(clones)),
        stage=Stage.STAGED if problems else Stage.PROMOTED,
    )


def _notes(clones: Sequence[CloneReport]) -> list[str]:
    """What does not fail the test, and is worth a line."""
    notes = []
    if len(clones) == 1:
        notes.append(
            "specialized: one clone started without a seed; two would be one machine twice"
        )
    for clone in clones:
        name = f"clone {clone.name}"
        if clone.problem:
            continue
        if clone.inside is None:
            notes.append(f"{name}: nobody could look inside; it was seen from outside only")
        if not clone.host_keys:
            notes.append(f"{name}: no SSH server answers")
        if clone.login and not clone.sudo:
            notes.append(f"{name}: the user it was given cannot become root by sudo")
        if units := clone.facts.get("failed-unit"):
            notes.append(f"{name}: failed units: {', '.join(units)}")
        if clone.off_after is None:
            notes.append(f"{name}: it did not power off within {OFF:g} s and was killed")
        elif clone.clean is False:
            notes.append(f"{name}: it left its file systems unclean when it powered off")
    return notes
