"""The repository: disks in, Indexes out, and back."""

import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Self

from calotype.disk.base import Disk, Extent
from calotype.errors import CalotypeError, Conflict, NotFound, StoreDamaged
from calotype.progress import SILENT, Progress
from calotype.store import parameters, profile
from calotype.store.cache import uncached
from calotype.store.check import Checker, CheckReport
from calotype.store.chunking import Chunking
from calotype.store.compare import DiskRows
from calotype.store.digest import Domain
from calotype.store.directory import DirectoryStore
from calotype.store.index import PREFIX, Root
from calotype.store.ingest import Ingested
from calotype.store.intake import Intake
from calotype.store.lease import SECONDS, Lease, leased
from calotype.store.ledger import Lapsed, Ledger
from calotype.store.materialize import materialize
from calotype.store.mend import mend_parameters
from calotype.store.objects import ObjectStore, ReadableStore
from calotype.store.pack import PREFIX as PACKS
from calotype.store.packset import PackSet
from calotype.store.partial import PartialBase
from calotype.store.prune import GRACE, Policy, Pruner, PruneReport
from calotype.store.reader import FrameReader, IndexDisk, LeafReader
from calotype.store.repack import SHARE
from calotype.store.repair import Repairer, RepairReport
from calotype.store.roots import Roots, key_of
from calotype.store.stats import Counter, StoreStats
from calotype.store.taking import Base, Taking
from calotype.store.verified import Verified
from calotype.store.workers import MOST

log = logging.getLogger("calotype.store")

_TRIES = 3  # of an ingest whose lease runs out
_FAR = 4  # threads that read from a store on a server, however few cores there are
_PARTIAL_CACHE = 8 << 20  # bytes of frames; what a partial base fetched is in its file


