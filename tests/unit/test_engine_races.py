"""Two commands at once, and what a killed one left in a VM: each test meets the other in the worst moment."""

import os
import signal
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest

from calotype import wire
from calotype.config import Home
from calotype.engine import context as context_module
from calotype.engine import export as export_module
from calotype.engine import images, launch, machines, operation, storage
from calotype.engine import moment as moment_module
from calotype.engine.capture import CaptureRequest, capture_vm
from calotype.engine.context import Context
from calotype.engine.export import export_image
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.launch import VmRequest, create_vm
from calotype.engine.proof import settle
from calotype.engine.sources import Upload
from calotype.errors import Conflict, NotFound, TimedOut
from calotype.model import MIB, OsState, PowerState


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A small ext4 disk."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", path, "4M"], check=True)
    return path


class FakeDriver:
    """A driver of VMs that are said to run; it writes down what it is asked for."""

    def __init__(self, power=PowerState.STOPPED):
        self.power, self.calls = power, []

    def state(self, _directory):
        return self.power

    def kill(self, _directory):
        self.calls.append("kill")

    def start(self, _spec):
        self.calls.append("start")

    def detach(self, _directory, disk_id):
        raise NotFound(f"the VM has no disk {disk_id}")

    def point_in_time(self, _directory, _disks, freeze):
        raise AssertionError(freeze)

    def clear_point_in_time(self, _directory):
        self.calls.append("clear")


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


@contextmanager
def opened(home, driver=None):
    """The installation as a command of its own sees it."""
    context = Context(home, driver) if driver else wire.build(home=home)
    try:
        yield context
    finally:
        context.close()


@pytest.fixture
def context(home):
    with opened(home, FakeDriver()) as context:
        yield context


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(context_module, "_PATIENCE", 0.0)


def upload(context, disk, name="img"):
    request = ImageRequest(name=name, os_state=OsState.GENERALIZED)
    return import_image(context, request, Upload(location=str(disk)), {}).image


def create(context, name="vm1", **options):
    wanted = {"image": "img", "start": False, **options}
    return create_vm(context, VmRequest(name=name, **wanted))


def meanwhile(monkeypatch, module, name, action):
    """Let another command do ``action`` just before ``module.name`` is called."""
    original = getattr(module, name)

    def hooked(*arguments, **options):
        monkeypatch.setattr(module, name, original)
        action()
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, hooked)


def delete_image(home, name="img"):
    with opened(home, FakeDriver()) as other:
        images.delete(other, name, force=True)


def test_an_upload_does_not_lose_its_content_to_a_deletion(context, home, disk, monkeypatch):
    upload(context, disk)
    meanwhile(monkeypatch, settle, "settle", lambda: delete_image(home))
    upload(context, disk, "twin")
    assert [image.name for image in context.catalog.list_images()] == ["twin"]
    assert storage.check(context).ok


def test_a_new_vm_does_not_lose_its_base_to_a_deletion(context, home, disk, monkeypatch):
    upload(context, disk)
    meanwhile(monkeypatch, launch, "specification", lambda: delete_image(home))
    vm = create(context, start=True)
    assert context.base_path(vm.os_disk.index).exists()
    assert storage.check(context).ok


def test_an_image_that_is_deleted_before_its_vm_is_there_makes_none(
    context, home, disk, monkeypatch
):
    upload(context, disk)
    meanwhile(monkeypatch, launch, "_placed", lambda: delete_image(home))
    with pytest.raises(NotFound, match="'img' was deleted meanwhile") as caught:
        create(context)
    assert caught.value.hint
    assert context.catalog.list_vms() == []
    assert list(home.vms.iterdir()) == list(home.disks.iterdir()) == []
    assert storage.check(context).ok


def test_an_export_does_not_lose_its_base_to_a_deletion(context, home, disk, tmp_path, monkeypatch):
    upload(context, disk)
    meanwhile(monkeypatch, export_module, "write", lambda: delete_image(home))
    assert export_image(context, "img", tmp_path / "x.qcow2").virtual_size == 4 * MIB
    assert list(home.bases.iterdir()) == []


def test_what_was_kept_for_a_command_goes_after_it(context, home, disk):
    upload(context, disk)
    create(context)
    with context.operation():
        delete_image(home)
        with opened(home, FakeDriver()) as other:
            machines.delete(other, "vm1")
        assert len(list(home.bases.iterdir())) == 1
    machines.create_disk(context, "d", MIB)
    machines.delete_disk(context, "d")
    assert list(home.bases.iterdir()) == []


