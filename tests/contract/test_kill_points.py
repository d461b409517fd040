"""``kill -9`` at every durable step of upload, create, capture and delete: the next command converges.

The command line runs under strace, which kills it at its Nth fsync, rename or unlink; then the same
command runs again. Nothing half-made is ever listed, nothing is left in scratch, and the store checks clean.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

STRACE = shutil.which("strace")
CALLS = "fsync,fdatasync,rename,renameat2,link,linkat,unlink,unlinkat,mkdir"

pytestmark = pytest.mark.skipif(STRACE is None, reason="strace is not installed")


class Cli:
    def __init__(self, home):
        self.home = home
        self.env = {**os.environ, "CALOTYPE_HOME": str(home)}

    def argv(self, *arguments):
        return [sys.executable, "-m", "calotype", *map(str, arguments)]

    def __call__(self, *arguments):
        done = subprocess.run(
            self.argv(*arguments, "-o", "json"), env=self.env, capture_output=True, check=False
        )
        assert done.returncode == 0, (arguments, done.stderr.decode())
        return json.loads(done.stdout) if done.stdout.strip() else None

    def killed(self, point, *arguments):
        """Run a command that is killed at a point; False when it ended before it got there."""
        inject = f"inject={CALLS}:signal=SIGKILL:when={point}"
        done = subprocess.run(
            [
                STRACE,
                "-f",
                "-qq",
                "-o",
                os.devnull,
                "-e",
                f"trace={CALLS}",
                "-e",
                inject,
                *self.argv(*arguments),
            ],
            env=self.env,
            capture_output=True,
            check=False,
        )
        assert done.returncode in (0, -9, 137), done.stderr.decode()
        return done.returncode != 0


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A small ext4 disk with something in it."""
    room = tmp_path_factory.mktemp("disk")
    (room / "tree" / "etc").mkdir(parents=True)
    (room / "tree" / "etc" / "data").write_bytes(os.urandom(3 << 20))
    path = room / "disk.raw"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", room / "tree", path, "16M"], check=True)
    return path


def assert_tidy(cli):
    """Only what the catalogue lists is there, and all of it is whole."""
    cli("disk", "create", "tidy", "--size", "1M")  # any operation cleans up after the killed one
    cli("disk", "delete", "tidy")
    assert [path.name for path in (cli.home / "tmp").glob("op-*")] == []
    vms, disks = cli("vm", "list"), cli("disk", "list")
    assert {p.name for p in (cli.home / "vms").iterdir()} == {vm["id"] for vm in vms}
    assert {p.stem for p in (cli.home / "disks").iterdir()} == {d["id"] for d in disks}
    check = cli("store", "check")
    assert check["ok"], check
    for image in cli("image", "list"):
        target = cli.home / "out.raw"
        cli("image", "export", image["name"], target, "--overwrite")
        target.unlink()


#: Points are spread: early ones by one, later ones ever wider, until the command ends by itself.
POINTS = [1, 2, 3, 5, 8, 12, 17, 23, 30, 38, 47, 57, 68, 80, 100, 130]


def at_points(run):
    """Call ``run(point)`` until it says that the command was not killed any more."""
    killed = 0
    for point in POINTS:
        if not run(point):
            break
        killed += 1
    assert killed >= 5, "the command was hardly ever killed: the test sees nothing"


def test_upload(tmp_path, disk):
    def run(point):
        cli = Cli(tmp_path / f"home{point}")
        arguments = ("image", "create", "img", "--source", disk, "--os-state", "Specialized")
        killed = cli.killed(point, *arguments)
        names = [image["name"] for image in cli("image", "list")]
        assert names in ([], ["img"])
        cli(*arguments)
        assert [image["name"] for image in cli("image", "list")] == ["img"]
        assert_tidy(cli)
        return killed

    at_points(run)


@pytest.fixture(scope="module")
def home(tmp_path_factory, disk):
    """An installation with an image of the disk and a stopped VM, to copy."""
    cli = Cli(tmp_path_factory.mktemp("template") / "home")
    cli("image", "create", "img", "--source", disk, "--os-state", "Specialized")
    return cli.home


def copy(home, target):
    shutil.copytree(home, target, copy_function=shutil.copy2, symlinks=True)
    return Cli(target)


def test_create(tmp_path, home):
    def run(point):
        cli = copy(home, tmp_path / f"home{point}")
        killed = cli.killed(point, "vm", "create", "vm1", "--image", "img", "--no-start")
        if not cli("vm", "list"):
            cli("vm", "create", "vm1", "--image", "img", "--no-start")
        assert [vm["name"] for vm in cli("vm", "list")] == ["vm1"]
        assert_tidy(cli)
        return killed

    at_points(run)


def test_capture(tmp_path, home):
    def run(point):
        cli = copy(home, tmp_path / f"home{point}")
        cli("vm", "create", "vm1", "--image", "img", "--no-start", "--data-disk-sizes", "4M")
        killed = cli.killed(point, "vm", "capture", "vm1", "--image", "snap")
        names = {image["name"] for image in cli("image", "list")}
        assert names in ({"img"}, {"img", "snap"})
        if "snap" not in names:
            cli("vm", "capture", "vm1", "--image", "snap")
        assert cli("image", "show", "snap")["osDisk"] == cli("image", "show", "img")["osDisk"]
        assert_tidy(cli)
        return killed

    at_points(run)


def test_delete(tmp_path, home):
    def run(point):
        cli = copy(home, tmp_path / f"home{point}")
        cli("vm", "create", "vm1", "--image", "img", "--no-start")
        killed = cli.killed(point, "vm", "delete", "vm1")
        if cli("vm", "list"):
            cli("vm", "delete", "vm1")
        cli("image", "delete", "img")
        assert cli("vm", "list") == cli("disk", "list") == cli("image", "list") == []
        assert_tidy(cli)
        assert list((cli.home / "bases").iterdir()) == []
        return killed

    at_points(run)
