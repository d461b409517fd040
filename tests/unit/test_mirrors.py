"""Packs behind mirrors that lie, break, restart or are gone: what comes out is right, or nothing does."""

import os
import random
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.disks import BytesDisk

from calotype.disk.base import read
from calotype.errors import (
    Conflict,
    NotFound,
    StoreDamaged,
    StoreUnavailable,
    ToolFailed,
    Untrusted,
)
from calotype.store import MemoryStore, Repository
from calotype.store.chunking import Chunking
from calotype.store.copy import copy
from calotype.store.index import PREFIX as INDEXES
from calotype.store.mirrors import Listed, MirrorStore
from calotype.store.needs import packs_of
from calotype.store.parameters import CONFIG, DOMAINS

MIB = 1 << 20
SMALL = Chunking(region=MIB)
BODY = random.Random(3).randbytes(3 * MIB)
BLOCK = 10_000


class FakeMirror:
    """A mirror in memory, and what it does otherwise than it should.

    Attributes:
        flip: positions in packs at which it lies.
        breaks: after how many bytes each of its next answers ends.
        failing: errors of its next answers.
        gone: whether it is down, given how many bytes it has sent.
    """

    def __init__(self, name, objects):
        self.name = name
        self.objects = objects
        self.flip = {}
        self.breaks = []
        self.failing = []
        self.gone = lambda _sent: False
        self.asked = []
        self.sent = 0

    def stream(self, key, start, end, size):
        self.asked.append((key, start, end))
        if self.failing:
            raise self.failing.pop(0)
        body = bytearray(self.objects.get(key))
        assert len(body) == size
        for place in self.flip.get(key, ()):
            body[place] ^= 1
        data = bytes(body[start:end])
        if self.breaks:
            data = data[: self.breaks.pop(0)]
        for at in range(0, len(data), BLOCK):
            if self.gone(self.sent):
                raise StoreUnavailable("connection refused")
            block = data[at : at + BLOCK]
            self.sent += len(block)
            yield block


@pytest.fixture(scope="module")
def tree():
    """A repository with one disk; the signed list of its objects; and one of its packs of data."""
    objects = MemoryStore()
    repository = Repository.create(objects, chunking=SMALL)
    index = repository.ingest(BytesDisk(BODY)).index
    needed = packs_of(repository, index)
    listed = [Listed(pack.key, pack.size, len(pack.foot)) for pack in needed.values()]
    listed.append(Listed(INDEXES + index, objects.size(INDEXES + index)))
    given = {key: objects.get(key) for key in (CONFIG, DOMAINS + "default")}
    data = max(needed.values(), key=lambda pack: pack.size)
    return SimpleNamespace(
        objects=objects, repository=repository, index=index, listed=listed, given=given, data=data
    )


def opened(tree, mirrors, path, *, pauses=(0.0, 0.0, 0.0), wait=lambda _seconds: None):
    return MirrorStore(
        mirrors,
        tree.listed,
        tree.given,
        spool=path / "spool",
        footers=path / "feet",
        pauses=pauses,
        wait=wait,
    )


def first_asked(tree, mirrors, path):
    """A store whose other mirrors are busy until the first one is dropped."""
    store = opened(tree, mirrors, path, pauses=(0.0,) * 10_000)
    for mirror in mirrors[1:]:
        mirror.gone = lambda _sent: store.uses[0].problem is None
    return store


def pulled(tree, store, target=None, *, threads=2):
    """The disk's bytes after a copy to another repository."""
    target = target or Repository.replica(tree.repository, MemoryStore())
    report = copy(Repository(store), target, [tree.index], near=0, threads=threads)
    assert report.ok, report.failed
    disk = target.open(tree.index)
    return read(disk, 0, disk.size)


def whole(tree):
    return sum(one.size for one in tree.listed)


def three(tree):
    return [FakeMirror(f"mirror-{n}", tree.objects) for n in range(3)]


def test_the_work_is_spread_and_nothing_comes_twice(tree, tmp_path):
    mirrors = three(tree)
    store = opened(tree, mirrors, tmp_path)
    assert pulled(tree, store) == BODY
    assert sum(mirror.sent for mirror in mirrors) <= whole(tree)
    assert sum(use.bytes for use in store.uses) == sum(mirror.sent for mirror in mirrors)
    assert store.resumed == 0


