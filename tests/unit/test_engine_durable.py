"""What a command acknowledged has names that survive a power cut on any file system."""

import os

import pytest

from calotype import wire
from calotype.config import Home
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.launch import VmRequest, create_vm
from calotype.engine.sources import Upload
from calotype.model import OsState


@pytest.fixture
def context(tmp_path):
    made = wire.build(home=Home(tmp_path / "home"))
    yield made
    made.close()


@pytest.mark.parametrize("state", [OsState.SPECIALIZED, OsState.GENERALIZED])
def test_the_directory_of_a_new_vm_is_synced(context, tmp_path, monkeypatch, state):
    disk = tmp_path / "disk.raw"
    disk.write_bytes(os.urandom(1 << 20))
    import_image(context, ImageRequest(name="img", os_state=state), Upload(location=str(disk)), {})
    synced = set()
    real = os.fsync

    def fsync(fd):
        synced.add(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    vm = create_vm(context, VmRequest(name="vm", image="img", start=False))
    home = context.home
    assert {str(home.vms), str(home.disks)} <= synced
    if state is OsState.GENERALIZED:
        assert str(context.vm_path(vm.id)) in synced