def test_the_last_disk_of_a_deleted_image_takes_the_content_along(context, home, disk):
    upload(context, disk)
    create(context)
    delete_image(home)
    assert len(context.repository.indexes()) == 1
    machines.delete(context, "vm1")
    assert context.repository.indexes() == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("action", [machines.start, machines.delete, machines.deallocate])
def test_a_stopped_vm_stays_as_it_is_while_it_is_captured(context, home, disk, monkeypatch, action):
    upload(context, disk)
    create(context)

    def act():
        driver = FakeDriver()
        with opened(home, driver) as other, pytest.raises(Conflict, match="VM 'vm1'"):
            action(other, "vm1")
        assert driver.calls == []

    meanwhile(monkeypatch, moment_module, "_consistency_of_stopped", act)
    capture_vm(context, "vm1", CaptureRequest(name="snap"))
    assert context.catalog.vm("vm1").deallocated is False


@pytest.mark.usefixtures("impatient")
def test_a_new_vm_is_not_deleted_before_it_has_started(context, home, disk, monkeypatch):
    upload(context, disk)

    def delete():
        with opened(home, FakeDriver()) as other, pytest.raises(Conflict, match="VM 'vm1'"):
            machines.delete(other, "vm1")

    meanwhile(monkeypatch, launch, "specification", delete)
    create_vm(context, VmRequest(name="vm1", image="img"))
    assert context.driver.calls == ["start"]


def test_a_vm_that_was_deleted_meanwhile_is_not_started(context, home, disk, monkeypatch):
    upload(context, disk)
    create(context)

    def delete():
        with opened(home, FakeDriver()) as other:
            machines.delete(other, "vm1")

    meanwhile(monkeypatch, operation, "lock", delete)
    with pytest.raises(NotFound):
        machines.start(context, "vm1")
    assert context.driver.calls == []
    assert list(home.vms.iterdir()) == []


def test_a_killed_capture_is_cleared_by_the_next_command(context, home, disk):
    class Killer(FakeDriver):
        def point_in_time(self, _directory, _disks, freeze):
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError(freeze)

    upload(context, disk)
    create(context)
    context.close()
    child = os.fork()
    if child == 0:
        with opened(home, Killer(PowerState.RUNNING)) as own:
            capture_vm(own, "vm1", CaptureRequest(name="snap"))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    machines.create_disk(context, "other", MIB)
    assert context.driver.calls == ["clear"]
    assert list(home.tmp.glob("op-*")) == []


def test_a_disk_that_the_vm_does_not_have_can_be_detached(context, disk):
    """A killed attach, or detach, left the catalogue and the VM apart."""
    upload(context, disk)
    create(context)
    machines.create_disk(context, "d", MIB)
    machines.attach(context, "vm1", "d")
    machines.detach(context, "vm1", "d")
    assert context.catalog.disk("d").vm_id is None


def test_all_luns_taken_is_said(context, disk):
    upload(context, disk)
    create(context, new_data_disks=dict.fromkeys(range(64), MIB))
    machines.create_disk(context, "d", MIB)
    with pytest.raises(Conflict, match="all 64 LUNs"):
        machines.attach(context, "vm1", "d")


def test_locks_leave_no_files(context, home, disk):
    upload(context, disk)
    create(context)
    machines.start(context, "vm1")
    machines.delete(context, "vm1")
    assert list(home.tmp.iterdir()) == []


def test_a_lock_that_was_removed_while_it_was_awaited_still_holds(home, monkeypatch):
    """The second of three waits for a file that the first removes; the third must not come in beside it."""
    home.prepare()
    waits, go_on = threading.Event(), threading.Event()

    def second():
        with operation.lock(home, "x", patience=60):
            inside.set()
            go_on.wait()

    inside = threading.Event()
    thread = threading.Thread(target=second)
    with operation.lock(home, "x"):
        monkeypatch.setattr(time, "sleep", lambda _s: waits.set())
        thread.start()
        waits.wait()
    inside.wait()
    with pytest.raises(TimedOut), operation.lock(home, "x", patience=0):
        pass
    go_on.set()
    thread.join()
    assert list(home.tmp.iterdir()) == []