def test_a_mirror_that_lies_about_one_chunk_is_named_dropped_and_asked_no_more(tree, tmp_path):
    liar, *honest = mirrors = three(tree)
    place = int(tree.data.frame_offset[3]) + 5
    liar.flip[tree.data.key] = {place}
    store = first_asked(tree, mirrors, tmp_path)
    assert pulled(tree, store, threads=1) == BODY
    use = store.uses[0]
    assert use.name == "mirror-0"
    assert use.lied
    assert tree.data.key in str(use.problem)
    asked_last = liar.asked[-1]
    assert asked_last[0] == tree.data.key
    assert asked_last[1] <= place < asked_last[2]  # after its lie nobody asked it again
    assert [use.problem for use in store.uses[1:]] == [None, None]
    assert any(mirror.sent for mirror in honest)
    # What it sent before the lie was right, and was kept: at most one frame and a block came twice.
    assert sum(mirror.sent for mirror in mirrors) <= whole(tree) + (1 << 18) + BLOCK


def test_if_all_lie_nothing_is_used_and_all_are_named(tree, tmp_path):
    mirrors = three(tree)
    for mirror in mirrors:
        mirror.flip[tree.data.key] = {int(tree.data.frame_offset[0]) + 1}
    target = Repository.replica(tree.repository, MemoryStore())
    with pytest.raises(Untrusted, match="no mirror can be believed") as caught:
        pulled(tree, opened(tree, mirrors, tmp_path), target)
    assert all(mirror.name in caught.value.message for mirror in mirrors)
    assert target.indexes() == []


@pytest.mark.parametrize("what", ["footer", "root", "leaf"])
def test_lies_about_all_else_are_found_as_well(tree, tmp_path, what):
    liar, honest = three(tree)[:2]
    leaves = min((one for one in tree.listed if one.footer), key=lambda one: one.size)
    key, place = {
        "footer": (tree.data.key, tree.data.size - 60),
        "root": (INDEXES + tree.index, 40),
        "leaf": (leaves.key, 100),
    }[what]
    liar.flip[key] = {place}
    store = first_asked(tree, [liar, honest], tmp_path)
    assert pulled(tree, store) == BODY
    assert store.uses[0].lied
    assert key in str(store.uses[0].problem)


def test_another_pack_in_the_place_of_one(tree, tmp_path):
    """Substitution: whole, well-formed, signed by nobody."""
    other = Repository.create(MemoryStore(), chunking=SMALL)
    index = other.ingest(BytesDisk(BODY[::-1])).index
    evil = max(packs_of(other, index).values(), key=lambda pack: pack.size)
    liar, honest = three(tree)[:2]
    body = other.objects.get(evil.key)
    size = tree.data.size
    fake = SimpleNamespace(
        get=lambda key: (body * 2)[:size] if key == tree.data.key else tree.objects.get(key)
    )
    liar.objects = fake
    store = first_asked(tree, [liar, honest], tmp_path)
    assert pulled(tree, store) == BODY
    assert store.uses[0].lied


def test_a_mirror_that_sends_more_than_it_was_asked_for(tree, tmp_path, monkeypatch):
    liar, honest = three(tree)[:2]
    real = liar.stream

    def more(*asked):
        yield from real(*asked)
        yield from [b"x" * BLOCK] * 1000

    monkeypatch.setattr(liar, "stream", more)
    store = first_asked(tree, [liar, honest], tmp_path)
    assert pulled(tree, store) == BODY
    assert store.uses[0].lied
    assert "more of" in str(store.uses[0].problem)
    assert store.uses[0].bytes < whole(tree) + 10 * BLOCK


def test_connections_that_break_go_on_where_they_were(tree, tmp_path):
    (mirror,) = three(tree)[:1]
    mirror.breaks = [300_000, 200_001, 5, 0, 123_456, 99_999]
    store = opened(tree, [mirror], tmp_path)
    assert pulled(tree, store) == BODY
    assert store.uses[0].problem is None
    assert mirror.sent <= whole(tree) + 6 * (1 << 18)


def test_a_mirror_that_restarts_is_waited_for(tree, tmp_path):
    (mirror,) = three(tree)[:1]
    waits: list[float] = []
    mirror.gone = lambda sent: sent > 600_000 and len(waits) < 20
    store = opened(tree, [mirror], tmp_path, pauses=(0.001,) * 40, wait=waits.append)
    assert pulled(tree, store) == BODY
    assert len(waits) >= 20
    assert store.uses[0].problem is None
    assert mirror.sent <= whole(tree) + (1 << 18)


def test_all_mirrors_gone(tree, tmp_path):
    mirrors = three(tree)
    for mirror in mirrors:
        mirror.failing = [StoreUnavailable("connection refused")] * 99
    with pytest.raises(StoreUnavailable, match="no mirror delivers") as caught:
        pulled(tree, opened(tree, mirrors, tmp_path))
    assert caught.value.message.count("connection refused") == 3
    assert "another mirror" in str(caught.value.hint)
    with pytest.raises(StoreUnavailable, match="none is known"):
        pulled(tree, opened(tree, [], tmp_path))


