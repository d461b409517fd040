"""The life of a version with real guests: promoted by a boot test, rolled back; snapshot of a running VM."""

import pytest

pytestmark = pytest.mark.vm

VERSION = ("gallery", "image-version")
#: The data disks by LUN, d0 and d1. Two controllers are searched at once: /dev/sdb can be the OS disk.
DISKS = """
for d in /sys/class/scsi_disk/*; do
  [ "$(cat $d/device/block/*/size)" = 16384 ] && eval d${d##*:}=/dev/$(ls $d/device/block)
done
"""


@pytest.fixture(scope="module")
def gallery(cli, tiny):
    """Two staged versions of one image."""
    image = cli("image", "create", "tiny", "--source", tiny, "--os-state", "Generalized")
    cli("gallery", "create", "gal")
    triple = ("--publisher", "calotype", "--offer", "tiny", "--sku", "tiny")
    kind = ("--os-type", "Linux", "--os-state", "Generalized", "--generation", image["generation"])
    cli("gallery", "image-definition", "create", "gal/tiny", *triple, *kind)
    for number in ("1.9.0", "1.10.0"):
        cli(*VERSION, "create", f"gal/tiny/{number}", "--image", "tiny")


def test_a_boot_test_promotes_and_a_rollback_goes_back(cli, gallery):
    cli(*VERSION, "promote", "gal/tiny/1.9.0", "--untested")
    done = cli(*VERSION, "promote", "gal/tiny/1.10.0")
    assert done["latest"] is True
    assert done["report"]["problems"] == []
    assert len(done["report"]["clones"]) == 2
    assert cli(*VERSION, "rollback", "gal/tiny")["version"] == "1.9.0"
    again = cli(*VERSION, "promote", "gal/tiny/1.10.0")
    assert (again["latest"], again["report"]) == (True, None)


def test_a_snapshot_of_a_running_vm_is_an_instant(cli, gallery):
    for number in ("1.9.0", "1.10.0"):
        cli(*VERSION, "promote", f"gal/tiny/{number}", "--untested")  # unless they are
    cli(*VERSION, "deprecate", "gal/tiny/1.9.0", "--replacement", "gal/tiny", "--reason", "old")
    made = cli("vm", "create", "web", "--image", "gal/tiny/1.9.0", "--data-disk-sizes", "8M")
    assert made["notes"] == ["'gal/tiny/1.9.0' is deprecated (old); use 'gal/tiny' instead"]
    cli.run("vm", "wait", "web", "--for", "agent")
    cli.guest("web", f"{DISKS} echo before | dd of=$d0 conv=fsync 2>/dev/null")
    snapshot = cli("snapshot", "create", "snap", "--source", "web-lun0")
    cli.guest("web", f"{DISKS} echo after | dd of=$d0 conv=fsync 2>/dev/null")
    assert (snapshot["size"], snapshot["osType"]) == (8 << 20, None)
    cli("disk", "create", "copy", "--source", "snap")
    cli.run("snapshot", "delete", "snap")
    cli.run("vm", "disk", "attach", "web", "copy", "--lun", "1")
    seen = f"for n in $(seq 300); do {DISKS} [ $d1 ] && break; sleep 0.1; done; head -n1 $d1"
    assert cli.guest("web", seen) == "before"
    assert cli.guest("web", f"{DISKS} head -n1 $d0") == "after"
