"""The four rules of the prune: with each one left out, a schedule of the real code loses an image.

Each schedule is one that the state machine of tests/campaigns/prune_machine.py found.
"""

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.campaigns.prune_machine import Prune
from tests.campaigns.prune_world import (
    BLOCK,
    LEASE,
    Lost,
    NoDeleting,
    NoFence,
    NoReprieve,
    NoWaiting,
    World,
    repeatable,
)

from calotype.disk.base import Extent
from calotype.errors import Conflict, NotFound
from calotype.store.ledger import MemoryLedger


def prune(grace=0, **how):
    return lambda repository: repository.prune(grace=timedelta(seconds=grace), empty=True, **how)


def begin(world, job, until="", process=None):
    """A process that does a job up to a call, or to its end."""
    process = process or world.process()
    process.start("job", job)
    if until:
        process.until(until)
    else:
        process.finish()
    return process


def garbage(world):
    """A pack that nobody needs any more, and a process that knows it."""
    process = begin(world, world.ingest([1, 2]))
    (index,) = world.owed
    return begin(world, lambda r: r.delete_index(index), process=process)


def met_while_condemned(world):
    """Rule 1: an ingest that is younger than the condemnation relies on the pack."""
    knows = garbage(world)
    cleaner = begin(world, prune(), until="ripe")
    ingest = begin(world, world.ingest([1, 2]), until="commit", process=knows)
    cleaner.finish()
    ingest.finish()


def met_before(world):
    """Rule 2: an ingest relied on the pack before it was condemned, and is not done."""
    knows = garbage(world)
    ingest = begin(world, world.ingest([1, 2]), until="commit", process=knows)
    begin(world, prune())
    ingest.finish()


def met_while_it_goes(world):
    """Rule 3: the pack's deletion is decided, but has not happened yet."""
    knows = garbage(world)
    cleaner = begin(world, prune(), until="doom")
    cleaner.step()
    ingest = begin(world, world.ingest([1, 2]), until="commit", process=knows)
    cleaner.finish()
    ingest.finish()


def came_back_late(world):
    """Rule 4: an ingest stood still until nobody waited for it any more."""
    ingest = begin(world, world.ingest([1, 2]), until="commit")
    world.now += LEASE + 1
    begin(world, prune())
    ingest.finish()


RULES = {
    "reprieve": (NoReprieve, met_while_condemned),
    "wait for the older": (NoWaiting, met_before),
    "deleting": (NoDeleting, met_while_it_goes),
    "fence": (NoFence, came_back_late),
}


@pytest.mark.parametrize("rule", RULES)
def test_no_image_is_lost_with_the_rule(rule):
    _mutant, schedule = RULES[rule]
    with repeatable():
        world = World()
        schedule(world)
        assert len(world.owed) == 1
        world.settle()


@pytest.mark.parametrize("rule", RULES)
def test_an_image_is_lost_without_the_rule(rule):
    mutant, schedule = RULES[rule]
    with repeatable():
        world = World(mutant)
        try:
            with pytest.raises(Lost):
                schedule(world)
        finally:
            world.kill()


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_is_needed_alone(rule):
    """A ledger without one rule keeps the promise in the schedules of the other three."""
    mutant, own = RULES[rule]
    for _other, schedule in RULES.values():
        if schedule is not own:
            with repeatable():
                world = World(mutant)
                schedule(world)
                world.settle()


def test_under_fire_for_a_few_seconds():
    few = settings(
        max_examples=60,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Prune, settings=few)


# -- killed anywhere


def calls_of(job, prepare):
    """How many calls a job makes after ``prepare``."""
    with repeatable():
        world = World()
        prepare(world)
        process = world.process()
        process.start("job", job(world))
        count = 0
        while not process.idle:
            process.step()
            count += 1
        world.settle()
        return count


def half_dead(world):
    """Two images, one of them deleted: some packs are half needed, some not at all."""
    for blocks in ([1, 2], [2, 3], [3]):
        begin(world, world.ingest(blocks))
    gone = [index for index, blocks in world.disks.items() if blocks != [2, 3]]
    for index in gone:
        begin(world, lambda r, index=index: r.delete_index(index))
    assert len(world.owed) == 1