class Repository:
    """Disk images, deduplicated, in one object store. Safe for several threads and processes."""

    #: Seconds for which an operation outlives a process that is killed or stands still.
    lease: float = SECONDS

    def __init__(
        self, objects: ObjectStore, ledger: Ledger | None = None, *, lookup: Path | None = None
    ) -> None:
        """Open the repository in ``objects``.

        With ``ledger``, images may be deleted and the store pruned while others are taken in. Once a store
        was changed with a ledger, it can only be changed with that one; without any it can be read.

        With ``lookup``, a directory for this repository alone, opening is fast and memory is bounded however
        large the store is; it is a cache, and may be removed when no process uses it.

        Raises:
            NotFound: there is none.
            InvalidInput: it was written by a newer version.
            StoreDamaged: its config is damaged.
        """
        # Only images are read through a cache: all else wants to know what the store holds now.
        self._reading = objects
        self._objects = objects = uncached(objects)
        self._config = parameters.read(objects)
        far = not isinstance(objects, DirectoryStore)
        # Who reads from afar waits more than it works.
        self._threads = max(_FAR, min(os.cpu_count() or 1, MOST)) if far else None
        self._packs = PackSet(objects, lookup, keep_footers=far)
        self._ledger = ledger
        self._roots = Roots(objects, ledger, self._config.id)
        self._lock = threading.Lock()
        self._domains: dict[str, Domain] = {}
        self._readers: dict[str, FrameReader] = {}

    @classmethod
    def create(
        cls,
        objects: ObjectStore,
        ledger: Ledger | None = None,
        *,
        chunking: Chunking | None = None,
        domain: Domain | None = None,
        lookup: Path | None = None,
    ) -> Self:
        """Make a repository in ``objects``, or open the one that is there, as it is.

        A new one has the domain ``default``, or this one instead.
        """
        parameters.create(objects, chunking or Chunking(), domain)
        return cls(objects, ledger, lookup=lookup)

    @classmethod
    def open_or_create(
        cls, objects: ObjectStore, ledger: Ledger | None = None, *, lookup: Path | None = None
    ) -> Self:
        """Open the repository in ``objects``; make it when there is none."""
        try:
            return cls(objects, ledger, lookup=lookup)
        except NotFound:
            return cls.create(objects, ledger, lookup=lookup)

    @property
    def id(self) -> str:
        """The repository's own UUID."""
        return self._config.id

    def add_domain(self, name: str) -> None:
        """Make a dedup domain with a key of its own; harmless when it is there."""
        parameters.add_domain(self._objects, name)

    def keep_domain(self, domain: Domain) -> None:
        """Make a dedup domain whose key is given.

        Raises:
            Conflict: there is one of that name with another key.
        """
        parameters.keep_domain(self._objects, domain)
        if self._domain(domain.name) != domain:
            raise Conflict(
                f"the store has a dedup domain '{domain.name}' with another key",
                hint="run `calotype store check`",
            )

    def ingest(
        self,
        disk: Disk,
        *,
        base: str | None = None,
        changed: Iterable[Extent] | None = None,
        domain: str | None = None,
        progress: Progress = SILENT,
    ) -> Ingested:
        """Take a disk in; when this returns, its Index survives a power cut.

        Without ``domain`` it is the base's, or ``default``.

        With ``changed`` only those bytes are read (in whole 4 KiB blocks, and not those that are said to
        be zero): everything else is as in ``base``, or zero without one. The disk may be larger than the
        base's.

        Raises:
            InvalidInput: ``changed`` or the size do not fit, or ``base`` is of another domain.
            NotFound: there is no Index ``base``.
            Conflict: the store belongs to another installation, or this process stands still too often.
        """
        self._roots.bind()
        extents = None if changed is None else list(changed)
        if domain is None:
            domain = "default" if base is None else self._root(base).domain
        for _ in range(_TRIES):
            try:
                with leased(self._ledger, seconds=self.lease) as lease:
                    return self._ingest(
                        disk,
                        base=base,
                        changed=extents,
                        domain=domain,
                        lease=lease,
                        progress=progress,
                    )
            except Lapsed:
                log.warning("the lease of an ingest ran out; it begins again")
        raise Conflict(
            f"the lease of this ingest ran out {_TRIES} times while it worked",
            hint="this machine stands still for minutes, or its clock jumps: look why",
        )

    def _ingest(
        self,
        disk: Disk,
        *,
        base: str | None,
        changed: Sequence[Extent] | None,
        domain: str,
        lease: Lease,
        progress: Progress,
    ) -> Ingested:
        self._packs.refresh()
        scope = self._domain(domain)
        intake = Intake(self._objects, self._packs, scope, meet=lease.meet)
        try:
            taking = Taking(disk, self._config.chunking, intake, progress)
            if changed is None:
                leaves, counts = taking.whole()
            else:
                leaves, counts = taking.changes(changed, self._base(base))
            root = Root(domain, disk.size, self._config.chunking.region, leaves).encode()
            intake.finish()
        except (KeyboardInterrupt, SystemExit):
            intake.keep()  # who stops an upload may go on with it later
            raise
        finally:
            intake.abort()
        # What this ingest found rather than wrote must be as durable as the root that relies on it.
        self._objects.persist("packs/")
        return Ingested(
            index=self._roots.commit(lease, root),
            size=disk.size,
            bytes_read=counts.bytes_read,
            chunks=counts.chunks,
            new_chunks=counts.new_chunks,
            new_bytes=counts.new_bytes,
            stored_bytes=intake.stored_bytes,
        )

    def _base(self, index: str | None) -> Base | None:
        if index is None:
            return None
        root = Root.decode(self._roots.expect(index))
        return Base(root, self._leaf_reader(root))

    def open(self, index: str) -> IndexDisk:
        """The disk that an Index describes.

        Raises:
            NotFound: there is no such Index.
            StoreDamaged: its root is damaged.
        """
        root = self._root(index)
        return IndexDisk(root, self._leaf_reader(root), self._frames(root.domain))

    def materialize(self, index: str, path: Path, *, progress: Progress = SILENT) -> None:
        """Write the disk as a sparse raw file (mode 0600): whole and durable, or not at all.

        Raises:
            NotFound: there is no such Index.
            StoreDamaged: something that it needs is damaged.
        """
        root = self._root(index)
        disk = IndexDisk(root, self._leaf_reader(root), self._frames(root.domain))
        total = sum(end - start for start, end in map(disk.span, disk.regions))
        with progress.phase("writing", total) as report, _serial(report) as counted:
            materialize(disk, path, index, counted, threads=self._threads)

    def size(self, index: str) -> int:
        """The size of an Index's disk in bytes.

        Raises:
            NotFound: there is no such Index.
            StoreDamaged: its root is damaged.
        """
        return self._root(index).size

    def partial(self, index: str, directory: Path) -> PartialBase:
        """The base of an Index that is filled as it is read, in ``directory``; the caller closes it.

        Raises:
            NotFound: there is no such Index.
            StoreDamaged: its root is damaged.
        """
        root = self._root(index)
        domain = self._domain(root.domain)
        frames = FrameReader(self._reading, self._packs, domain, cache=_PARTIAL_CACHE)
        return PartialBase(root, self._leaf_reader(root), frames, domain, directory)

    def rows(self, index: str) -> DiskRows:
        """Which piece of which chunk each byte of an Index's disk is (see :mod:`calotype.store.compare`).

        Raises:
            NotFound: there is no such Index.
            StoreDamaged: its root or a leaf is damaged.
        """
        root = self._root(index)
        return DiskRows(self._leaf_reader(root), root)

    def holds_more(self, index: str, limit: int) -> bool:
        """Whether an Index holds more than ``limit`` bytes of data.

        Raises:
            NotFound: there is no such Index.
            StoreDamaged: its root or a leaf is damaged.
        """
        root = self._root(index)
        leaves = self._leaf_reader(root)
        held = 0
        for region in root.leaves:
            leaf = leaves.leaf(region)
            held += int(leaf.length.sum()) if leaf is not None else 0
            if held > limit:
                return True
        return False

    def boot_profile(self, index: str) -> Sequence[Extent]:
        """What a boot of this Index read, in order; empty when none was kept, or it is damaged."""
        try:
            key = profile.PREFIX + index
            if self._objects.size(key) > profile.MAX_ENCODED:
                return ()
            return profile.decode(self._objects.get(key), self._root(index).size)
        except (NotFound, StoreDamaged):
            return ()

    def keep_boot_profile(self, index: str, extents: Sequence[Extent]) -> None:
        """Keep what a boot read, unless the store has a profile of this Index already."""
        key = profile.PREFIX + key_of(index).removeprefix(PREFIX)
        self._objects.put(key, profile.encode(extents), if_absent=True)

    def indexes(self) -> Sequence[str]:
        """The ids of all Indexes."""
        return self._roots.all()

    def delete_index(self, index: str) -> None:
        """Forget an Index; its chunks stay until they are pruned. Harmless when it is gone.

        Raises:
            Conflict: the store belongs to another installation.
        """
        self._roots.bind()
        self._roots.remove(index)
        self._objects.delete(profile.PREFIX + index)

    def adopt(self) -> Sequence[str]:
        """Make this repository's ledger that of the store, when the one that was is lost.

        No other installation may use the store any more: its commands could not be waited for.

        Returns:
            The ids of the Indexes that are there.

        Raises:
            Conflict: there is no ledger, or it is another store's.
        """
        return self._roots.adopt()

    def prune(
        self,
        *,
        grace: timedelta = GRACE,
        share: float = SHARE,
        level: int | None = None,
        empty: bool = False,
        dry_run: bool = False,
        progress: Progress = SILENT,
    ) -> PruneReport:
        """Remove what no Index needs; safe beside everything else, and when it is killed anywhere.

        Packs are deleted when nobody has needed them for ``grace``, and never while an operation runs that
        began before that was seen: usually by the next prune. Packs of which less than ``share`` is needed
        are repacked first; with ``level`` also those that were compressed at a lower level of zstd. With
        ``dry_run`` nothing is changed. A store without any Index is only emptied with ``empty``.

        Raises:
            Conflict: there is no ledger, another prune is at work, or an Index is not whole.
            InvalidInput: an argument is out of range.
        """
        if self._ledger is None:
            raise Conflict(
                "a store is pruned only with the ledger that knows what is live in it",
                hint="use it through the installation whose catalogue knows its images",
            )
        policy = Policy(grace=grace, share=share, level=level, empty=empty, lease=self.lease)
        pruner = Pruner(
            self._objects,
            self._ledger,
            self._roots,
            self._domain,
            self._packs.forget,
            policy,
            progress,
        )
        return pruner.rehearse() if dry_run else pruner.run()

    def stats(self, indexes: Iterable[str]) -> StoreStats:
        """What these Indexes take and share; name one twice when two images use it.

        Raises:
            NotFound: there is no such Index.
            StoreDamaged: something that is needed to count is damaged.
        """
        roots = [(index, self._root(index)) for index in indexes]
        going = self._ledger.packs() if self._ledger is not None else {}
        condemned = {s.key: s.size for s in self._objects.list(PACKS) if s.key in going}
        for _ in range(_TRIES):
            self._packs.refresh()
            with suppress(NotFound):  # a pack was pruned while it was read
                return Counter(self._objects, self._packs).total(roots, self._domain, condemned)
        raise Conflict("packs vanish as they are counted", hint="wait until prune has ended")

    def check(
        self,
        *,
        read_data: bool = True,
        sample: float | None = None,
        limit: float | None = None,
        memory: Verified | None = None,
        resume: bool = False,
        progress: Progress = SILENT,
    ) -> CheckReport:
        """Compare every byte with its checksum, and find everything that the Indexes name.

        Roots, leaves and the packs' footers are read each time; without ``read_data`` nothing else. Of the
        packs' frames, ``sample`` reads that share and ``limit`` those that can be read in so many seconds:
        the ones first that were verified longest ago according to ``memory``. With ``resume``, a full check
        that was interrupted in the last week is continued. Damage is reported, never raised.

        Raises:
            InvalidInput: the sample or the limit is out of range.
        """
        with suppress(
            CalotypeError, OSError
        ):  # a store that cannot be written to is checked as it is
            self._roots.complete()
        checker = Checker(
            self._objects,
            progress,
            read_data=read_data,
            sample=sample,
            limit=limit,
            memory=memory,
            resume=resume,
            expected=self._roots.all,
        )
        return checker.run(self._objects.leftovers())

    def repair(
        self,
        source: "Repository | ReadableStore | None" = None,
        *,
        report: CheckReport | None = None,
        disks: Mapping[str, Disk] | None = None,
        progress: Progress = SILENT,
    ) -> RepairReport:
        """Make whole what ``report`` (or, without one, a full check) names as damaged.

        What is damaged comes from the ``source``, a store that holds the same packs or the same chunks, and
        from ``disks`` that hold the same bytes as these Indexes; without any, what is left of damaged packs
        is saved, and they are taken out of use, so that the next upload of the same bytes stores them anew.
        What cannot be repaired is reported, not raised.

        Raises:
            Conflict: a prune is at work, or the store belongs to another installation.
        """
        if report is None:
            report = self.check(progress=progress)
        if isinstance(source, Repository):
            source = source.objects
        mend_parameters(self._objects, source)
        self._roots.bind()
        try:
            with leased(self._ledger, prune=True, seconds=self.lease) as lease:
                repairer = Repairer(
                    self._objects,
                    source,
                    lease,
                    copies=self._roots.copy,
                    disks=disks or {},
                    progress=progress,
                )
                done = repairer.run(report)
        except Lapsed:
            raise Conflict(
                "this repair stood still for so long that a prune took its place",
                hint="run it again",
            ) from None
        self._packs.forget([*done.replaced, *done.aside])
        return done

    # What copies between repositories need

    @classmethod
    def replica(
        cls,
        source: "Repository",
        objects: ObjectStore,
        ledger: Ledger | None = None,
        *,
        lookup: Path | None = None,
    ) -> Self:
        """Make a repository in ``objects`` that names chunks as ``source`` does, or open the one there.

        It gets the keys of the source's domains, so that copies move chunks and keep the ids of Indexes.
        """
        try:
            return cls(objects, ledger, lookup=lookup)
        except NotFound:
            for stored in source.objects.list(parameters.DOMAINS):
                parameters.copy_domain(
                    source.objects, objects, stored.key.removeprefix(parameters.DOMAINS)
                )
            return cls.create(objects, ledger, chunking=source.chunking, lookup=lookup)

    @property
    def objects(self) -> ObjectStore:
        """The store that holds it."""
        return self._objects

    @property
    def packs(self) -> PackSet:
        """The packs that this process knows."""
        return self._packs

    @property
    def chunking(self) -> Chunking:
        """How its disks are cut."""
        return self._config.chunking

    def domain(self, name: str) -> Domain:
        """A dedup domain with its key.

        Raises:
            NotFound: there is none of that name.
            StoreDamaged: its object is damaged.
        """
        return self._domain(name)

    def root(self, index: str) -> Root:
        """The root of an Index.

        Raises:
            NotFound: there is no such Index.
            StoreDamaged: its object is damaged.
        """
        return self._root(index)

    @contextmanager
    def steady(self) -> Iterator[None]:
        """While this is open no pack that is there is deleted, if there is a ledger."""
        with leased(self._ledger, seconds=self.lease):
            yield

    @contextmanager
    def receive(self, domain: str) -> Iterator[Intake]:
        """A way into the packs, under a lease; what was not finished is dropped at the end.

        Raises:
            Conflict: the store belongs to another installation.
        """
        self._roots.bind()
        with leased(self._ledger, seconds=self.lease) as lease:
            self._packs.refresh()
            intake = Intake(self._objects, self._packs, self._domain(domain), meet=lease.meet)
            try:
                yield intake
            finally:
                intake.abort()

    def accept(self, root: Root, packs: Collection[str]) -> bool:
        """Make a root live whose leaves and chunks are in these packs; False when one of them is going."""
        self._objects.persist(PACKS)
        try:
            with leased(self._ledger, seconds=self.lease) as lease:
                if lease.meet(packs):
                    return False
                self._roots.commit(lease, root.encode())
        except Lapsed:
            return False
        return True

    def sweep(self) -> Sequence[str]:
        """Remove what killed commands left unfinished, and return its names."""
        return self._objects.sweep()

    def close(self) -> None:
        """Release the store."""
        self._objects.close()

    def _root(self, index: str) -> Root:
        return Root.decode(self._roots.get(index))

    def _leaf_reader(self, root: Root) -> LeafReader:
        return LeafReader(self._reading, self._packs, self._domain(root.domain), root)

    def _frames(self, name: str) -> FrameReader:
        domain = self._domain(name)
        with self._lock:
            if name not in self._readers:
                self._readers[name] = FrameReader(self._reading, self._packs, domain)
            return self._readers[name]

    def _domain(self, name: str) -> Domain:
        with self._lock:
            if name not in self._domains:
                self._domains[name] = parameters.domain(self._objects, name)
            return self._domains[name]


@contextmanager
def _serial(report: Callable[[int], None]) -> Iterator[Callable[[int], None]]:
    """``report`` for several threads."""
    lock = threading.Lock()

    def counted(done: int) -> None:
        with lock:
            report(done)

    yield counted
