"""Patience: what is repeated, how often, how long, and what a lost answer means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype.errors import InvalidInput, NotFound, StoreDamaged, StoreUnavailable
from calotype.store.objects import MemoryStore
from calotype.store.retry import Clock, Patience, RetryStore


class Time:
    """A clock that moves only by sleeping."""

    def __init__(self, jitter=0.5):
        self.now = 0.0
        self.slept = []
        self.clock = Clock(lambda: self.now, self.sleep, lambda: jitter)

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


class Faulty(MemoryStore):
    """Fails as planned: each call takes the next fault; "before" is not done, "after" is done."""

    def __init__(self, *plan):
        super().__init__()
        self.plan = list(plan)
        self.calls = 0

    def _do(self, action):
        self.calls += 1
        fault = self.plan.pop(0) if self.plan else None
        if isinstance(fault, Exception):
            raise fault
        if fault == "before":
            raise StoreUnavailable("busy", hint="wait")
        done = action()
        if fault == "after":
            raise StoreUnavailable("lost")
        return done

    def get(self, key):
        return self._do(lambda: super(Faulty, self).get(key))

    def put(self, key, data, *, if_absent=False):
        return self._do(lambda: super(Faulty, self).put(key, data, if_absent=if_absent))

    def delete(self, key):
        return self._do(lambda: super(Faulty, self).delete(key))

    def list(self, prefix=""):
        return self._do(lambda: super(Faulty, self).list(prefix))


def patient(inner, time=None, **patience):
    return RetryStore(inner, Patience(**patience), (time or Time()).clock)


def test_what_fails_for_the_moment_is_repeated():
    inner = Faulty("before", "after", "before")
    time = Time()
    store = patient(inner, time)
    assert store.put("a", b"1")
    assert inner.calls == 4
    assert time.slept == [0.05, 0.1, 0.2]


def test_pauses_double_up_to_the_longest_and_are_jittered():
    time = Time(jitter=1.0)
    store = patient(Faulty(*["before"] * 6), time, first=1, longest=5)
    store.put("a", b"1")
    assert time.slept == [1, 2, 4, 5, 5, 5]


@pytest.mark.parametrize("error", [NotFound("x"), StoreDamaged("x"), InvalidInput("x"), OSError(5)])
def test_what_will_not_pass_is_not_repeated(error):
    inner = Faulty(error)
    with pytest.raises(type(error)):
        patient(inner).get("a")
    assert inner.calls == 1


def test_it_gives_up_after_so_many_attempts_and_says_so():
    inner = Faulty(*["before"] * 9)
    with pytest.raises(StoreUnavailable, match=r"busy \(3 attempts in 0 s\)") as caught:
        patient(inner, attempts=3).get("a")
    assert caught.value.hint == "wait"
    assert inner.calls == 3


@given(
    total=st.floats(0, 100),
    first=st.floats(0.001, 10),
    jitter=st.floats(0, 1, exclude_max=True),
    attempts=st.integers(1, 20),
)
def test_no_pause_starts_that_would_end_too_late(total, first, jitter, attempts):
    time = Time(jitter)
    inner = Faulty(*["before"] * 50)
    store = patient(inner, time, attempts=attempts, total=total, first=first)
    with pytest.raises(StoreUnavailable):
        store.get("a")
    assert time.now <= total
    assert 1 <= inner.calls <= attempts


def test_a_conditional_put_whose_answer_was_lost_has_succeeded():
    inner = Faulty("after")
    assert patient(inner).put("config", b"mine", if_absent=True)
    assert inner.get("config") == b"mine"


def test_a_conditional_put_that_another_won_has_not():
    inner = Faulty(None, "before")
    inner.put("config", b"theirs")
    assert not patient(inner).put("config", b"mine", if_absent=True)
    assert inner.get("config") == b"theirs"


def test_what_is_there_counts_as_ours_only_in_doubt():
    inner = Faulty()
    inner.put("a", b"same")
    assert not patient(inner).put("a", b"same", if_absent=True)


def test_doubt_outlives_a_failed_look():
    inner = Faulty(
        "after", None, "before"
    )  # put done, answer lost; taken; the look fails; taken; seen
    assert patient(inner).put("a", b"mine", if_absent=True)
    assert inner.calls == 5


def test_an_object_deleted_while_it_is_put_is_put_again():
    inner = Faulty("after", None, NotFound("gone"))
    store = patient(inner)
    assert store.put("a", b"mine", if_absent=True)


def test_pieces_are_sent_again_from_the_start():
    inner = Faulty("after", "before")
    assert patient(inner).put("a", iter([b"1", b"2"]), if_absent=True)
    assert inner.get("a") == b"12"
    store = patient(inner)
    inner.plan = ["before", "after"]
    store.put("b", iter([b"3", b"4"]))
    assert inner.get("b") == b"34"


def test_a_writer_commits_again():
    inner = Faulty("before", "after")
    writer = patient(inner).writer()
    writer.write([b"1", b"2"])
    writer.commit("packs/a")
    assert inner.get("packs/a") == b"12"
    writer.abort()


def test_listing_and_delete_are_repeated():
    inner = Faulty(None, "before", "after", "after")
    store = patient(inner)
    store.put("a", b"1")
    assert [s.key for s in store.list()] == ["a"]
    store.delete("a")
    assert [s.key for s in store.list()] == []
