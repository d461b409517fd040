"""Restore points: what they keep, what keeps them, and the way back."""

import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from typing import Any, cast

import pytest
from tests.used_vm import MIB, attach_new, contents, os_disk, used_vm, write

from calotype.catalog import Catalog
from calotype.disk import blank
from calotype.engine import adopt, images, machines, storage
from calotype.engine.base import bases
from calotype.engine.context import Context
from calotype.engine.generalize.restore import (
    delete_point,
    list_points,
    restore,
    take_restore_point,
)
from calotype.engine.launch import VmRequest, create_vm
from calotype.errors import Conflict, NotAllowed, NotFound, StoreDamaged
from calotype.model import Consistency, PowerState


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    return os_disk(tmp_path_factory.mktemp("used") / "os.raw")


@pytest.fixture
def vm(context, disk):
    return used_vm(context, disk)


def prune(context):
    """Twice: the second frees what the first condemned."""
    for _ in range(2):
        storage.prune(context, grace=timedelta(), empty=True)


def files(context):
    return {path.stem for path in context.home.disks.iterdir()}


def spoil(context, vm):
    """Write to all disks of a VM."""
    for disk in context.catalog.vm(vm.name).disks:
        write(context, disk, 2 * MIB, 65_536, 0xEE)


def test_back_bit_by_bit_and_as_often_as_wanted(context, vm):
    before = contents(context, "web")
    point = take_restore_point(context, "web", "a test")
    assert point.consistency is Consistency.APPLICATION
    assert list_points(context, "web") == [point]
    for _ in range(2):
        spoil(context, vm)
        assert not set(contents(context, "web").values()) & set(before.values())
        restored = restore(context, "web")
        assert contents(context, "web") == before
        assert (restored.detached, restored.returned, restored.remade) == ((), (), ())
    assert list_points(context, "web") == [point]
    assert files(context) == {disk.file for disk in context.catalog.list_disks()}
    assert [path for path in context.home.tmp.iterdir() if path.is_dir()] == []


def test_the_newest_or_the_one_that_is_named(context, vm):
    first = contents(context, "web")
    old = take_restore_point(context, "web", "first")
    spoil(context, vm)
    second = contents(context, "web")
    new = take_restore_point(context, "web", "second")
    assert [point.id for point in list_points(context, "web")] == [new.id, old.id]
    restore(context, "web", old.id)
    assert contents(context, "web") == first
    restore(context, "web")
    assert contents(context, "web") == second


def test_disks_that_came_and_went(context, vm):
    attach_new(context, "web", "logs", 5)
    before = contents(context, "web")
    take_restore_point(context, "web", "a test")
    machines.detach(context, "web", "logs")
    machines.detach(context, "web", "web-lun0")
    machines.delete_disk(context, "web-lun0")
    machines.create_disk(context, "web-lun0", MIB)  # takes its name
    attach_new(context, "web", "new", 0)
    restored = restore(context, "web")
    assert restored.detached == ("new",)
    assert restored.returned == ("logs",)
    assert restored.remade == ("web-lun0-2",)
    after = {
        key.replace("web-lun0-2", "web-lun0"): v for key, v in contents(context, "web").items()
    }
    assert after == before
    assert context.catalog.disk("new").vm_id is None
    assert context.catalog.disk("new").lun is None
    assert files(context) == {disk.file for disk in context.catalog.list_disks()}


def test_a_disk_of_another_vm_stays_there(context, vm):
    take_restore_point(context, "web", "a test")
    create_vm(
        context,
        VmRequest(name="other", image="img", start=False, allow_duplicate_identity=True),
    )
    machines.detach(context, "web", "web-lun0")
    machines.attach(context, "other", "web-lun0", lun=1)
    before = contents(context, "web") | contents(context, "other")
    with pytest.raises(Conflict, match=r"'web-lun0' .* another VM"):
        restore(context, "web")
    point = list_points(context, "web")[0]
    with pytest.raises(Conflict, match="another VM"):  # it came there after the engine looked
        context.catalog.restore_points.go_back(point, {d.disk_id: "x" for d in point.disks})
    assert contents(context, "web") | contents(context, "other") == before


def test_prune_does_not_take_a_restore_point(context, vm):
    before = contents(context, "web")
    point = take_restore_point(context, "web", "a test")
    spoil(context, vm)
    images.delete(context, "img", force=True)
    machines.detach(context, "web", "web-lun0")
    machines.delete_disk(context, "web-lun0")
    assert {disk.index for disk in point.disks} <= context.catalog.indexes_in_use()
    prune(context)
    assert storage.check(context).ok
    assert storage.stats(context).unreferenced == 0
    restore(context, "web")
    assert contents(context, "web") == before


def test_without_the_catalogues_word_prune_would_take_it(context, vm, monkeypatch):
    """The test above can fail."""
    take_restore_point(context, "web", "a test")
    monkeypatch.setattr(
        Catalog,
        "indexes_in_use",
        lambda self, _among=None: (
            {disk.index for image in self.list_images() for disk in image.disks}
            | {disk.index for disk in self.list_disks() if disk.index}
        ),
    )
    prune(context)
    with pytest.raises((NotFound, StoreDamaged)):
        restore(context, "web")


