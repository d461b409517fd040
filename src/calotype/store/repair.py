"""Repair: what is damaged is made whole from what is left of it, and from a second store that has it.

A damaged pack is written anew, byte for byte, when its frames are all to be had. Otherwise everything in it
that is right, and what the second store has of the rest, moves to new packs; only then is it removed, and
where something in it is still missed, its bytes are kept under ``damaged/``. So no chunk is ever believed to
be there that is not: the next upload of the same bytes stores it anew.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from calotype.disk.base import Disk
from calotype.errors import InvalidInput, NotFound, StoreDamaged
from calotype.progress import Progress
from calotype.store import parameters
from calotype.store.check import ASIDE, CheckReport, Damage
from calotype.store.digest import Bytes32, Domain
from calotype.store.index import PREFIX, Leaf, Root, root_id
from calotype.store.intake import Intake, Worker
from calotype.store.lease import Lease
from calotype.store.mend import content, mend_object, mend_parameters
from calotype.store.objects import ObjectStore, ReadableStore
from calotype.store.pack import HEADER, Kind, Pack, find_footer, load, parse, trailer
from calotype.store.pack import PREFIX as PACKS
from calotype.store.packset import PackSet
from calotype.store.reader import LeafReader
from calotype.store.scan import Stretch, Walk, read_each, rotten, stretches, verified
from calotype.store.transfer import Mover, Wanted

_FOOT_READ = 64 << 20  # bytes at a pack's end in which a footer is looked for
_COPY = 4 << 20
_PIECE = 64 << 10


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairReport:
    """What a repair did; ``lost`` is what it could not repair, with the Indexes that need it."""

    restored: tuple[str, ...]  # objects that are again what they were
    replaced: tuple[str, ...]  # packs whose contents are in new packs now
    aside: tuple[str, ...]  # packs of which something is still missed; kept under damaged/
    chunks: int  # that came from the second store or from disks
    bytes_read: int  # from the second store's packs
    lost: tuple[Damage, ...]

    @property
    def ok(self) -> bool:
        """Whether every image is whole again."""
        return not self.lost

    @property
    def touched(self) -> tuple[str, ...]:
        """The Indexes that cannot be read in full."""
        return tuple(sorted({index for d in self.lost for index in d.indexes}))


@dataclass(slots=True)
class _Missing:
    """Chunks and leaves that Indexes name and no pack has."""

    count: dict[str, int] = field(default_factory=dict)  # by Index
    digests: dict[Kind, set[bytes]] = field(default_factory=lambda: {kind: set() for kind in Kind})

    def add(self, kind: Kind, digests: Sequence[bytes], indexes: Sequence[str]) -> None:
        self.digests[kind].update(digests)
        for index in indexes:
            self.count[index] = self.count.get(index, 0) + len(digests)


class Repairer:
    """One repair of one store, of what a check's report names."""

    def __init__(
        self,
        objects: ObjectStore,
        source: ReadableStore | None,
        lease: Lease,
        *,
        copies: Callable[[str], bytes | None],
        disks: Mapping[str, Disk],
        progress: Progress,
    ) -> None:
        """``copies`` knows roots' bytes; ``disks`` hold the same bytes as these Indexes."""
        self._objects = objects
        self._source = source
        self._lease = lease
        self._copies = copies
        self._disks = disks
        self._progress = progress
        self._theirs = PackSet(source) if source is not None else None
        self._packs = PackSet(objects)
        self._restored: list[str] = []
        self._lost: list[Damage] = []
        self._keyless: dict[str, list[str]] = {}  # domains without their key: their Indexes
        self._senseless: dict[str, str] = {}  # Indexes that were never right, and why
        self._chunks = self._read = 0

    def run(self, report: CheckReport) -> RepairReport:
        """Repair what the report names; what cannot be repaired is reported, not raised."""
        bad = self._in_place(report)
        domains = self._domains()
        self._packs.refresh()
        self._packs.forget(list(bad))
        if self._theirs is not None:
            self._theirs.refresh()
        roots = self._roots(domains)
        missing = _Missing()
        for domain in domains.values():
            mine = [p for p in bad.values() if p is not None and p.domain == domain.name]
            self._domain(domain, roots.get(domain.name, {}), mine, missing)
        needs = {index: f"needs {n} chunks that are lost" for index, n in missing.count.items()}
        for index, problem in sorted((self._senseless | needs).items()):
            self._lost.append(Damage(key=PREFIX + index, problem=problem, indexes=(index,)))
        replaced, aside = self._remove(bad, set(domains), missing)
        return RepairReport(
            restored=tuple(self._restored),
            replaced=tuple(replaced),
            aside=tuple(aside),
            chunks=self._chunks,
            bytes_read=self._read,
            lost=tuple(self._lost),
        )

    def _in_place(self, report: CheckReport) -> dict[str, Pack | None]:
        """Make objects what they were; the packs, with their footers, where that is not possible."""
        self._restored += mend_parameters(self._objects, self._source)
        bad: dict[str, Pack | None] = {}
        # The id of a pack that was pruned since never returns.
        there = {stored.key for stored in self._objects.list(PACKS)}
        packs = [d for d in report.damage if d.key in there]
        with self._progress.phase("rebuilding", len(packs), unit="packs") as done:
            for damage in packs:
                pack, whole = self._pack(damage.key)
                if whole:
                    self._restored.append(damage.key)
                else:
                    bad[damage.key] = pack
                done(1)
        for damage in report.damage:
            key = damage.key
            if key.startswith((PACKS, parameters.DOMAINS)) or key == parameters.CONFIG:
                continue
            if key.startswith(PREFIX) and self._is_root(key):
                continue  # its chunks are at fault
            if self._copied(key) or mend_object(self._objects, self._source, key):
                self._restored.append(key)
            else:
                self._lost.append(damage)
        return bad

    def _is_root(self, key: str) -> bool:
        data = content(self._objects, key)
        return data is not None and root_id(data) == key.removeprefix(PREFIX)

    def _copied(self, key: str) -> bool:
        """Put a root back of which somebody has a copy."""
        index = key.removeprefix(PREFIX)
        data = self._copies(index) if key.startswith(PREFIX) else None
        if data is None or root_id(data) != index:
            return False
        self._objects.put(key, data)
        return True

    def _domains(self) -> dict[str, Domain]:
        found: dict[str, Domain] = {}
        for stored in self._objects.list(parameters.DOMAINS):
            name = stored.key.removeprefix(parameters.DOMAINS)
            try:
                found[name] = parameters.domain(self._objects, name)
            except (NotFound, StoreDamaged):
                self._keyless[name] = []
            except OSError as error:
                rotten(error)
                self._keyless[name] = []
        return found

    def _roots(self, domains: Mapping[str, Domain]) -> dict[str, dict[str, Root]]:
        """The readable roots by domain, and then by Index; those without their domain are lost."""
        found: dict[str, dict[str, Root]] = {}
        for stored in self._objects.list(PREFIX):
            index = stored.key.removeprefix(PREFIX)
            data = content(self._objects, stored.key)
            if data is None or root_id(data) != index:
                continue
            try:
                root = Root.decode(data)
            except StoreDamaged as error:
                self._senseless[index] = error.message
                continue
            if root.domain in domains:
                found.setdefault(root.domain, {})[index] = root
            else:
                self._keyless.setdefault(root.domain, []).append(index)
        for name, indexes in self._keyless.items():
            problem = "the key of this dedup domain is lost"
            damage = Damage(
                key=parameters.DOMAINS + name, problem=problem, indexes=tuple(sorted(indexes))
            )
            self._lost.append(damage)
        return found

    # Packs, byte for byte

    def _pack(self, key: str) -> tuple[Pack | None, bool]:
        """A damaged pack's footer, if anybody has it, and whether the pack is whole again."""
        pack = _footer(self._objects, key)
        if pack is None and self._source is not None:
            pack = _footer(self._source, key)
        if pack is None:
            return None, False
        writer = self._objects.writer()
        try:
            writer.write([HEADER])
            for stretch in stretches(pack):
                frames = self._frames(stretch)
                if frames is None:
                    return pack, False
                writer.write(frames)
            writer.write([pack.foot, trailer(pack.foot)[1]])
            writer.commit(key)
        finally:
            writer.abort()
        return pack, True

    def _frames(self, stretch: Stretch) -> list[memoryview] | None:
        """The stored bytes of these frames from either store; None when not all are to be had."""
        found = _good(self._objects, stretch)
        absent = np.array([n for n in stretch.frames.tolist() if n not in found], dtype=np.int64)
        if self._source is not None:
            for some in stretches(stretch.pack, absent):
                found |= _good(self._source, some)
                self._read += some.size
        if len(found) < len(stretch.frames):
            return None
        return [found[n] for n in stretch.frames.tolist()]

    # Chunks, into new packs

    def _domain(
        self, domain: Domain, roots: Mapping[str, Root], bad: Sequence[Pack], lost: _Missing
    ) -> None:
        """Move what is right of the bad packs, then get what is missing; ``lost`` is what still is."""
        intake = Intake(self._objects, self._packs, domain, meet=self._lease.meet)
        try:
            own = Mover(self._objects, intake)
            with self._progress.phase("repairing", sum(p.size for p in bad)) as report:
                for kind in Kind:
                    some = [(p, np.ones(len(p.lengths), dtype=bool)) for p in bad if p.kind is kind]
                    own.move(kind, some, report)
            intake.finish()
            missing = self._missing(domain, roots)
            if self._theirs is not None and self._same(domain):
                if missing.digests[Kind.LEAF]:
                    self._fetch(intake, Kind.LEAF, missing.digests[Kind.LEAF])
                    missing = self._missing(domain, roots)
                # Somebody may be about to rely on a chunk of a bad pack that no root names yet.
                for pack in bad:
                    places = self._packs.find(pack.kind, domain.name, pack.digests)
                    missing.digests[pack.kind].update(_split(pack.digests[places < 0]))
                for kind in Kind:
                    self._fetch(intake, kind, missing.digests[kind])
            if missing.count and self._disks:
                self._from_disks(domain, roots, intake)
            intake.finish()
        finally:
            intake.abort()
        self._objects.persist(PACKS)
        if missing.count:
            missing = self._missing(domain, roots)
            for kind in Kind:
                lost.digests[kind] |= missing.digests[kind]
            lost.count |= missing.count

    def _missing(self, domain: Domain, roots: Mapping[str, Root]) -> _Missing:
        missing = _Missing()
        for walked in Walk(self._objects, self._packs, domain, roots):
            if walked.leaf is None and walked.whole:
                self._senseless.update(dict.fromkeys(walked.indexes, walked.problem))
                continue
            if walked.leaf is None:
                missing.add(Kind.LEAF, [walked.digest], walked.indexes)
                continue
            digests = walked.leaf.digests
            places = self._packs.find(Kind.DATA, domain.name, digests)
            if (places < 0).any():
                missing.add(Kind.DATA, _split(digests[places < 0]), walked.indexes)
            there = places >= 0
            for _number, pack, here, chunks in self._packs.by_pack(places[there]):
                if (pack.lengths[chunks] != walked.leaf.sizes[there][here]).any():
                    problem = "names chunks of other sizes"
                    self._senseless.update(dict.fromkeys(walked.indexes, problem))
        return missing

    def _same(self, domain: Domain) -> bool:
        """Whether the source names chunks of this domain as this store does."""
        if self._source is None:
            return False
        try:
            return parameters.domain(self._source, domain.name) == domain
        except (NotFound, StoreDamaged):
            return True  # digests are compared anyway

    def _fetch(self, intake: Intake, kind: Kind, digests: set[bytes]) -> None:
        """Get chunks from the source, where it has them."""
        if not digests or self._theirs is None or self._source is None:
            return
        wanted = Wanted(self._theirs)
        rows: Bytes32 = np.frombuffer(b"".join(sorted(digests)), dtype=np.uint8).reshape(-1, 32)
        wanted.want(kind, intake.domain.name, rows)
        mover = Mover(self._source, intake)
        with self._progress.phase("fetching", mover.size(wanted.marked(kind))) as report:
            mover.move(kind, wanted.marked(kind), report)
        intake.writers[kind].finish()
        self._chunks += mover.moved.chunks
        self._read += mover.moved.read

    def _from_disks(self, domain: Domain, roots: Mapping[str, Root], intake: Intake) -> None:
        """Read missing chunks from disks that should hold the same bytes."""
        worker = Worker(intake)
        for index in sorted(set(self._disks) & set(roots)):
            root, disk = roots[index], self._disks[index]
            leaves = LeafReader(self._objects, self._packs, domain, root, refresh=False)
            for region, digest in root.leaves.items():
                try:
                    leaf = leaves.parse(region, digest)
                except (NotFound, StoreDamaged):
                    continue
                self._from_disk(disk, region * root.region, leaf, leaves, worker)
        worker.finish()
        self._chunks += worker.counts.new_chunks

    @staticmethod
    def _from_disk(disk: Disk, base: int, leaf: Leaf, leaves: LeafReader, worker: Worker) -> None:
        absent = leaves.find(leaf) < 0
        whole = absent[leaf.chunk] & (leaf.skip == 0) & (leaf.length == leaf.sizes[leaf.chunk])
        for row in np.flatnonzero(whole).tolist():
            size = int(leaf.length[row])
            start = base + int(leaf.offset[row])
            if start + size > disk.size:
                continue
            view = memoryview(bytearray(size))
            disk.read_into(start, view)
            if worker.digests(view, [(0, size)])[0] == leaf.digests[leaf.chunk[row]].tobytes():
                worker.store(view, [0], [size])

    # What becomes of the damaged packs

    def _remove(
        self, bad: Mapping[str, Pack | None], domains: set[str], missing: _Missing
    ) -> tuple[list[str], list[str]]:
        """Take the damaged packs away: removed, or set aside where something of them is missed."""
        replaced: list[str] = []
        aside: list[str] = []
        self._lease.hold()  # else a prune may count on what is removed here
        for key, pack in bad.items():
            if pack is not None and pack.domain not in domains:
                continue  # without the domain's key nothing of it could be moved
            if not self._missed(pack, missing):
                self._objects.delete(key)
                replaced.append(key)
                continue
            self._objects.put(ASIDE + key.removeprefix(PACKS), _bytes_of(self._objects, key))
            self._objects.delete(key)
            aside.append(key)
        self._packs.forget([*replaced, *aside])
        if not self._lost:  # what was set aside before is not missed any more
            for stored in list(self._objects.list(ASIDE)):
                self._objects.delete(stored.key)
        return replaced, aside

    def _missed(self, pack: Pack | None, missing: _Missing) -> bool:
        """Whether a damaged pack may hold the last of something that an Index needs."""
        if pack is None:
            return bool(self._lost)
        gone = self._packs.find(pack.kind, pack.domain, pack.digests) < 0
        if any(d.key.startswith(PREFIX) and not self._is_root(d.key) for d in self._lost):
            return bool(gone.any())  # nobody knows what a lost root needs
        return not missing.digests[pack.kind].isdisjoint(_split(pack.digests[gone]))


