"""One suite over both ledgers: each rule of the prune, and what a process may do that lost its lease."""

import threading

import pytest

from calotype.catalog import Catalog
from calotype.catalog.ledger import SqlLedger
from calotype.errors import Conflict
from calotype.store.ledger import Lapsed, MemoryLedger, PackState

A, B, C = "packs/a", "packs/b", "packs/c"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request, tmp_path, clock):
    if request.param == "memory":
        yield MemoryLedger(clock)
        return
    catalog = Catalog(tmp_path / "catalog.db")
    yield SqlLedger(catalog._read, catalog._write, clock)
    catalog.close()


def condemned(ledger, *packs):
    """Packs that a prune condemned; the prune, which goes on."""
    prune = ledger.begin(60, prune=True)
    ledger.condemn(prune, packs)
    return prune


def gone(ledger, prune, *packs):
    """Packs that a prune deleted."""
    assert ledger.doom(prune, ledger.ripe(0)) >= set(packs)
    ledger.deleted(packs)


def test_a_ledger_keeps_its_id_and_its_repository(ledger):
    assert ledger.id == ledger.id
    assert len(ledger.id) == 36
    ledger.bind("r1")
    ledger.bind("r1")
    with pytest.raises(Conflict, match="another store"):
        ledger.bind("r2")


def test_operations_are_numbered_in_the_order_in_which_they_begin(ledger):
    first, second = ledger.begin(60), ledger.begin(60)
    assert first < second
    ledger.end(first)
    ledger.end(first)
    assert ledger.begin(60) > second


def test_a_root_is_live_from_its_commit_to_its_removal(ledger):
    assert ledger.root("r") is None
    ledger.commit(ledger.begin(60), "r", b"bytes")
    assert ledger.root("r") == b"bytes"
    assert ledger.roots() == {"r": True}
    ledger.remove("r")
    assert ledger.root("r") is None
    assert ledger.roots() == {"r": False}
    ledger.commit(ledger.begin(60), "r", b"bytes")
    assert ledger.roots() == {"r": True}


def test_a_root_without_a_byte_is_a_root(ledger):
    ledger.commit(ledger.begin(60), "r", b"")
    assert ledger.roots() == {"r": True}
    assert ledger.root("r") == b""


def test_only_unknown_roots_are_adopted(ledger):
    ledger.adopt("r", b"1")
    ledger.adopt("r", b"2")
    assert ledger.root("r") == b"1"
    ledger.remove("r")
    ledger.adopt("r", b"3")
    assert ledger.root("r") is None


def test_what_was_never_there_can_be_removed(ledger):
    ledger.remove("r")
    assert ledger.roots() == {"r": False}


def test_a_commit_ends_the_operation(ledger):
    operation = ledger.begin(60)
    ledger.commit(operation, "r", b"1")
    with pytest.raises(Lapsed):
        ledger.commit(operation, "s", b"2")
    with pytest.raises(Lapsed):
        ledger.renew(operation, 60)
    assert ledger.roots() == {"r": True}


def test_rule_1_what_is_met_is_reprieved(ledger):
    prune = condemned(ledger, A, B)
    assert ledger.meet(ledger.begin(60), [A, C]) == set()
    assert ledger.packs() == {B: PackState.CONDEMNED}
    assert ledger.doom(prune, {A: prune, B: prune}) == set()  # not their condemnation's number


def test_rule_1_a_reprieve_after_a_look_saves_the_pack(ledger):
    prune = condemned(ledger, A, B)
    ripe = ledger.ripe(0)
    assert set(ripe) == {A, B}
    ledger.meet(ledger.begin(60), [A])
    assert ledger.doom(prune, ripe) == {B}


def test_a_pack_that_is_condemned_again_has_to_ripen_again(ledger):
    prune = condemned(ledger, A)
    ripe = ledger.ripe(0)
    ledger.meet(ledger.begin(60), [A])
    ledger.condemn(prune, [A])
    assert ledger.doom(prune, ripe) == set()
    assert ledger.ripe(0) == {}  # the operation that met it is older now


def test_rule_2_older_operations_are_waited_for_and_younger_ones_are_not(ledger):
    old = ledger.begin(60)
    condemned(ledger, A)
    ledger.begin(60)
    assert ledger.ripe(0) == {}
    ledger.renew(old, 60)
    assert ledger.ripe(0) == {}
    ledger.commit(old, "r", b"")
    assert set(ledger.ripe(0)) == {A}