def test_a_deleted_point_frees_what_only_it_needed(context, vm):
    prune(context)
    before = storage.stats(context).stored
    point = take_restore_point(context, "web", "a test")
    assert storage.stats(context).stored > before
    assert storage.stats(context).unreferenced == 0
    delete_point(context, "web", point.id)
    assert list_points(context, "web") == []
    prune(context)
    assert storage.stats(context).stored == before


def test_a_deleted_vm_takes_its_points_along(context, vm):
    take_restore_point(context, "web", "first")
    spoil(context, vm)
    take_restore_point(context, "web", "second")
    assert machines.delete(context, "web") == 2
    images.delete(context, "img")
    prune(context)
    assert context.catalog.restore_points.indexes() == set()
    assert context.repository.indexes() == []
    assert storage.stats(context).stored == 0


def test_the_command_says_how_many_go_with_the_vm(context, vm):
    take_restore_point(context, "web", "a test")
    done = subprocess.run(
        [sys.executable, "-m", "calotype", "vm", "delete", "web"],
        env={"CALOTYPE_HOME": str(context.home.root), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout == "1 restore point went with it\n"


def test_the_store_is_not_confused(context, vm):
    point = take_restore_point(context, "web", "a test")
    assert adopt.adopt(context) == []
    usage = storage.stats(context)
    assert [image.image for image in usage.images] == ["img"]
    assert usage.unreferenced == 0
    context.repository.delete_index(point.disks[0].index)
    checked = storage.check(context)
    assert f"indexes/{point.disks[0].index}: missing" in checked.damaged


def test_a_damaged_store_costs_nothing(context, vm):
    take_restore_point(context, "web", "a test")
    spoil(context, vm)
    overlays = files(context)
    for pack in context.home.store.glob("packs/**/*"):
        if pack.is_file():
            pack.chmod(0o600)
            data = bytearray(pack.read_bytes())
            data[len(data) // 3] ^= 1
            pack.write_bytes(data)
    for base in context.home.bases.glob("*.raw"):
        base.unlink()
    with pytest.raises(StoreDamaged):
        restore(context, "web")
    assert files(context) == overlays
    assert context.catalog.vm("web") == vm


class Running:
    """A driver of a VM that runs until it is killed."""

    def __init__(self, driver):
        self.state_now, self.calls, self._driver = PowerState.RUNNING, [], driver

    def state(self, _directory):
        return self.state_now

    def kill(self, _directory):
        self.calls.append("kill")
        self.state_now = PowerState.STOPPED

    def release(self, directory):
        self.calls.append("release")
        self._driver.release(directory)


def test_a_running_vm_is_not_pulled_from_under_its_guest(context, vm):
    before = contents(context, "web")
    take_restore_point(context, "web", "a test")
    spoil(context, vm)
    driver = Running(context.driver)
    other = Context(context.home, cast("Any", driver))
    try:
        with pytest.raises(NotAllowed, match="runs") as refused:
            restore(other, "web")
        assert "--force-stop" in str(refused.value.hint)
        assert driver.calls == []
        restore(other, "web", force_stop=True)
        assert driver.calls == ["kill", "release"]
    finally:
        other.close()
    assert contents(context, "web") == before


def test_what_is_not_there(context, vm):
    with pytest.raises(NotFound, match="'web' has no restore point"):
        restore(context, "web")
    with pytest.raises(NotFound, match="no restore point 'x'"):
        restore(context, "web", "x")
    with pytest.raises(NotFound, match="no restore point 'x'"):
        delete_point(context, "web", "x")
    with pytest.raises(NotFound, match="no restore point 'x'"):
        context.catalog.restore_points.delete("x")
    point = take_restore_point(context, "web", "a test")
    assert context.catalog.restore_points.list(vm.id) == [point]
    machines.delete(context, "web")
    with pytest.raises(NotFound, match="there is no VM"):
        context.catalog.restore_points.add(point)
    with pytest.raises(NotFound, match="there is no VM"):
        context.catalog.restore_points.go_back(point, {})


def test_old_overlays_go_only_after_the_commit(context, vm, monkeypatch):
    """Whatever fails before it, the VM is as it was and nothing is left."""
    take_restore_point(context, "web", "a test")
    spoil(context, vm)
    before, overlays = contents(context, "web"), files(context)
    for name in ("ensure", "create", "go_back"):
        with monkeypatch.context() as patch, suppress(RuntimeError):
            holder = {
                "ensure": bases,
                "create": blank,
                "go_back": type(context.catalog.restore_points),
            }[name]
            patch.setattr(holder, name, failing)
            restore(context, "web")
            pytest.fail("restored")
        assert contents(context, "web") == before
        assert files(context) == overlays


def failing(*_arguments, **_options):
    raise RuntimeError("a fault")
