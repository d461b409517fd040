"""Copy: images from one repository to another, of which only what is missing moves.

Where both name chunks alike (the domain's key and the chunking are the same), chunks and leaves move between
packs and an Index keeps its id. Otherwise the image is read and taken in like any other disk, and its Index
gets another id. Everything goes through an intake, as an ingest does: data, leaves, then roots.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from calotype.errors import NotFound, StoreDamaged
from calotype.progress import SILENT, Progress
from calotype.store import parameters, profile
from calotype.store.digest import as_rows
from calotype.store.index import Root
from calotype.store.intake import Intake
from calotype.store.pack import Kind
from calotype.store.repository import Repository
from calotype.store.scan import NEAR, Walk, Walked
from calotype.store.transfer import Mover, Wanted

_TRIES = 10  # while packs vanish on either side


@dataclass(kw_only=True, slots=True)
class CopyReport:
    """What a copy did; sizes in bytes."""

    indexes: dict[str, str] = field(default_factory=dict)  # of the source -> in the target
    failed: dict[str, str] = field(
        default_factory=dict
    )  # Indexes that the source cannot give, and why
    present: int = 0  # of the indexes, those that were there
    redigested: int = 0  # those that may have another id, because the target names chunks otherwise
    chunks: int = 0  # that moved
    frames: int = 0  # that moved as they are
    bytes_read: int = 0  # from the source's packs, for what moved
    bytes_stored: int = 0  # what was added to the target's packs
    bytes_moved: int = 0  # of disks, in the chunks that moved
    bytes_known: int = 0  # of disks, in the chunks that were there

    @property
    def ok(self) -> bool:
        """Whether every Index is in the target."""
        return not self.failed


def copy(
    source: Repository,
    target: Repository,
    indexes: Iterable[str] | None = None,
    *,
    near: int = NEAR,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> CopyReport:
    """Copy these Indexes (all, without ``indexes``) and their boot profiles, with so many ``threads``.

    What the source has between wanted frames is read with them where it is less than ``near`` bytes.

    A domain that the target does not have gets the source's key. An Index that the source cannot give in
    full is reported, and left out. A killed copy is continued by the next one.

    Raises:
        NotFound: the source has no such Index.
        Conflict: the target belongs to another installation.
    """
    report = CopyReport()
    with source.steady():
        _run(source, target, indexes, report, near=near, threads=threads, progress=progress)
    return report


def _run(
    source: Repository,
    target: Repository,
    indexes: Iterable[str] | None,
    report: CopyReport,
    *,
    near: int,
    threads: int | None,
    progress: Progress,
) -> None:
    moving: dict[str, dict[str, Root]] = {}
    there = set(target.indexes())
    for index in source.indexes() if indexes is None else dict.fromkeys(indexes):
        if index in there:  # ids are the same only where chunks have the same names
            report.indexes[index] = index
            report.present += 1
            continue
        try:
            root = source.root(index)
            if not _alike(source, target, root.domain):
                _ingest(source, target, index, root.domain, report=report, progress=progress)
            else:
                moving.setdefault(root.domain, {})[index] = root
        except StoreDamaged as error:
            report.failed[index] = error.message
    for name, roots in moving.items():
        _Copy(source, target, name, report, near=near, threads=threads, progress=progress).run(
            roots
        )
    profiles = {stored.key for stored in target.objects.list(profile.PREFIX)}
    for stored in source.objects.list(profile.PREFIX):
        index = stored.key.removeprefix(profile.PREFIX)
        copied = report.indexes.get(index)
        if copied is None or profile.PREFIX + copied in profiles:
            continue
        if extents := source.boot_profile(index):
            target.keep_boot_profile(copied, extents)


def _alike(source: Repository, target: Repository, domain: str) -> bool:
    """Whether the same disk has the same Index in both; the target gets a domain that it does not have."""
    try:
        target.domain(domain)
    except NotFound:
        parameters.copy_domain(source.objects, target.objects, domain)
    # The version of the chunking is of those who made the repositories; both are cut in the newest way.
    ours = replace(target.chunking, version=source.chunking.version)
    return source.chunking == ours and source.domain(domain) == target.domain(domain)


def _ingest(
    source: Repository,
    target: Repository,
    index: str,
    domain: str,
    *,
    report: CopyReport,
    progress: Progress,
) -> None:
    done = target.ingest(source.open(index), domain=domain, progress=progress)
    report.indexes[index] = done.index
    report.redigested += 1
    report.chunks += done.new_chunks
    report.bytes_read += done.bytes_read
    report.bytes_stored += done.stored_bytes


class _Copy:
    """One copy of Indexes of one domain whose chunks have the same names on both sides."""

    def __init__(
        self,
        source: Repository,
        target: Repository,
        domain: str,
        report: CopyReport,
        *,
        near: int,
        threads: int | None,
        progress: Progress,
    ) -> None:
        self._source = source
        self._target = target
        self._domain = source.domain(domain)
        self._report = report
        self._near = near
        self._threads = threads
        self._progress = progress
        self._problems: dict[str, str] = {}

    def run(self, roots: Mapping[str, Root]) -> None:
        """Copy; what cannot be had is noted in the report."""
        left = dict(roots)
        for _ in range(_TRIES):
            self._problems = {}
            self._source.packs.refresh()
            before = self._source.packs.generation
            refused = False
            with self._target.receive(self._domain.name) as intake:
                self._move(left, intake)
                self._report.bytes_stored += intake.stored_bytes
                for index in sorted(left.keys() - self._problems.keys()):
                    if self._target.accept(left[index], intake.used):
                        self._report.indexes[index] = index
                        del left[index]
                    else:
                        refused = True
            self._source.packs.refresh()
            if not left or not (refused or self._source.packs.generation != before):
                break  # else packs vanished on one side
        problem = "packs vanish while they are read"
        self._report.failed.update({i: self._problems.get(i, problem) for i in left})

    def _move(self, roots: Mapping[str, Root], intake: Intake) -> None:
        """Move what the target lacks of these Indexes."""
        wanted = Wanted(self._source.packs)
        self._want(roots, intake, wanted)
        mover = Mover(self._source.objects, intake, near=self._near, threads=self._threads)
        total = sum(mover.size(wanted.marked(kind)) for kind in Kind)
        with self._progress.phase("copying", total) as report:
            for kind in (Kind.DATA, Kind.LEAF):
                mover.move(kind, wanted.marked(kind), report)
        intake.finish()
        self._report.chunks += mover.moved.chunks
        self._report.frames += mover.moved.frames
        self._report.bytes_read += mover.moved.read
        self._report.bytes_moved += mover.moved.raw
        if mover.moved.failed or wanted.vanished:
            self._blame(roots)

    def _want(self, roots: Mapping[str, Root], intake: Intake, wanted: Wanted) -> None:
        """Mark what the target lacks; leaves that it has are read there."""
        source, target = self._source, self._target
        absent = {digest for root in roots.values() for digest in root.leaves.values()}
        with suppress(NotFound):  # pruned meanwhile: read from the source
            for walked in Walk(target.objects, target.packs, self._domain, roots):
                if walked.leaf is not None:
                    absent.discard(walked.digest)
                    self._want_of(walked, intake, wanted)
                elif walked.place >= 0:
                    self._fail(walked.indexes, f"the target is damaged: {walked.problem}")
        with suppress(NotFound):  # pruned meanwhile: seen below, and tried again
            for walked in Walk(source.objects, source.packs, self._domain, roots, only=absent):
                absent.discard(walked.digest)
                if walked.leaf is None:
                    self._fail(walked.indexes, walked.problem)
                    continue
                self._want_of(walked, intake, wanted)
                digest = as_rows([walked.digest])
                if intake.unknown(Kind.LEAF, digest):
                    wanted.want(Kind.LEAF, self._domain.name, digest)
        if absent:
            self._fail(
                [i for i, root in roots.items() if not absent.isdisjoint(root.leaves.values())],
                "a leaf is in packs that vanish as they are read",
            )

    def _want_of(self, walked: Walked, intake: Intake, wanted: Wanted) -> None:
        """Mark the chunks of a leaf."""
        if walked.leaf is None:
            return
        unknown = intake.unknown(Kind.DATA, walked.leaf.digests)
        known = walked.leaf.sizes.sum() - walked.leaf.sizes[unknown].sum()
        self._report.bytes_known += int(known)
        there = wanted.want(Kind.DATA, self._domain.name, walked.leaf.digests[unknown])
        if not there.all():
            count = int((~there).sum())
            self._fail(walked.indexes, f"{count} chunks are missing from the source")

    def _blame(self, roots: Mapping[str, Root]) -> None:
        """Note the Indexes that are not whole in the target."""
        target = self._target
        for walked in Walk(target.objects, target.packs, self._domain, roots):
            if walked.leaf is None:
                self._fail(walked.indexes, "a leaf is damaged in the source")
                continue
            places = target.packs.find(Kind.DATA, self._domain.name, walked.leaf.digests)
            if (places < 0).any():
                count = int((places < 0).sum())
                self._fail(walked.indexes, f"{count} chunks are damaged in the source")

    def _fail(self, indexes: Sequence[str], problem: str) -> None:
        for index in indexes:
            self._problems.setdefault(index, problem)