def test_rule_2_an_operation_that_failed_is_not_waited_for(ledger):
    old = ledger.begin(60)
    condemned(ledger, A)
    ledger.end(old)
    assert set(ledger.ripe(0)) == {A}


def test_rule_3_what_is_being_deleted_or_gone_must_not_be_used(ledger):
    prune = condemned(ledger, A, B, C)
    ripe = ledger.ripe(0)
    assert ledger.doom(prune, {A: ripe[A], B: ripe[B]}) == {A, B}
    ledger.deleted([A])
    assert ledger.packs() == {A: "deleted", B: "deleting", C: "condemned"}
    assert ledger.meet(ledger.begin(60), [A, B, C]) == {A, B}
    assert ledger.packs() == {A: "deleted", B: "deleting"}
    ledger.reprieve(prune, [A, B])
    ledger.condemn(prune, [A, B])
    assert ledger.packs() == {A: "deleted", B: "deleting"}


def test_only_what_is_being_deleted_becomes_deleted(ledger):
    condemned(ledger, A)
    ledger.deleted([A, B])
    assert ledger.packs() == {A: "condemned"}


def test_rule_4_an_operation_that_was_given_up_commits_nothing(ledger, clock):
    operation = ledger.begin(60)
    condemned(ledger, A)
    clock.now += 61
    assert set(ledger.ripe(0)) == {A}
    with pytest.raises(Lapsed):
        ledger.renew(operation, 60)
    with pytest.raises(Lapsed):
        ledger.commit(operation, "r", b"")
    assert ledger.roots() == {}


def test_a_late_operation_that_nobody_gave_up_goes_on(ledger, clock):
    operation = ledger.begin(60)
    clock.now += 1000
    ledger.renew(operation, 60)
    condemned(ledger, A)
    assert ledger.ripe(0) == {}
    ledger.commit(operation, "r", b"")
    assert ledger.roots() == {"r": True}


def test_a_renewed_lease_counts_from_then(ledger, clock):
    operation = ledger.begin(60)
    condemned(ledger, A)
    clock.now += 50
    ledger.renew(operation, 60)
    clock.now += 50
    assert ledger.ripe(0) == {}
    clock.now += 11
    assert set(ledger.ripe(0)) == {A}


def test_condemned_packs_wait_for_the_grace(ledger, clock):
    prune = condemned(ledger, A)
    clock.now += 9
    ledger.condemn(prune, [A, B])  # no new condemnation for A
    assert ledger.ripe(10) == {}
    clock.now += 1
    assert set(ledger.ripe(10)) == {A}


def test_there_is_one_prune_at_a_time_and_one_that_stands_still_is_replaced(ledger, clock):
    first = ledger.begin(60, prune=True)
    with pytest.raises(Conflict, match="another prune"):
        ledger.begin(60, prune=True)
    ledger.begin(60)
    clock.now += 61
    second = ledger.begin(60, prune=True)
    for change in (ledger.condemn, ledger.reprieve):
        with pytest.raises(Lapsed):
            change(first, [A])
    with pytest.raises(Lapsed):
        ledger.doom(first, {})
    ledger.end(second)
    ledger.end(ledger.begin(60, prune=True))


def test_a_prune_is_no_operation_to_wait_for(ledger, clock):
    prune = condemned(ledger, A)
    assert set(ledger.ripe(0)) == {A}
    clock.now += 61
    ledger.ripe(0)  # nor is it ended because somebody looks
    ledger.renew(prune, 60)


def test_many_packs_at_once(ledger):
    packs = [f"packs/{n:064x}" for n in range(1200)]
    prune = condemned(ledger, *packs)
    assert ledger.meet(ledger.begin(60), packs[:700]) == set()
    gone(ledger, prune, *packs[700:])
    assert ledger.meet(ledger.begin(60), packs) == set(packs[700:])


def test_threads_get_numbers_of_their_own(ledger):
    numbers = []
    threads = [threading.Thread(target=lambda: numbers.append(ledger.begin(60))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(numbers)) == 8


def test_a_ledger_in_a_file_outlives_its_process(tmp_path):
    catalog = Catalog(tmp_path / "catalog.db")
    first = catalog.ledger
    first.bind("r")
    first.commit(first.begin(60), "root", b"bytes")
    prune = condemned(first, A)
    catalog.close()
    again = Catalog(tmp_path / "catalog.db")
    second = again.ledger
    assert second.id == first.id
    assert second.root("root") == b"bytes"
    assert set(second.ripe(0)) == {A}
    assert second.doom(prune, second.ripe(0)) == {A}
    with pytest.raises(Conflict):
        second.bind("s")
    again.close()