@pytest.mark.parametrize("share", [0.6, 2])
def test_a_prune_that_is_killed_anywhere_is_continued_by_the_next(share):
    count = calls_of(lambda _world: prune(share=share), half_dead)
    assert count > 20
    for kill_at in range(count):
        with repeatable():
            world = World(MemoryLedger)
            half_dead(world)
            process = world.process()
            process.start("prune", prune(share=share))
            for _ in range(kill_at):
                process.step()
            process.kill()
            world.check("it was killed")
            world.read_back()
            world.settle()


def test_an_ingest_that_is_killed_anywhere_leaves_nothing_for_ever():
    def again(world):
        return world.ingest([1, 2])

    count = calls_of(again, half_dead)
    for kill_at in range(count):
        with repeatable():
            world = World()
            half_dead(world)
            process = world.process()
            process.start("ingest", again(world))
            for _ in range(kill_at):
                process.step()
            process.kill()
            world.settle()  # its packs are gone, or its root is live


# -- two at once, in every order


def interleaved(first, second, prepare):
    """Run two jobs in every order in which the second interrupts the first once."""
    done = 0
    while True:
        with repeatable():
            world = World()
            prepare(world)
            process = world.process()
            process.start("first", first(world))
            for _ in range(done):
                process.step()
            ended = process.idle
            other = begin(world, second(world))
            process.finish()
            yield world, process, other
            world.settle()
        if ended:
            return
        done += 1


def one_image(world):
    begin(world, world.ingest([1, 2]))


def deletion(world):
    (index,) = world.owed
    return lambda r: r.delete_index(index)


def test_a_deletion_and_an_ingest_of_the_same_disk_leave_it_whole_or_gone():
    outcomes = set()
    for world, _first, _second in interleaved(deletion, lambda w: w.ingest([1, 2]), one_image):
        outcomes.add(len(world.owed))
    for world, _first, _second in interleaved(lambda w: w.ingest([1, 2]), deletion, one_image):
        outcomes.add(len(world.owed))
    assert outcomes == {0, 1}


def test_a_prune_in_the_middle_of_an_ingest_takes_nothing_from_it():
    for world, first, second in interleaved(
        lambda w: w.ingest([1, 2]), lambda _w: prune(), garbage
    ):
        assert first.error is second.error is None
        assert len(world.owed) == 1


def test_an_ingest_in_the_middle_of_a_prune_loses_nothing():
    for world, first, second in interleaved(
        lambda _w: prune(), lambda w: w.ingest([1, 2]), garbage
    ):
        assert first.error is second.error is None
        assert len(world.owed) == 1


def test_two_prunes_at_once_one_is_refused():
    refused = 0
    for _world, first, second in interleaved(lambda _w: prune(), lambda _w: prune(), half_dead):
        assert first.error is None
        if second.error is not None:
            assert isinstance(second.error, Conflict)
            refused += 1
    assert refused


def test_a_prune_that_stood_still_is_replaced_and_says_so():
    def late(world):
        world.now += LEASE + 1
        return prune()

    lapsed = 0
    for _world, first, second in interleaved(lambda _w: prune(), late, half_dead):
        assert second.error is None
        if first.error is not None:
            assert "another one took its place" in str(first.error)
            lapsed += 1
    assert lapsed


def test_the_base_of_a_capture_may_be_deleted_and_pruned_while_it_runs():
    def capture(world):
        (index,) = world.owed
        return world.ingest([1, 3], base=index, changed=[Extent(2 * BLOCK, BLOCK, zero=False)])

    def deletion_and_prune(world):
        def job(repository):
            for index in repository.indexes():
                repository.delete_index(index)
            prune()(repository)

        return job

    outcomes = set()
    for world, first, second in interleaved(capture, deletion_and_prune, one_image):
        assert second.error is None
        if first.error is None:
            outcomes.add(len(world.owed))
        else:
            assert isinstance(first.error, NotFound)
            outcomes.add(-1)
    assert outcomes == {-1, 0, 1}
