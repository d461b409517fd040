"""The prune under fire: a Hypothesis state machine that drives a :class:`tests.campaigns.prune_world.World`.

Ingests, captures, deletions and prunes run at once, one call at a time in any order; any of them may be
killed, stand still until its lease has run out, and go on. Listings may be stale or empty, the clock jumps.
"""

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
)
from tests.campaigns.prune_world import (
    BLOCK,
    BLOCKS,
    Process,
    World,
    repeatable,
)

from calotype.disk.base import Extent
from calotype.store import Repository
from calotype.store.ledger import Lapsed, MemoryLedger

MOST = 4  # processes at once
DISKS = st.lists(st.integers(0, BLOCKS), min_size=1, max_size=2)
ANY = st.integers(0, 11)
#: How far a process goes at once: to its end, or until it stands before a call.
INGESTS = st.sampled_from(["end", "end", "end", "commit", "commit", "meet", "seal", "put", "begin"])
PRUNES = st.sampled_from(["end", "end", "end", "doom", "delete", "condemn", "ripe", "begin"])
DELETES = st.sampled_from(["end", "end", "end", "remove", "delete", "root"])
ALL = st.one_of(INGESTS, PRUNES, DELETES)
LISTINGS = st.sampled_from([*["fresh"] * 6, "stale", "stale", "empty"])


def how(far: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[int, str, str]]:
    """Which process does something, how far it goes, and what its listings show."""
    return st.tuples(ANY, far, LISTINGS)


#: What all runs did together.
TOTAL: Counter[str] = Counter()


class Prune(RuleBasedStateMachine):
    """Owed roots stay whole, whatever happens."""

    ledger: type[MemoryLedger] = MemoryLedger

    def __init__(self) -> None:
        super().__init__()
        self._chance = repeatable()
        self._chance.__enter__()
        self.world = World(self.ledger)

    # -- commands

    def _idle(self, which: int) -> Process:
        """A process that does nothing: an old one, which knows packs, or a new one."""
        idle = [p for p in self.world.processes if p.idle]
        if len(self.world.processes) < MOST and which % 3 == 0:
            return self.world.process()
        if not self.world.processes:
            return self.world.process()
        if not idle:
            process = self.world.processes[which % len(self.world.processes)]
            process.finish()
            return process
        return idle[which % len(idle)]

    def _start(
        self, name: str, job: Callable[[Repository], Any], which: int, far: str, listing: str
    ) -> None:
        process = self._idle(which)
        process.listing = listing
        process.start(name, job)
        TOTAL[f"{name} begun"] += 1
        self._go(process, far)

    @staticmethod
    def _go(process: Process, far: str) -> None:
        if far == "end":
            process.finish()
        elif far != "begin":
            process.until(far)

    @rule(blocks=DISKS, how=how(INGESTS))
    def ingest(self, blocks, how):
        self._start("ingest", self.world.ingest(blocks), *how)

    @rule(root=ANY, how=how(INGESTS))
    def ingest_again(self, root, how):
        """A disk that was there before: its chunks may be condemned, going or gone."""
        if self.world.disks:
            blocks = self.world.disks[sorted(self.world.disks)[root % len(self.world.disks)]]
            self._start("ingest", self.world.ingest(blocks), *how)

    @rule(root=ANY, position=st.integers(0, 1), block=st.integers(0, BLOCKS), how=how(INGESTS))
    def capture(self, root, position, block, how):
        if not self.world.owed:
            return
        base = sorted(self.world.owed)[root % len(self.world.owed)]
        blocks = list(self.world.disks[base])
        blocks[position % len(blocks)] = block
        changed = [Extent(position % len(blocks) * 2 * BLOCK, BLOCK, zero=not block)]
        job = self.world.ingest(blocks, base=base, changed=changed)
        self._start("capture", job, *how)

    @rule(root=ANY, how=how(DELETES))
    def delete(self, root, how):
        if self.world.owed:
            index = sorted(self.world.owed)[root % len(self.world.owed)]
            self._start("delete", lambda r: r.delete_index(index), *how)

    @rule(
        grace=st.sampled_from([0, 0, 0, 50]),
        share=st.sampled_from([0.6, 0.6, 2]),
        empty=st.sampled_from([True, True, True, False]),
        pause=st.sampled_from([0, 0, 150]),
        how=how(PRUNES),
    )
    def prune(self, grace, share, empty, pause, how):
        self.world.now += pause  # whoever stands still meanwhile loses its lease
        wait = timedelta(seconds=grace)
        self._start("prune", lambda r: r.prune(grace=wait, share=share, empty=empty), *how)

    # -- time

    def _busy(self, which: int) -> Process | None:
        busy = [p for p in self.world.processes if not p.idle]
        return busy[which % len(busy)] if busy else None

    @rule(which=ANY, steps=st.integers(1, 12))
    def step(self, which, steps):
        if process := self._busy(which):
            for _ in range(steps):
                process.step()

    @rule(which=ANY, far=ALL)
    def go(self, which, far):
        if process := self._busy(which):
            self._go(process, far)

    @rule(which=ANY, surely=st.booleans())
    def kill(self, which, surely):
        if surely and (process := self._busy(which)):
            process.kill()
            self.world.processes.remove(process)

    @rule(which=ANY)
    def renew(self, which):
        process = self._busy(which)
        if process and process.operation is not None:
            try:
                self.world.ledger.renew(process.operation, 100)
            except Lapsed:
                TOTAL["leases lost"] += 1

    @rule(seconds=st.sampled_from([60, 150, 150, 5000, -500]))
    def jump(self, seconds):
        """The clock goes on, or is wrong."""
        self.world.now += seconds

    @rule()
    def remember(self):
        """Stale listings show what there is now, from now on."""
        self.world.remembered = list(self.world.objects.list())

    @invariant()
    def owed_roots_are_whole(self):
        TOTAL["rules"] += 1
        self.world.check("at rest")

    def teardown(self):
        try:
            if not self.world.lost:
                self.world.settle()
        finally:
            for process in self.world.processes:
                process.kill()
            self._chance.__exit__(None, None, None)
            TOTAL["gates"] += self.world.gates
            TOTAL.update(self.world.events)
            TOTAL["runs"] += 1