def _split(digests: Bytes32) -> list[bytes]:
    return [digest.tobytes() for digest in digests]


def _footer(objects: ReadableStore, key: str) -> Pack | None:
    """A pack's footer, also where the trailer that leads to it is damaged."""
    try:
        size = objects.size(key)
        with suppress(StoreDamaged):
            return load(objects, key, size)
        length = min(size, _FOOT_READ)
        end = objects.get_range(key, size - length, length)
        foot = find_footer(end, key.removeprefix(PACKS))
        return parse(foot, key.removeprefix(PACKS), size) if foot else None
    except (NotFound, StoreDamaged, InvalidInput):
        return None
    except OSError as error:
        rotten(error)
        return None


def _good(objects: ReadableStore, stretch: Stretch) -> dict[int, memoryview]:
    """The stored bytes of those frames that match their checksums."""
    found: dict[int, memoryview] = {}
    with suppress(NotFound):
        for number, stored in read_each(objects, stretch):
            with suppress(StoreDamaged):
                if stored is not None:
                    verified(stretch.pack, number, stored, None)
                    found[number] = stored
    return found


def _bytes_of(objects: ReadableStore, key: str) -> Iterator[bytes]:
    """An object's bytes; zeros where they cannot be read."""
    size = objects.size(key)
    for start in range(0, size, _COPY):
        length = min(_COPY, size - start)
        try:
            yield objects.get_range(key, start, length)
        except OSError as error:
            rotten(error)
            for at in range(start, start + length, _PIECE):
                yield _piece(objects, key, at, min(_PIECE, start + length - at))


def _piece(objects: ReadableStore, key: str, start: int, length: int) -> bytes:
    try:
        return objects.get_range(key, start, length)
    except OSError as error:
        rotten(error)
        return bytes(length)
