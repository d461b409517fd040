"""``kill -9`` of a capture of a running VM, at any moment: the next command clears up, and the VM goes on."""

import time
from pathlib import Path

import pytest

from calotype.machine.layout import Layout
from calotype.machine.qmp import Qmp

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def vm(cli, tiny):
    """A running VM with a data disk; its directory."""
    cli.run("image", "create", "tiny", "--source", tiny, "--os-state", "Generalized")
    made = cli(
        *("vm", "create", "web", "--image", "tiny", "--memory", "128M"),
        *("--data-disk-sizes", "64M", "--wait"),
    )
    cli.run("vm", "wait", "web", "--for", "agent")
    return Path(cli.home) / "vms" / made["id"]


def kill_when(process, exists):
    """Kill a command as soon as something is there."""
    while not exists():
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.001)
    process.kill()
    process.communicate()


def left(vm):
    """What a capture has in the VM's process."""
    with Qmp.open(Layout(vm).query) as qmp:
        nodes = {n["node-name"] for n in qmp.execute("query-named-block-nodes", {"flat": True})}
        jobs = {job["id"] for job in qmp.execute("query-jobs")}
        exports = {export["id"] for export in qmp.execute("query-block-exports")}
    return {name for name in nodes | jobs | exports if name.startswith("pit-")}


@pytest.mark.parametrize(
    ("moment", "options"),
    [
        ("vms/*/run/pit-*", ()),
        ("vms/*/run/nbd.sock", ()),
        ("tmp/op-*/generalized.qcow2", ("--generalize",)),
        ("tmp/op-*/view-*/part", ("--generalize",)),
    ],
)
def test_the_next_command_clears_up(cli, vm, moment, options):
    capture = cli.start("vm", "capture", "web", "--image", "lost", *options)
    kill_when(capture, lambda: any(cli.home.glob(moment)))
    assert left(vm) or any(vm.glob("run/pit-*"))
    cli.run("disk", "create", "any", "--size", "1M")
    assert left(vm) == set()
    assert list(vm.glob("run/pit-*")) == []
    assert list(cli.home.glob("tmp/op-*")) == []
    assert [image["name"] for image in cli("image", "list")] == ["tiny"]
    assert cli.guest("web", "echo on > /root/written && sync && cat /root/written") == "on"
    cli.run("disk", "delete", "any")


def test_the_vm_is_captured_after_all(cli, vm):
    capture = cli.start("vm", "capture", "web", "--image", "lost")
    kill_when(capture, (vm / "run" / "nbd.sock").exists)
    done = cli("vm", "capture", "web", "--image", "snap")
    assert done["capture"]["consistency"] == "filesystem"
    assert left(vm) == set()
    assert cli("store", "check")["ok"]


def test_a_disk_comes_off_after_a_killed_capture(cli, vm):
    capture = cli.start("vm", "capture", "web", "--image", "lost")
    kill_when(capture, (vm / "run" / "nbd.sock").exists)
    cli.run("vm", "disk", "detach", "web", "web-lun0")
    cli.run("vm", "disk", "attach", "web", "web-lun0")
