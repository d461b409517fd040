"""One suite over every object store: what the repository relies on."""

import fcntl
import os
import threading

import pytest

from calotype.errors import Conflict, InvalidInput, NotFound, StoreDamaged
from calotype.store import DirectoryStore
from calotype.store.objects import Stored


def test_what_is_put_is_got_back_whole_and_in_ranges(store):
    assert store.put("packs/a", b"0123456789")
    assert store.get("packs/a") == b"0123456789"
    assert store.get_range("packs/a", 3, 4) == b"3456"
    assert store.get_range("packs/a", 10, 0) == b""
    assert store.size("packs/a") == 10


def test_data_may_come_in_pieces_of_any_buffer(store):
    store.put("a", [b"12", bytearray(b"34"), b"", memoryview(b"x56x")[1:3]])
    assert store.get("a") == b"123456"


def test_an_empty_object_is_an_object(store):
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert list(store.list("e")) == [Stored("empty", 0)]


@pytest.mark.parametrize("method", ["get", "size"])
def test_what_is_not_there_is_not_found(store, method):
    store.put("packs/a", b"1")
    for key in ("nothing", "packs", "packs/a/b"):
        with pytest.raises(NotFound):
            getattr(store, method)(key)


def test_a_range_beyond_the_end_is_damage(store):
    store.put("a", b"12345")
    with pytest.raises(StoreDamaged):
        store.get_range("a", 3, 3)
    with pytest.raises(StoreDamaged):
        store.get_range("a", -1, 2)
    with pytest.raises(NotFound):
        store.get_range("b", 0, 1)


def test_put_replaces_unless_told_otherwise(store):
    assert store.put("a", b"1")
    assert not store.put("a", b"2", if_absent=True)
    assert store.get("a") == b"1"
    assert store.put("a", b"3")
    assert store.get("a") == b"3"
    assert store.put("b", b"4", if_absent=True)


def test_of_many_conditional_puts_one_wins(store):
    ready = threading.Barrier(8)
    won: list[int] = []

    def put(number: int) -> None:
        ready.wait()
        if store.put("lock", b"%d" % number, if_absent=True):
            won.append(number)

    threads = [threading.Thread(target=put, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get("lock") == b"%d" % won[0]


def test_listing_is_sorted_and_by_prefix(store):
    for key in ("packs/b", "packs/a", "packsx", "indexes/c", "config"):
        store.put(key, key.encode())
    assert [s.key for s in store.list("packs/")] == ["packs/a", "packs/b"]
    assert [s.key for s in store.list("packs")] == ["packs/a", "packs/b", "packsx"]
    assert list(store.list("packs/b")) == [Stored("packs/b", 7)]
    assert [s.key for s in store.list()] == ["config", "indexes/c", "packs/a", "packs/b", "packsx"]
    assert list(store.list("nothing/")) == []


def test_delete_is_harmless_when_repeated(store):
    store.put("packs/a", b"1")
    store.delete("packs/a")
    store.delete("packs/a")
    store.delete("never/was")
    assert list(store.list()) == []


def test_a_writer_is_unseen_until_it_commits(store):
    writer = store.writer()
    writer.write([b"12", b"34"])
    writer.write([])
    assert list(store.list()) == []
    assert list(store.leftovers()) == []  # its writer lives
    assert list(store.sweep()) == []
    writer.write([memoryview(b"56")])
    writer.commit("packs/x")
    assert store.get("packs/x") == b"123456"
    writer.abort()
    assert store.get("packs/x") == b"123456"
    with pytest.raises(Conflict):
        writer.write([b"7"])
    with pytest.raises(Conflict):
        writer.commit("packs/y")


def test_an_aborted_writer_leaves_nothing(store):
    writer = store.writer()
    writer.write([b"1234"])
    writer.abort()
    writer.abort()
    assert list(store.list()) == []
    assert list(store.leftovers()) == []


def test_a_writer_may_reuse_its_buffers_and_take_many(store):
    writer = store.writer()
    buffer = bytearray(1)
    for n in range(3):
        buffer[0] = n
        writer.write([buffer])
    writer.write([b"%03d" % n for n in range(1000)])
    writer.commit("many")
    assert store.get("many") == bytes(range(3)) + b"".join(b"%03d" % n for n in range(1000))


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../b", "a//b", "A", "a b", "a/", ".x", "a\n", "a\0"]
)
def test_only_the_stores_own_kind_of_keys(store, key):
    with pytest.raises(InvalidInput):
        store.put(key, b"1")
    with pytest.raises(InvalidInput):
        store.get(key)
    with pytest.raises(InvalidInput):
        store.delete(key)


def test_persist_returns_for_what_is_there_and_what_is_not(store):
    store.put("packs/a", b"1")
    store.persist("packs/")
    store.persist("never/")
    store.persist("")


class TestDirectory:
    def test_files_of_dead_writers_are_left_over_and_swept(self, tmp_path):
        store = DirectoryStore(tmp_path)
        child = os.fork()
        if child == 0:
            store.writer().write([b"half"])
            os._exit(9)
        os.waitpid(child, 0)
        alive = store.writer()
        left = list(store.leftovers())
        assert len(left) == 1
        assert (tmp_path / left[0]).read_bytes() == b"half"
        assert list(store.sweep()) == left
        assert list(store.leftovers()) == []
        alive.write([b"whole"])
        alive.commit("a")
        assert store.get("a") == b"whole"

    def test_temporary_files_are_no_objects(self, tmp_path):
        store = DirectoryStore(tmp_path)
        writer = store.writer()
        name = os.listdir(tmp_path / "tmp")[0]
        with pytest.raises(NotFound):
            store.get(f"tmp/{name}")
        assert list(store.list("tmp/")) == []
        writer.abort()

    def test_a_sweep_between_create_and_lock_is_noticed(self, tmp_path, monkeypatch):
        store = DirectoryStore(tmp_path)
        real = fcntl.flock
        raced: list[DirectoryStore] = []

        def flock(fd, how):
            if not raced:
                raced.append(store)
                for name in os.listdir(tmp_path / "tmp"):
                    os.unlink(tmp_path / "tmp" / name)
            real(fd, how)

        monkeypatch.setattr(fcntl, "flock", flock)
        store.put("a", b"1")
        assert store.get("a") == b"1"

    def test_an_object_is_synced_before_its_name_and_its_name_before_the_answer(
        self, tmp_path, monkeypatch
    ):
        store = DirectoryStore(tmp_path)
        store.put("packs/first", b"1")
        calls: list[str] = []
        real_sync, real_rename = os.fsync, os.rename

        def fsync(fd):
            calls.append("fsync " + os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
            real_sync(fd)

        def rename(source, target):
            calls.append("rename")
            real_rename(source, target)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "rename", rename)
        store.put("packs/a", b"1")
        assert calls[0].startswith(f"fsync {os.getpid()}-")
        assert calls[1:] == ["rename", "fsync packs"]
