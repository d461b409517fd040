"""``kill -9`` at every durable step of upload, create, capture and delete: the next command converges.

The command line runs under strace, which kills it at its Nth fsync, rename or unlink; then the same
command runs again. Nothing half-made is ever listed, nothing is left in scratch, and the store checks clean.
"""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

from calotype import wire
from calotype.config import Home
from calotype.engine import images, machines, storage
from calotype.engine.capture import CaptureRequest, capture_vm
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.launch import VmRequest, create_vm
from calotype.engine.sources import Upload
from calotype.model import OsState

STRACE = shutil.which("strace") or ""
CALLS = "fsync,fdatasync,rename,renameat2,link,linkat,unlink,unlinkat,mkdir"

pytestmark = pytest.mark.skipif(not STRACE, reason="strace is not installed")


def killed(home, point, *arguments):
    """Run a command that is killed at a point; False when it ended before it got there."""
    inject = f"inject={CALLS}:signal=SIGKILL:when={point}"
    done = subprocess.run(
        [
            *(STRACE, "-f", "-qq", "-o", os.devnull, "-e", f"trace={CALLS}", "-e", inject),
            *(sys.executable, "-m", "calotype", *map(str, arguments)),
        ],
        env={**os.environ, "CALOTYPE_HOME": str(home)},
        capture_output=True,
        check=False,
    )
    assert done.returncode in (0, -9, 137), done.stderr.decode()
    return done.returncode != 0


@contextmanager
def opened(home):
    """The installation, in this process: what the next command sees."""
    context = wire.build(home=Home(home))
    try:
        yield context
    finally:
        context.close()


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A small ext4 disk with something in it."""
    room = tmp_path_factory.mktemp("disk")
    (room / "tree" / "etc").mkdir(parents=True)
    (room / "tree" / "etc" / "data").write_bytes(os.urandom(3 << 20))
    path = room / "disk.raw"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", room / "tree", path, "16M"], check=True)
    return path


def assert_tidy(context):
    """Only what the catalogue lists is there, and all of it is whole."""
    machines.create_disk(context, "tidy", 1 << 20)  # any operation cleans up after the killed one
    machines.delete_disk(context, "tidy")
    assert list(context.home.tmp.glob("op-*")) == []
    vms, disks = context.catalog.list_vms(), context.catalog.list_disks()
    assert {path.name for path in context.home.vms.iterdir()} == {vm.id for vm in vms}
    assert {path.stem for path in context.home.disks.iterdir()} == {disk.id for disk in disks}
    check = storage.check(context)
    assert check.ok, check
    for index in context.catalog.indexes_in_use():
        target = context.home.tmp / "whole.raw"
        context.repository.materialize(index, target)
        target.unlink()


#: Points are spread, ever wider, until the command ends by itself.
POINTS = [1, 2, 4, 7, 11, 16, 22, 30, 40, 52, 70, 95, 130]


def at_points(run):
    """Call ``run(point)`` until it says that the command was not killed any more."""
    hits = 0
    for point in POINTS:
        if not run(point):
            break
        hits += 1
    assert hits >= 4, "the command was hardly ever killed: the test sees nothing"


def upload(context, disk):
    request = ImageRequest(name="img", os_state=OsState.SPECIALIZED)
    return import_image(context, request, Upload(location=str(disk)), {})


def create(context, **options):
    return create_vm(context, VmRequest(name="vm1", image="img", start=False, **options))


def names(resources):
    return [resource.name for resource in resources]


def test_upload(tmp_path, disk):
    def run(point):
        home = tmp_path / f"home{point}"
        hit = killed(
            home, point, "image", "create", "img", "--source", disk, "--os-state", "Specialized"
        )
        with opened(home) as context:
            assert names(context.catalog.list_images()) in ([], ["img"])
            upload(context, disk)
            assert names(context.catalog.list_images()) == ["img"]
            assert_tidy(context)
        return hit

    at_points(run)


@pytest.fixture(scope="module")
def template(tmp_path_factory, disk):
    """An installation with an image of the disk, to copy."""
    home = tmp_path_factory.mktemp("template") / "home"
    with opened(home) as context:
        upload(context, disk)
    return home


def copy(template, target):
    shutil.copytree(template, target, symlinks=True)
    return target


def test_create(tmp_path, template):
    def run(point):
        home = copy(template, tmp_path / f"home{point}")
        hit = killed(home, point, "vm", "create", "vm1", "--image", "img", "--no-start")
        with opened(home) as context:
            if not context.catalog.list_vms():
                create(context)
            assert names(context.catalog.list_vms()) == ["vm1"]
            assert_tidy(context)
        return hit

    at_points(run)


def test_capture(tmp_path, template):
    def run(point):
        home = copy(template, tmp_path / f"home{point}")
        with opened(home) as context:
            create(context, new_data_disks={0: 4 << 20})
        hit = killed(home, point, "vm", "capture", "vm1", "--image", "snap")
        with opened(home) as context:
            assert names(context.catalog.list_images()) in (["img"], ["img", "snap"])
            if context.catalog.find_image("snap") is None:
                capture_vm(context, "vm1", CaptureRequest(name="snap"))
            img, snap = context.catalog.image("img"), context.catalog.image("snap")
            assert snap.os_disk == img.os_disk
            assert_tidy(context)
        return hit

    at_points(run)


def test_delete(tmp_path, template):
    def run(point):
        home = copy(template, tmp_path / f"home{point}")
        with opened(home) as context:
            create(context)
        hit = killed(home, point, "vm", "delete", "vm1")
        with opened(home) as context:
            if context.catalog.list_vms():
                machines.delete(context, "vm1")
            images.delete(context, "img")
            catalog = context.catalog
            assert catalog.list_vms() == catalog.list_disks() == catalog.list_images() == []
            assert_tidy(context)
            assert list(context.home.bases.iterdir()) == []
        return hit

    at_points(run)
