"""What a command acknowledged has names that survive a power cut on any file system."""

import os

import pytest

from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.launch import VmRequest, create_vm
from calotype.engine.proof import keys
from calotype.engine.sources import Upload
from calotype.model import OsState
from calotype.run import run


@pytest.fixture
def synced(monkeypatch):
    """The paths that were synced, as they were called then."""
    paths = set()
    real = os.fsync

    def fsync(fd):
        paths.add(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


@pytest.mark.parametrize("state", [OsState.SPECIALIZED, OsState.GENERALIZED])
def test_the_directory_of_a_new_vm_is_synced(context, tmp_path, synced, state):
    disk = tmp_path / "disk.raw"
    disk.write_bytes(os.urandom(1 << 20))
    import_image(context, ImageRequest(name="img", os_state=state), Upload(location=str(disk)), {})
    synced.clear()
    vm = create_vm(context, VmRequest(name="vm", image="img", start=False))
    home = context.home
    assert {str(home.vms), str(home.disks)} <= synced
    if state is OsState.GENERALIZED:
        assert str(context.vm_path(vm.id)) in synced


def test_the_key_pair_is_synced(context, synced):
    home = context.home.prepare()
    public = keys.ensure(home)
    assert {f"{home.keys}/new", f"{home.keys}/new.pub", str(home.keys)} <= synced
    assert public.startswith("ssh-ed25519 ")
    assert keys.private_key(home).stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in home.keys.iterdir()) == ["id_ed25519", "id_ed25519.pub"]


def test_a_half_made_key_pair_is_made_anew(context):
    home = context.home.prepare()
    for name in ("id_ed25519", "new", "new.pub"):
        (home.keys / name).touch(0o600)
    public = keys.ensure(home)
    derived = run(["ssh-keygen", "-y", "-f", str(keys.private_key(home))]).stdout
    assert derived.split()[:2] == public.encode().split()[:2]
    assert keys.ensure(home) == public
