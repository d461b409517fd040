"""The keeper and the filler of a base that is not whole, without guests: one for all, whatever is killed."""

import json
import os
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from calotype import wire
from calotype.config import Home
from calotype.disk.base import Extent, read
from calotype.disk.nbd import NbdDisk
from calotype.disk.view import RawSource
from calotype.engine import images, machines, storage
from calotype.engine.base import bases
from calotype.engine.base.partial import Partial
from calotype.engine.capture import CaptureRequest, capture_vm
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.launch import VmRequest, create_vm
from calotype.engine.sources import Upload
from calotype.errors import NotFound, StoreDamaged, ToolFailed
from calotype.model import MIB, OsState
from calotype.store import Repository

SIZE = 24 * MIB


def wait(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)  # processes of other sessions have no event that we could await


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An ext4 disk with 8 MiB in it."""
    room = tmp_path_factory.mktemp("disk")
    (room / "tree" / "etc").mkdir(parents=True)
    (room / "tree" / "usr").mkdir()
    (room / "tree" / "etc" / "os-release").write_text('ID=debian\nPRETTY_NAME="Test"\n')
    (room / "tree" / "etc" / "machine-id").touch()
    (room / "tree" / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    for number in range(4):
        (room / "tree" / "etc" / f"blob{number}").write_bytes(
            random.Random(number).randbytes(2 * MIB)
        )
    path = room / "os.raw"
    tree = str(room / "tree")
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, str(path), "24M"], check=True)
    return path


@pytest.fixture
def context(tmp_path, source, monkeypatch):
    monkeypatch.setenv("CALOTYPE_LAZY_ABOVE", "0")
    context = wire.build(home=Home(tmp_path / "home"))
    image = ImageRequest(name="img", os_state=OsState.GENERALIZED)
    import_image(context, image, Upload(location=str(source)), {})
    yield context
    for partial in Partial.all(context.home):
        partial.remove()
    context.close()


@pytest.fixture
def index(context):
    return context.catalog.image("img").os_disk.index


@pytest.fixture
def scratch(context):
    return context.home.prepare().tmp


@pytest.fixture
def partial(context, index):
    return Partial.of(context.home, index)


def vm(context, name="vm1"):
    return create_vm(context, VmRequest(name=name, image="img", start=False))


def client(base):
    return closing(NbdDisk(base.socket, base.export))


def processes(word, partial):
    """The processes of a base, by what they do."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if (
                words[1:5] == [b"-P", b"-m", b"calotype.daemon", word.encode()]
                and partial.index.encode() in words
            ):
                found.append(int(entry.name))
    return found


def stats(partial):
    path = partial.root / "stats.json"
    return json.loads(path.read_bytes()) if path.exists() else {}


def hurry(partial):
    (partial.root / "hurry").touch()


def test_a_base_is_served_before_it_is_whole(context, index, scratch, partial, source):
    disk = RawSource(source).open()
    with bases.held(context, [index], scratch) as found, client(found[index]) as served:
        assert found[index] == partial.base
        assert served.size == SIZE
        assert read(served, 5 * MIB, MIB) == read(disk, 5 * MIB, MIB)
        assert partial.alive()
        assert not context.base_path(index).exists()
        hurry(partial)
        wait(context.base_path(index).exists)
        assert read(served, 0, SIZE) == source.read_bytes()  # goes on while it is held
        assert partial.alive()
    wait(lambda: not partial.exists())
    wait(lambda: not processes("keep", partial) and not processes("fill", partial))
    base = context.base_path(index)
    assert base.read_bytes() == source.read_bytes()
    assert base.stat().st_mode & 0o777 == 0o444
    with bases.held(context, [index], scratch) as found:
        assert found[index] == base


def test_commands_at_once_share_one_server(context, index, scratch, partial, source):
    def use(number):
        mine = wire.build(home=context.home)
        try:
            with (
                bases.held(mine, [index], scratch) as found,
                closing(NbdDisk(partial.base.socket, index)) as served,
            ):
                assert found[index] == partial.base
                offset = number * MIB
                assert read(served, offset, MIB) == source.read_bytes()[offset : offset + MIB]
                assert len(processes("keep", partial)) == 1
        finally:
            mine.close()

    with bases.held(context, [index], scratch), ThreadPoolExecutor(6) as pool:
        list(pool.map(use, range(6)))


def test_whoever_needs_the_whole_waits_for_it(context, index, scratch, partial, source):
    with bases.held(context, [index], scratch):
        path = bases.ensure(context, index, scratch)
        assert path.read_bytes() == source.read_bytes()
    wait(lambda: not partial.exists())


def test_a_small_base_is_made_at_once(context, index, scratch, partial, monkeypatch):
    monkeypatch.setenv("CALOTYPE_LAZY_ABOVE", "64M")
    del context.__dict__["settings"]
    with bases.held(context, [index], scratch) as found:
        assert found[index] == context.base_path(index)
    assert not partial.exists()


def test_a_killed_filler_is_replaced_and_its_clients_come_back(
    context, index, scratch, partial, source
):
    with bases.held(context, [index], scratch):
        for offset in (0, 9 * MIB):
            with client(partial.base) as served:
                wait(lambda: processes("fill", partial))
                assert read(served, offset, MIB) == source.read_bytes()[offset : offset + MIB]
                (pid,) = processes("fill", partial)
                os.kill(pid, signal.SIGKILL)
                wait(lambda pid=pid: pid not in processes("fill", partial))
                with pytest.raises(ToolFailed):
                    read(served, 0, 512)
        hurry(partial)
        wait(context.base_path(index).exists)
        assert context.base_path(index).read_bytes() == source.read_bytes()


