"""Prune: remove what no live Index needs, beside ingests that go on.

Mark what live roots need; move what is needed out of packs that are mostly dead; condemn the packs that
nobody needs. Those condemned long enough ago, and by now older than every operation, are held against the
roots once more and then deleted. Each step is safe to be the last one: the next prune goes on.
The rules that make this safe are told in :mod:`calotype.store.ledger`.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from calotype.errors import Conflict, InvalidInput, NotFound, StoreDamaged
from calotype.progress import Progress
from calotype.store.digest import Domain
from calotype.store.index import Root, root_id
from calotype.store.lease import SECONDS, leased
from calotype.store.ledger import Lapsed, Ledger, PackState
from calotype.store.mark import Bits, Marks, taken
from calotype.store.objects import ObjectStore
from calotype.store.pack import PREFIX as PACKS
from calotype.store.pack import Pack, load
from calotype.store.profile import PREFIX as PROFILES
from calotype.store.repack import BEST_LEVEL, SHARE, Repacker, candidates
from calotype.store.roots import Roots

log = logging.getLogger("calotype.store")

GRACE = timedelta(hours=1)
_AT_ONCE = 32  # packs whose deletion is recorded together


@dataclass(kw_only=True, slots=True)
class PruneReport:
    """What a prune did, or would do; sizes in bytes."""

    dry_run: bool = False
    indexes: int = 0  # live roots
    packs: int = 0  # before
    stored: int = 0  # of these packs
    needed: int = 0  # of that, what live roots need
    repacked: int = 0  # packs whose needed chunks moved (or would)
    moved: int = 0  # what these chunks took in new packs
    condemned: int = 0  # packs that nobody needs, new ones
    reprieved: int = 0  # packs that are needed again
    waiting: int = 0  # condemned packs that may not be deleted yet
    waiting_bytes: int = 0
    deleted: int = 0  # packs
    freed: int = 0  # of these packs
    restored: tuple[str, ...] = ()  # live roots whose objects were put back
    unreadable: tuple[str, ...] = ()  # what was left alone because it is damaged
    swept: tuple[str, ...] = ()  # leftovers that were removed


@dataclass(kw_only=True, slots=True)
class Policy:
    """How a prune goes about it."""

    grace: timedelta = GRACE
    share: float = SHARE
    level: int | None = None
    empty: bool = False
    lease: float = SECONDS

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            InvalidInput: a value is out of range.
        """
        if self.grace < timedelta(0):
            raise InvalidInput("the grace cannot be negative")
        if not 0 <= self.share <= 2:
            raise InvalidInput("the share of a pack is between 0 and 1", hint="2 means every pack")
        if self.level is not None and not 1 <= self.level <= BEST_LEVEL:
            raise InvalidInput(f"zstd has no level {self.level}", hint=f"1 to {BEST_LEVEL}")