def test_what_one_mirror_lacks_another_has(tree, tmp_path):
    stale, unable, good = three(tree)
    stale.failing = [NotFound("404")] * 99
    unable.failing = [ToolFailed("it does not know ranges")]
    store = opened(tree, [stale, unable, good], tmp_path)
    assert pulled(tree, store) == BODY
    assert store.uses[0].problem is None
    assert "ranges" in str(store.uses[1].problem)
    assert not store.uses[1].lied
    assert len(unable.asked) == 1
    stale.failing = [NotFound("404")] * 99
    with pytest.raises(StoreUnavailable, match="it has no"):
        pulled(tree, opened(tree, [stale], tmp_path / "again"))


def test_what_was_pulled_before_a_kill_is_not_fetched_again(tree, tmp_path):
    """The first attempt ends in the middle; the second goes on from what is in the spool."""
    first = FakeMirror("first", tree.objects)
    first.gone = lambda sent: sent > 600_000
    dying = opened(tree, [first], tmp_path, pauses=())
    target = Repository.replica(tree.repository, MemoryStore())
    with pytest.raises(StoreUnavailable):
        pulled(tree, dying, target)
    second = FakeMirror("second", tree.objects)
    store = opened(tree, [second], tmp_path)
    assert pulled(tree, store, target) == BODY
    assert store.resumed > 0
    assert first.sent + second.sent <= whole(tree) + (1 << 18)


def test_a_spool_that_rotted_is_not_believed(tree, tmp_path):
    (mirror,) = three(tree)[:1]
    assert pulled(tree, opened(tree, [mirror], tmp_path)) == BODY
    for path in [*(tmp_path / "spool").iterdir(), *(tmp_path / "feet").iterdir()]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert pulled(tree, opened(tree, [mirror], tmp_path)) == BODY


@pytest.mark.parametrize(
    "listed",
    [
        Listed(INDEXES + "ab" * 32, 1 << 55),
        Listed("packs/" + "ab" * 32, 1 << 55, 0),
        Listed("packs/" + "ab" * 32, 1 << 20, 100),
        Listed("packs/" + "ab" * 32, 1 << 20, 1 << 20),
        Listed("packs/" + "ab" * 32, 0, 1 << 20),
    ],
)
def test_a_list_that_was_signed_and_cannot_be(tree, tmp_path, listed):
    """Its sizes would be asked of the memory, or of negative places."""
    with pytest.raises(Untrusted, match="with a size that cannot be"):
        MirrorStore(three(tree), [listed], {}, spool=tmp_path / "spool", footers=tmp_path / "feet")


def test_as_many_objects_as_there_are(tree, tmp_path):
    """A descriptor for each would be all that a process may have."""
    before = len(os.listdir("/proc/self/fd"))
    assert pulled(tree, opened(tree, three(tree), tmp_path)) == BODY
    assert len(os.listdir("/proc/self/fd")) == before


def test_only_what_is_listed_exists_and_nothing_is_written(tree, tmp_path):
    store = opened(tree, three(tree), tmp_path)
    assert {stored.key for stored in store.list("packs/")} == set(
        packs_of(tree.repository, tree.index)
    )
    for read_it in (store.get, store.size, store.footer):
        with pytest.raises(NotFound):
            read_it("packs/" + "0" * 64)
    with pytest.raises(StoreDamaged):
        store.get_range(tree.data.key, tree.data.size - 10, 10)
    for change in (
        lambda: store.put("packs/x", b""),
        store.writer,
        lambda: store.delete("packs/x"),
    ):
        with pytest.raises(Conflict):
            change()
    assert store.leftovers() == store.sweep() == ()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_every_range_is_right_whatever_the_mirrors_do(tree, tmp_path_factory, data):
    """The law: a range of frames is the pack's bytes, or an error; whoever lied is asked no more."""
    mirrors = three(tree)
    size = tree.data.size
    places = st.sets(st.integers(0, size - 1), max_size=3)
    for mirror in mirrors[1:]:
        mirror.flip[tree.data.key] = data.draw(places)
        mirror.breaks = data.draw(st.lists(st.integers(0, 200_000), max_size=4))
    mirrors[0].breaks = data.draw(st.lists(st.integers(0, 200_000), max_size=4))
    store = opened(tree, mirrors, tmp_path_factory.mktemp("law"), pauses=(0,) * 8)
    body = tree.objects.get(tree.data.key)
    first = int(tree.data.frame_offset[0])
    last = first + int(tree.data.frame_stored.sum())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(first, last - 1))
        length = data.draw(st.integers(0, last - start))
        assert store.get_range(tree.data.key, start, length) == body[start : start + length]
    for mirror, use in zip(mirrors, store.uses, strict=True):
        assert not use.lied or mirror.flip[tree.data.key]
    store.close()