@pytest.mark.parametrize("fetched", [0, 3 * MIB, 7 * MIB])
def test_a_killed_server_is_continued_by_the_next_command(
    context, index, scratch, partial, source, fetched
):
    with bases.held(context, [index], scratch) as found, client(found[index]) as served:
        read(served, 0, fetched or 512)
        if fetched:
            wait((partial.root / "map").exists)
    (pid,) = processes("keep", partial)
    os.kill(pid, signal.SIGKILL)
    wait(lambda: not partial.alive() and not processes("fill", partial))
    with open(partial.root / "data", "r+b") as file:  # and the crash left rot behind
        file.seek(MIB + 77)
        file.write(b"rot")
    with bases.held(context, [index], scratch) as found, client(found[index]) as served:
        assert read(served, 0, 4 * MIB) == source.read_bytes()[: 4 * MIB]
        hurry(partial)
        wait(context.base_path(index).exists)
    assert context.base_path(index).read_bytes() == source.read_bytes()


def test_a_stopped_server_writes_down_what_it_has(context, index, scratch, partial, source):
    with bases.held(context, [index], scratch) as found, client(found[index]) as served:
        assert read(served, 0, 5 * MIB) == source.read_bytes()[: 5 * MIB]
    partial.stop()
    assert not partial.alive()
    assert (partial.root / "map").exists()
    with bases.held(context, [index], scratch) as found, client(found[index]) as served:
        assert read(served, 0, 5 * MIB) == source.read_bytes()[: 5 * MIB]
        partial.stop()
    assert stats(partial)["fetched"] < MIB < stats(partial)["read"]


def test_a_whole_base_whose_server_was_killed_is_served_until_it_is_free(
    context, index, scratch, partial, source
):
    with bases.held(context, [index], scratch):
        bases.ensure(context, index, scratch)
        (pid,) = processes("keep", partial)
        os.kill(pid, signal.SIGKILL)
        wait(lambda: not partial.alive() and not processes("fill", partial))
        vm(context)  # a disk that needs it
        bases.revive(context)
        with client(partial.base) as served:
            assert read(served, 0, SIZE) == source.read_bytes()
    wait(lambda: not partial.exists())


def test_the_server_of_a_directory_that_is_gone_ends(context, index, scratch, partial):
    with bases.held(context, [index], scratch):
        pass
    wait(lambda: processes("fill", partial))
    os.rename(partial.root, partial.root.with_name("elsewhere"))
    wait(lambda: not processes("keep", partial) and not processes("fill", partial))


def test_deleting_the_last_vm_ends_the_server_and_keeps_what_it_has(context, partial):
    vm(context)
    vm(context, "vm2")
    assert partial.alive()
    machines.delete(context, "vm1")
    assert partial.alive()
    machines.delete(context, "vm2")
    assert not partial.alive()
    assert partial.exists()
    images.delete(context, "img")
    assert not partial.exists()
    assert storage.check(context).ok


def test_a_vm_on_a_partial_base_is_captured(context, index, partial, source):
    made = vm(context)
    captured = capture_vm(context, "vm1", CaptureRequest(name="copy"))
    assert captured.disks[0].ingested.index == index
    assert made.os_disk.index == index
    assert partial.alive()
    assert not context.base_path(index).exists()


def test_what_is_missing_is_said_by_the_command(context, scratch):
    with pytest.raises(NotFound), bases.held(context, ["0" * 64], scratch):
        pass
    assert Partial.all(context.home) == []


def test_damage_is_said_to_whoever_waits(context, index, scratch, partial):
    largest = max((context.home.store / "packs").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 255
    largest.write_bytes(data)
    with bases.held(context, [index], scratch), pytest.raises(StoreDamaged):
        bases.ensure(context, index, scratch)
    assert not context.base_path(index).exists()
    assert partial.alive()


def test_a_profile_is_followed(context, index, scratch, partial):
    wanted = [Extent(4 * MIB, MIB, zero=False), Extent(0, 8192, zero=False)]
    context.repository.keep_boot_profile(index, wanted)
    with bases.held(context, [index], scratch):
        wait(lambda: stats(partial).get("followed"))
        partial.stop()
        with closing(Repository(context.objects).partial(index, partial.root)) as base:
            for extent in wanted:
                base.fetch(extent.offset, extent.length)
            assert base.fetched == 0


def test_the_filler_sees_nothing_but_the_store_and_its_base(context, index, scratch, partial):
    with bases.held(context, [index], scratch) as found, client(found[index]) as served:
        read(served, 0, 512)
        (pid,) = processes("fill", partial)
        home = Path(f"/proc/{pid}/root{context.home.root}")
        assert not (home / "catalog.db").exists()
        assert [path.name for path in (home / "bases").iterdir()] == [partial.root.name]
        assert not any(list((home / name).iterdir()) for name in ("vms", "disks", "keys", "tmp"))
        with pytest.raises(OSError, match="Read-only"):
            (home / "store" / "packs" / "new").touch()