@dataclass(slots=True)
class Pruner:
    """One prune of one store. ``forget`` is told which packs are about to go."""

    objects: ObjectStore
    ledger: Ledger
    roots: Roots
    domain: Callable[[str], Domain]
    forget: Callable[[Collection[str]], None]
    policy: Policy
    progress: Progress
    report: PruneReport = field(default_factory=PruneReport)
    _marks: Marks = field(init=False)
    _marked: set[str] = field(default_factory=set)  # roots
    _packs: dict[str, Pack] = field(default_factory=dict)  # those that may be relied on
    _sizes: dict[str, int] = field(default_factory=dict)  # of all listed packs
    _bad: dict[str, str] = field(default_factory=dict)  # packs without a usable footer
    _damaged: list[str] = field(default_factory=list)  # frames that could not be moved
    _made: set[str] = field(default_factory=set)  # packs that this prune wrote
    _operation: int = 0

    def __post_init__(self) -> None:
        self._marks = Marks(self.objects, self.domain)

    def run(self) -> PruneReport:
        """Prune.

        Raises:
            Conflict: another prune is at work, or the roots are not whole, or there are none.
            InvalidInput: the policy makes no sense.
        """
        self.policy.check()
        self.roots.bind()
        try:
            with leased(self.ledger, prune=True, seconds=self.policy.lease) as lease:
                self._operation = lease.operation
                self._delete([k for k, s in self.ledger.packs().items() if s is PackState.DELETING])
                self._look()
                kept = self._repack(self._kept())
                self._judge(kept)
                self._remove_ripe()
        except Lapsed:
            raise Conflict(
                "this prune stood still for so long that another one took its place",
                hint="run it again",
            ) from None
        self._sweep()
        return self.report

    def rehearse(self) -> PruneReport:
        """What :meth:`run` would do next; nothing is changed.

        Raises:
            Conflict: the roots are not whole, or there are none.
            InvalidInput: the policy makes no sense.
        """
        self.policy.check()
        self.report.dry_run = True
        self._look()
        kept = self._kept()
        moving = candidates(self._unjudged(), kept, self.policy.share, self.policy.level)
        self.report.repacked = len(moving)
        self.report.moved = sum(taken(p, kept[p.key]) for p in moving)
        dead = {key for key, bits in kept.items() if not bits.any()} | {p.key for p in moving}
        self._count(dead)
        self.report.condemned = len(dead - self._condemned())
        self.report.unreadable = tuple(sorted(self._bad.values()))
        return self.report

    # -- what is there, and what of it is needed

    def _look(self) -> None:
        """Mark what the live roots need that were not marked before, and learn the packs.

        Raises:
            Conflict: a root is not whole, or there is no root at all.
        """
        # Roots before packs: then what they need is among the packs.
        fresh = self._live_roots()
        before = set(self._packs)
        self._load()
        if before != set(self._packs):
            self._marks.learn(self._packs.values())
        with self.progress.phase("marking", len(fresh), unit="images") as report:
            for index, root in fresh.items():
                try:
                    self._marks.mark(index, root)
                except Conflict:
                    if (
                        not self.report.dry_run
                    ):  # is it that another prune went on without this one?
                        self.ledger.renew(self._operation, self.policy.lease)
                    raise
                report(1)
        self._marked.update(fresh)
        self.report.indexes = len(self._marked)

    def _live_roots(self) -> dict[str, Root]:
        """The live roots that are not marked yet: of the ledger, and of the listing."""
        known = self.ledger.roots()
        listed = set(self.roots.listed())
        if not self.report.dry_run:
            for index in sorted(i for i in listed if not known.get(i, True)):
                self.roots.drop(index)  # whoever removed it was killed before its object went
            missing = sorted(i for i, live in known.items() if live and i not in listed)
            restored = [index for index in missing if self.roots.restore(index)]
            self.report.restored += tuple(restored)
        live = {i for i in known if known[i]} | {i for i in listed if i not in known}
        if not live and not self._marked and not self.policy.empty:
            self._refuse_to_empty()
        found = {}
        for index in sorted(live - self._marked):
            if (root := self._root(index, known=index in known)) is not None:
                found[index] = root
        return found

    def _root(self, index: str, *, known: bool) -> Root | None:
        try:
            adopt = known or not self.report.dry_run
            data = self.roots.expect(index) if adopt else self.roots.get(index)
            if root_id(data) != index:
                raise StoreDamaged("it does not match its id")  # noqa: TRY301 - one way to report
            return Root.decode(data)
        except NotFound:
            return None  # deleted meanwhile
        except StoreDamaged as error:
            raise Conflict(
                f"nothing is pruned while Index {index} is not readable: {error.message}",
                hint="run `calotype store check`; repair the store, or delete that image",
            ) from error

    def _refuse_to_empty(self) -> None:
        if next(iter(self.objects.list(PACKS)), None) is not None:
            raise Conflict(
                "neither the ledger nor the store shows any image, but there are packs",
                hint="if really every image was deleted, say so (--empty); else adopt the store, "
                "or look why its listing is empty",
            )

    def _load(self) -> None:
        """Learn the packs that may be relied on: those listed, but not those that are being deleted."""
        gone = {k for k, s in self.ledger.packs().items() if s is not PackState.CONDEMNED}
        for stored in self.objects.list(PACKS):
            self._sizes[stored.key] = stored.size
            if stored.key in gone or stored.key in self._packs or stored.key in self._bad:
                continue
            try:
                self._packs[stored.key] = load(self.objects, stored.key, stored.size)
            except NotFound:
                continue  # a listing may be stale
            except (StoreDamaged, InvalidInput) as error:
                self._bad[stored.key] = error.message
        for key in gone & self._packs.keys():
            del self._packs[key]

    def _condemned(self) -> set[str]:
        return {k for k, s in self.ledger.packs().items() if s is PackState.CONDEMNED}

    def _unjudged(self) -> list[Pack]:
        condemned = self._condemned()
        return [p for p in self._packs.values() if p.key not in condemned]

    def _kept(self) -> Mapping[str, Bits]:
        """What each pack must keep. Condemned packs only what nobody else has; then the fuller one keeps."""
        condemned = self._condemned()

        def rank(pack: Pack, share: float) -> tuple[object, ...]:
            made = pack.key in self._made
            full = -round(share, 3)
            return pack.key in condemned, not made, full, -pack.level, -pack.size, pack.key

        kept = self._marks.kept(rank)
        if not self.report.packs:
            self.report.packs = len(self._packs)
            self.report.stored = sum(p.size for p in self._packs.values())
            self.report.needed = sum(taken(p, kept[p.key]) for p in self._packs.values())
        return kept

    # -- what is done about it

    def _repack(self, kept: Mapping[str, Bits]) -> Mapping[str, Bits]:
        """Move what is needed out of packs that are mostly dead; what each pack must keep then."""
        moving = candidates(self._unjudged(), kept, self.policy.share, self.policy.level)
        if not moving:
            return kept
        repacker = Repacker(self.objects, self.domain, self.policy.level)
        with self.progress.phase("repacking", sum(p.size for p in moving)) as report:
            repacker.run(moving, kept, report)
        self.report.repacked = len(moving)
        self.report.moved = repacker.written
        self._damaged = repacker.damaged
        self._made = {p.key for p in repacker.made}
        self._packs.update((p.key, p) for p in repacker.made)
        self._marks.learn(self._packs.values())
        return self._kept()

    def _judge(self, kept: Mapping[str, Bits]) -> None:
        """Condemn the packs that nobody needs, and reprieve those that somebody needs again."""
        condemned = self._condemned()
        needed = {key for key, bits in kept.items() if bits.any()}
        self._reprieve(needed & condemned)
        dead = kept.keys() - needed - condemned
        if dead:
            self.ledger.condemn(self._operation, sorted(dead))
        self.report.condemned = len(dead)

    def _reprieve(self, packs: Collection[str]) -> None:
        if packs:
            self.ledger.reprieve(self._operation, sorted(packs))
            self.report.reprieved += len(packs)

    def _remove_ripe(self) -> None:
        """Delete condemned packs that nobody can be about to rely on, and that no root needs."""
        ripe = self.ledger.ripe(self.policy.grace.total_seconds())
        if ripe:
            # Every operation that may have found a ripe pack before its condemnation has ended by now, so
            # its root is among those that are looked at here.
            self._look()
            kept = self._kept()
            needed = {key for key, bits in kept.items() if bits.any()}
            self._reprieve(needed & ripe.keys())
            # What was only found here must be as durable as what is deleted in favour of it.
            self.objects.persist(PACKS)
            doomed = self.ledger.doom(
                self._operation, {key: ripe[key] for key in ripe.keys() - needed}
            )
            self._delete(sorted(doomed))
        self._count(self._condemned())

    def _sweep(self) -> None:
        """Remove unfinished objects, and boot profiles whose Index is gone."""
        live = set(self.roots.all())
        for stored in list(self.objects.list(PROFILES)):
            if stored.key.removeprefix(PROFILES) not in live:
                self.objects.delete(stored.key)
        self.report.swept = tuple(self.objects.sweep())
        self.report.unreadable = (*sorted(self._bad.values()), *self._damaged)

    def _count(self, waiting: Collection[str]) -> None:
        self.report.waiting = len(waiting)
        self.report.waiting_bytes = sum(self._sizes.get(key, 0) for key in waiting)

    def _delete(self, doomed: Sequence[str]) -> None:
        """Delete packs that are marked as being deleted."""
        self.forget(doomed)
        with self.progress.phase("deleting", len(doomed), unit="packs") as report:
            for first in range(0, len(doomed), _AT_ONCE):
                some = doomed[first : first + _AT_ONCE]
                for key in some:
                    self.report.freed += self._size(key)
                    self.objects.delete(key)
                    report(1)
                self.ledger.deleted(some)
        self.report.deleted += len(doomed)

    def _size(self, key: str) -> int:
        if key not in self._sizes:
            try:
                return self.objects.size(key)
            except NotFound:
                return 0
        return self._sizes[key]
