# ruff: noqa: ARG002 - stores that ignore what they are told are the point
"""What a server must do before a repository is kept on it."""

import time

import pytest

from calotype.errors import InvalidInput, NotFound, StoreUnavailable
from calotype.store import MemoryStore
from calotype.store.parameters import seal
from calotype.store.probe import ensure, probe


class IgnoresConditions(MemoryStore):
    def put(self, key, data, *, if_absent=False):
        return super().put(key, data)


class SaysTakenAndReplaces(MemoryStore):
    def put(self, key, data, *, if_absent=False):
        taken = key in self._objects
        super().put(key, data)
        return not (taken and if_absent)


class LosesRaces(MemoryStore):
    """Conditions hold between requests that do not overlap, as in servers that look first and then write."""

    def put(self, key, data, *, if_absent=False):
        if key.endswith("-race"):
            super().put(key, data)
            return True
        return super().put(key, data, if_absent=if_absent)


class IgnoresRanges(MemoryStore):
    def get_range(self, key, offset, length):
        return self.get(key)


class ListsOldNews(MemoryStore):
    def list(self, prefix=""):
        return iter(())


class KeepsAll(MemoryStore):
    def delete(self, key):
        pass


class TakesNothing(MemoryStore):
    def put(self, key, data, *, if_absent=False):
        raise NotFound("no such place")


class Absent(MemoryStore):
    def get(self, key):
        raise StoreUnavailable("cannot be reached")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (IgnoresConditions, "only if it is absent"),
        (SaysTakenAndReplaces, "only if it is absent"),
        (LosesRaces, "more than one"),
        (IgnoresRanges, "ranges"),
        (ListsOldNews, "listing"),
        (KeepsAll, "deleted"),
        (TakesNothing, "does not take"),
    ],
)
def test_a_server_that_cannot_do_it_is_refused(kind, why):
    store = kind()
    with pytest.raises(InvalidInput, match=why) as caught:
        ensure(store, "s3://bucket")
    assert str(caught.value).startswith("s3://bucket: this server cannot keep a repository")
    assert "probed" not in store._objects
    if kind is not KeepsAll:
        assert store._objects == {}


def test_a_server_that_passed_is_not_asked_again(monkeypatch):
    store = MemoryStore()
    ensure(store, "x")
    assert list(store._objects) == ["probed"]
    monkeypatch.setattr(store, "put", None)
    ensure(store, "x")


@pytest.mark.parametrize(
    "mark",
    [
        b"",
        seal({"version": 0, "time": 0}),
        seal({"version": 1, "time": 1}),
        seal({"version": 1, "time": int(time.time()) + 9999}),
        seal({"version": 1}),
        seal({"version": 1, "time": "now"}),
    ],
    ids=("empty", "other version", "old", "to come", "no time", "no number"),
)
def test_a_mark_that_is_old_or_strange_counts_for_nothing(mark):
    store = IgnoresRanges()
    store.put("probed", mark)
    with pytest.raises(InvalidInput):
        ensure(store, "x")


def test_a_server_that_does_not_answer_is_not_called_unfit():
    with pytest.raises(StoreUnavailable):
        ensure(Absent(), "x")


def test_probes_do_not_meet():
    store = MemoryStore()
    probe(store, "x")
    probe(store, "x")
    assert store._objects == {}
