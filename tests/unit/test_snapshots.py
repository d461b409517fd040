"""Snapshots: what they hold, what keeps them, disks of them."""

from contextlib import closing
from datetime import timedelta

import pytest
from tests.used_vm import MIB, digest, digest_of, os_disk, used_vm, write

from calotype.cli import run
from calotype.engine import images, machines, snapshots, storage
from calotype.engine import moment as moments
from calotype.errors import Conflict, Forbidden, InvalidInput, NotFound
from calotype.model import Caller, Consistency, OsType, Scope


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    return os_disk(tmp_path_factory.mktemp("used") / "os.raw")


@pytest.fixture
def vm(context, disk):
    return used_vm(context, disk)


def held(context, snapshot):
    """The digest of what a snapshot holds."""
    with closing(context.repository.open(snapshot.index)) as opened:
        return digest(opened)


def test_a_disk_of_a_stopped_vm(context, vm):
    before = digest_of(context, vm.os_disk)
    taken = snapshots.create(context, "snap", "web-os", tags={"a": "b"})
    snapshot = taken.snapshot
    write(context, vm.os_disk, 2 * MIB, 65_536, 0xEE)
    assert held(context, snapshot) == before != digest_of(context, vm.os_disk)
    assert context.catalog.snapshots.get("snap") == snapshot
    assert context.catalog.snapshots.get(snapshot.id) == snapshot
    assert context.catalog.snapshots.list() == [snapshot]
    assert snapshot.disk_id == vm.os_disk.id
    assert snapshot.image_id == vm.image_id
    assert snapshot.os_type is OsType.LINUX
    assert snapshot.consistency is Consistency.APPLICATION
    assert snapshot.tags == {"a": "b"}
    assert taken.disk.changed < 1 * MIB < snapshot.size  # only what changed was read


def test_disks_that_no_vm_has(context, vm):
    machines.create_disk(context, "empty", 2 * MIB)
    assert snapshots.create(context, "nothing", "empty").snapshot.os_type is None
    machines.delete(context, "web", keep_disks=True)
    os_snapshot = snapshots.create(context, "os", "web-os").snapshot
    assert os_snapshot.os_type is OsType.LINUX
    assert held(context, os_snapshot) == digest_of(context, context.catalog.disk("web-os"))
    data = snapshots.create(context, "data", "web-lun0").snapshot
    assert data.os_type is None
    images.delete(context, "img")
    assert snapshots.create(context, "os2", "web-os").snapshot.os_type is None  # nobody can tell


def test_the_store_keeps_what_snapshots_need(context, vm):
    write(context, vm.data_disks[0], 0, MIB, 1)
    snapshot = snapshots.create(context, "snap", "web-lun0").snapshot
    before = held(context, snapshot)
    machines.delete(context, "web")
    images.delete(context, "img")
    assert snapshot.index in context.system.indexes_in_use()
    for _ in range(2):
        storage.prune(context, grace=timedelta(), empty=True)
    assert held(context, snapshot) == before
    snapshots.delete(context, "snap")
    assert snapshot.index not in set(context.repository.indexes())
    with pytest.raises(NotFound, match="no snapshot 'snap'"):
        context.catalog.snapshots.get("snap")


def test_a_disk_of_a_snapshot(context, vm):
    snapshot = snapshots.create(context, "snap", "web-lun0").snapshot
    made = machines.create_disk(context, "copy", source="snap")
    assert (made.index, made.size, made.image_id) == (snapshot.index, snapshot.size, None)
    assert digest_of(context, made) == held(context, snapshot)
    larger = machines.create_disk(context, "larger", 2 * snapshot.size, source="snap")
    assert larger.size == 2 * snapshot.size
    snapshots.delete(context, "snap")
    machines.attach(context, "web", "copy", lun=5)  # it goes on
    assert digest_of(context, made) == digest_of(context, vm.data_disks[0])
    snapshots.create(context, "again", "web-lun0")
    with pytest.raises(InvalidInput, match="cannot shrink") as caught:
        machines.create_disk(context, "small", MIB, source="again")
    assert caught.value.hint == "leave the size out, or name a larger one"
    with pytest.raises(NotFound, match="no snapshot"):
        machines.create_disk(context, "other", source="snap")


def test_names(context, vm):
    snapshots.create(context, "snap", "web-os")
    with pytest.raises(Conflict, match="'snap' exists already"):
        snapshots.create(context, "snap", "web-os")
    with pytest.raises(InvalidInput):
        snapshots.create(context, "../snap", "web-os")
    with pytest.raises(NotFound, match="no disk"):
        snapshots.create(context, "other", "none")


@pytest.mark.parametrize("how", ["attached", "written"])
def test_a_disk_that_was_used_meanwhile(context, vm, monkeypatch, how):
    machines.detach(context, "web", "web-lun0")
    disk = context.catalog.disk("web-lun0")

    def take(*arguments):
        if how == "attached":
            context.catalog.attach_disk(disk.id, vm.id, 7)
        else:
            write(context, disk, 0, 65_536, 0xEE)
        return moments.take(*arguments)

    monkeypatch.setattr(snapshots, "take", take)
    with pytest.raises(Conflict, match="meanwhile") as caught:
        snapshots.create(context, "snap", "web-lun0")
    assert caught.value.hint == "take the snapshot again"
    assert context.catalog.snapshots.list() == []


def test_others_do_not_see_it(context, vm):
    snapshot = snapshots.create(context, "snap", "web-os").snapshot
    stranger = context.catalog.of(Caller("eve", Scope()))
    with pytest.raises(NotFound):
        stranger.snapshots.get(snapshot.id)
    assert stranger.snapshots.list() == []
    with pytest.raises(NotFound):
        stranger.snapshots.delete(snapshot.id)
    with pytest.raises(Forbidden):
        stranger.snapshots.require_free("mine")


def test_the_commands(context, vm, monkeypatch, capsys):
    monkeypatch.setenv("CALOTYPE_HOME", str(context.home.root))
    assert run(["snapshot", "create", "snap", "--source", "web-os", "--tags", "a=b"]) == 0
    assert "read" in capsys.readouterr().out
    assert run(["snapshot", "list"]) == 0
    assert "snap" in capsys.readouterr().out
    assert run(["disk", "create", "copy", "--source", "snap", "-o", "none"]) == 0
    assert run(["snapshot", "show", "snap", "-o", "json"]) == 0
    assert '"osType": "Linux"' in capsys.readouterr().out
    assert run(["snapshot", "delete", "snap"]) == 0
    assert run(["snapshot", "show", "snap"]) == 3
