"""Every state of a small model of the prune: one chunk, some ingests, deletions and prunes, all orders.

The state machine over the real code tries what chance brings; this model of its steps tries everything, for
one chunk. Steps of the ledger are atomic, and so are those of the store; a process may stop between any two,
for ever.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

NONE, CONDEMNED, DELETING, DELETED = range(4)


class Pack(NamedTuple):
    """A pack with the chunk: is its object there, and what does the ledger say."""

    there: bool
    state: int = NONE
    number: int = 0


class Ingest(NamedTuple):
    """``pack`` is what it relies on (-1: nothing yet); ``alive``: the ledger has its operation."""

    at: str = "new"
    number: int = 0
    alive: bool = False
    late: bool = False  # its lease is over
    pack: int = -1


class Prune(NamedTuple):
    """``found`` is whether a root was live when it looked; ``ripe`` are packs with their condemnations."""

    at: str = "idle"
    left: int = 0
    found: bool = False
    ripe: tuple[tuple[int, int], ...] = ()
    doomed: tuple[int, ...] = ()


class State(NamedTuple):
    """All there is. ``roots`` are live roots that need the chunk."""

    packs: tuple[Pack, ...]
    ingests: tuple[Ingest, ...]
    prune: Prune
    live: bool = False
    number: int = 0


class Model:
    """The steps; ``without`` leaves one of the four rules out."""

    def __init__(self, without: int = 0, packs: int = 3) -> None:
        self.without = without
        self.most = packs

    def steps(self, s: State) -> Iterator[State]:
        for n, ingest in enumerate(s.ingests):
            for t, after in self.ingest(s, ingest):
                yield t._replace(ingests=(*t.ingests[:n], after, *t.ingests[n + 1 :]))
        yield from self.prune(s, s.prune)
        if s.live:
            yield s._replace(live=False)  # the image is deleted

    def ingest(self, s: State, i: Ingest) -> Iterator[tuple[State, Ingest]]:
        if i.alive and not i.late:
            yield s, i._replace(late=True)
        if i.at == "new":
            begun = Ingest(at="look", number=s.number + 1, alive=True)
            yield s._replace(number=s.number + 1), begun
        elif i.at == "look":
            for number in range(len(s.packs)):  # what it remembers may be long gone
                yield s, i._replace(at="meet", pack=number)
            if len(s.packs) < self.most:
                t = s._replace(packs=(*s.packs, Pack(there=True)))
                yield t, i._replace(at="commit", pack=len(s.packs))
        elif i.at == "meet":
            yield self.met(s, i)
        elif i.at == "commit":
            yield s._replace(live=s.live or i.alive or self.without == 4), Ingest(at="done")

    def met(self, s: State, i: Ingest) -> tuple[State, Ingest]:
        """Rules 1 and 3."""
        pack = s.packs[i.pack]
        if pack.state >= DELETING:
            return s, i._replace(at="look", pack=-1)
        if pack.state == CONDEMNED and self.without != 1:
            s = self.put(s, i.pack, pack._replace(state=NONE))
        return s, i._replace(at="commit")

    def prune(self, s: State, p: Prune) -> Iterator[State]:
        if p.at != "idle":  # killed
            yield s._replace(prune=Prune(left=p.left))
            t, after = getattr(self, p.at)(s, p)
            yield t._replace(prune=after)
        elif p.left:
            yield s._replace(prune=p._replace(at="finish", left=p.left - 1))

    def finish(self, s: State, p: Prune) -> tuple[State, Prune]:
        """What the last one left."""
        going = tuple(n for n, pack in enumerate(s.packs) if pack.state == DELETING)
        return s, p._replace(at="delete" if going else "mark", doomed=going)

    def mark(self, s: State, p: Prune) -> tuple[State, Prune]:
        return s, p._replace(at="condemn", found=s.live)

    def condemn(self, s: State, p: Prune) -> tuple[State, Prune]:
        return self.judged(s, p.found), p._replace(at="ripe")

    def ripe(self, s: State, p: Prune) -> tuple[State, Prune]:
        """Rule 2."""
        left = tuple(i._replace(alive=False) if i.late else i for i in s.ingests)
        oldest = min((i.number for i in left if i.alive), default=s.number + 1)
        ripe = tuple(
            (n, pack.number)
            for n, pack in enumerate(s.packs)
            if pack.state == CONDEMNED and (pack.number < oldest or self.without == 2)
        )
        return s._replace(ingests=left), p._replace(at="again" if ripe else "end", ripe=ripe)

    def again(self, s: State, p: Prune) -> tuple[State, Prune]:
        return s, p._replace(at="doom", found=s.live)

    def doom(self, s: State, p: Prune) -> tuple[State, Prune]:
        kept = self.kept(s) if p.found else -1
        doomed = tuple(
            n for n, number in p.ripe if n != kept and s.packs[n][1:] == (CONDEMNED, number)
        )
        for n in doomed if self.without != 3 else ():
            s = self.put(s, n, s.packs[n]._replace(state=DELETING))
        if kept >= 0 and s.packs[kept].state == CONDEMNED:
            s = self.put(s, kept, s.packs[kept]._replace(state=NONE))
        return s, p._replace(at="delete", doomed=doomed, ripe=())

    def delete(self, s: State, p: Prune) -> tuple[State, Prune]:
        if not p.doomed:
            return s, p._replace(at="end")
        n = p.doomed[0]
        return self.put(s, n, s.packs[n]._replace(there=False)), p._replace(at="record")

    def record(self, s: State, p: Prune) -> tuple[State, Prune]:
        n, *rest = p.doomed
        if s.packs[n].state != NONE:
            s = self.put(s, n, s.packs[n]._replace(state=DELETED))
        return s, p._replace(at="delete", doomed=tuple(rest))

    def end(self, s: State, p: Prune) -> tuple[State, Prune]:
        return s, Prune(left=p.left)

    def judged(self, s: State, found: bool) -> State:
        """After a mark: one pack is kept if a root is live, the others are condemned."""
        kept = self.kept(s) if found else -1
        number = s.number + 1
        packs = []
        for n, pack in enumerate(s.packs):
            if n == kept and pack.state == CONDEMNED:
                packs.append(pack._replace(state=NONE))
            elif n != kept and pack.state == NONE and pack.there:
                packs.append(pack._replace(state=CONDEMNED, number=number))
            else:
                packs.append(pack)
        return s._replace(packs=tuple(packs), number=number)

    @staticmethod
    def kept(s: State) -> int:
        """The pack that keeps the chunk: one that is not condemned if there is any; -1 for none."""
        usable = [
            (pack.state, n)
            for n, pack in enumerate(s.packs)
            if pack.there and pack.state < DELETING
        ]
        return min(usable)[1] if usable else -1

    @staticmethod
    def put(s: State, n: int, pack: Pack) -> State:
        return s._replace(packs=(*s.packs[:n], pack, *s.packs[n + 1 :]))


def explore(model: Model, ingests: int, prunes: int) -> tuple[bool, int]:
    """Whether no state that can be reached lacks a live chunk, and how many states were seen."""
    todo = [
        State(packs, (Ingest(),) * ingests, Prune(left=prunes), live=live)
        for packs, live in (((), False), ((Pack(there=True),), False), ((Pack(there=True),), True))
    ]
    seen = set(todo)
    while todo:
        state = todo.pop()
        if state.live and not any(pack.there for pack in state.packs):
            return False, len(seen)
        for after in model.steps(state):
            small = _same(after)
            if small not in seen:
                seen.add(small)
                todo.append(small)
    return True, len(seen)


def _same(s: State) -> State:
    """States that differ only in their numbers' gaps or the ingests' order are one."""
    numbers = {p.number for p in s.packs if p.state == CONDEMNED}
    numbers |= {i.number for i in s.ingests if i.alive} | {n for _pack, n in s.prune.ripe}
    new = {old: place + 1 for place, old in enumerate(sorted(numbers))}
    return s._replace(
        packs=tuple(
            p._replace(number=new[p.number] if p.state == CONDEMNED else 0) for p in s.packs
        ),
        ingests=tuple(
            sorted(i._replace(number=new[i.number] if i.alive else 0) for i in s.ingests)
        ),
        prune=s.prune._replace(ripe=tuple((n, new[number]) for n, number in s.prune.ripe)),
        number=len(new),
    )


def test_with_all_rules_no_state_lacks_a_live_chunk():
    safe, states = explore(Model(), ingests=2, prunes=2)
    assert safe
    assert states > 10_000


@pytest.mark.parametrize("rule", [1, 2, 3, 4])
def test_without_a_rule_a_state_does(rule):
    safe, _states = explore(Model(without=rule), ingests=2, prunes=2)
    assert not safe
