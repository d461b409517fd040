"""The main job on a real guest: upload, VM with data disks, capture while it writes, clones."""

import re
import subprocess

import pytest

pytestmark = pytest.mark.vm

MARK = "canary-of-wilma"

#: Writes number after number: first to disk 0, then to disk 1, each synced before the next step.
WRITER = """
mkdir -p /d0 /d1
mount -t ext4 /dev/disk/by-lun/0 /d0; mount -t ext4 /dev/disk/by-lun/1 /d1
cat > /tmp/writer <<'END'
i=0
while :; do
  i=$((i + 1))
  echo $i >> /d0/log; fsync /d0/log
  echo $i >> /d1/log; fsync /d1/log
done
END
sh /tmp/writer > /dev/null 2>&1 &
"""

#: The tiny guest has no udev: links by LUN, made from what the kernel says.
LINKS = """
mkdir -p /dev/disk/by-lun
for d in /sys/class/scsi_disk/*; do
  lun=${d##*:}; target=${d%:*}; target=${target##*:}
  [ "$target" = 0 ] || continue
  ln -sf /dev/$(ls $d/device/block) /dev/disk/by-lun/$lun
done
"""


def ext4(path, size="32M"):
    with path.open("wb") as file:
        file.truncate(int(size[:-1]) << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-F", path], check=True)
    return path


@pytest.fixture(scope="module")
def web1(cli, tiny, tmp_path_factory):
    """A running VM with two formatted data disks."""
    room = tmp_path_factory.mktemp("disks")
    cli(
        *("image", "create", "two-disks", "--source", tiny, "--os-state", "Generalized"),
        *("--data-disk", f"0={ext4(room / 'd0')}", "--data-disk", f"1={ext4(room / 'd1')}"),
    )
    cli(
        "vm",
        "create",
        "web1",
        "--image",
        "two-disks",
        "--admin-username",
        "wilma",
        "--memory",
        "256M",
    )
    cli("vm", "wait", "web1", "--for", "agent")
    cli.guest("web1", LINKS + WRITER + f"\necho {MARK} > /home/wilma/.ash_history; sync")
    return "web1"


def raw(cli, image, room, lun=None):
    """A disk of an image as a raw file."""
    target = room / f"{image}-{lun}.raw"
    extra = () if lun is None else ("--lun", str(lun))
    cli("image", "export", image, target, *extra)
    return target


def records(path):
    """The numbers that the writer left on a data disk, after a check that it is clean."""
    subprocess.run(["e2fsck", "-fn", path], check=True, stdout=subprocess.DEVNULL)
    state = subprocess.run(["dumpe2fs", "-h", path], check=True, capture_output=True, text=True)
    assert "needs_recovery" not in state.stdout
    out = subprocess.run(
        ["debugfs", "-R", "cat /log", path], check=True, capture_output=True, text=True
    ).stdout
    return [int(line) for line in out.split()]


def test_data_disks_come_back_by_lun_without_being_named(cli, web1):
    vm = cli("vm", "show", web1)
    assert [disk["lun"] for disk in vm["disks"]] == [None, 0, 1]
    assert vm["powerState"] == "running"


def test_capture_of_a_running_vm_shows_one_instant(cli, web1, tmp_path):
    before = int(cli.guest(web1, "tail -n 1 /d1/log"))
    captured = cli("vm", "capture", web1, "--image", "snap")
    assert captured["capture"]["consistency"] == "filesystem"
    assert captured["osState"] == "Specialized"
    first, second = records(raw(cli, "snap", tmp_path, 0)), records(raw(cli, "snap", tmp_path, 1))
    assert first == list(range(1, len(first) + 1))
    assert second == list(range(1, len(second) + 1))
    assert len(first) - len(second) in (0, 1)
    assert len(second) >= before
    assert int(cli.guest(web1, "tail -n 1 /d1/log")) > len(second), "the writer goes on"


def test_capture_reads_what_changed_and_no_more(cli, web1):
    captured = cli("vm", "capture", web1, "--image", "snap2", "--freeze", "never")
    assert captured["capture"]["consistency"] == "crash"
    changed = sum(disk["changed"] for disk in captured["capture"]["disks"])
    assert 0 < changed < 48 << 20


def test_a_specialized_image_makes_one_vm_at_a_time(cli, web1):
    cli("vm", "create", "twin", "--image", "snap", "--no-start")
    refused = cli.run("vm", "create", "twin2", "--image", "snap", "--no-start", status=4)
    assert b"specialized" in refused.stderr
    assert b"--generalize" in refused.stderr
    vm = cli(
        *("vm", "create", "twin2", "--image", "snap", "--no-start"),
        "--allow-duplicate-identity",
    )
    assert "allow-duplicate-identity" in vm["notes"][0]
    refused = cli.run(
        "vm", "create", "twin3", "--image", "snap", "--admin-username", "eve", status=2
    )
    assert b"specialized" in refused.stderr
    cli("vm", "delete", "twin")
    cli("vm", "delete", "twin2")


def test_generalized_clones_differ_and_share_the_data(cli, web1, tmp_path):
    image = cli("vm", "capture", web1, "--image", "golden", "--generalize")
    assert image["osState"] == "Generalized"
    assert MARK.encode() not in raw(cli, "golden", tmp_path).read_bytes()
    for name, user in (("clone1", "carl"), ("clone2", "cora")):
        cli(
            *("vm", "create", name, "--image", "golden", "--admin-username", user),
            *("--memory", "256M"),
        )
    identities = []
    for name, user in (("clone1", "carl"), ("clone2", "cora")):
        cli("vm", "wait", name, "--for", "ssh")
        assert cli.run("vm", "ssh", name, "--", "id -un").stdout.decode().strip() == user
        out = cli.guest(
            name,
            "hostname; cat /etc/machine-id; cat /etc/dropbear/*ed25519* | sha256sum;"
            "grep -c wilma /etc/passwd || true",
        ).split("\n")
        assert out[0] == name
        assert out[-1] == "0"
        identities.append(out[:3])
        assert (
            int(
                cli.guest(
                    name,
                    LINKS + "mkdir -p /m; mount -t ext4 /dev/disk/by-lun/1 /m;"
                    "wc -l < /m/log; umount /m",
                )
            )
            > 0
        )
    original = cli.guest(
        web1, "hostname; cat /etc/machine-id; cat /etc/dropbear/*ed25519* | sha256sum"
    ).split("\n")
    for values in zip(original, *identities, strict=True):
        assert len(set(values)) == 3
    cli("vm", "delete", "clone1")
    cli("vm", "delete", "clone2")


def test_disks_come_and_go_while_it_runs(cli, web1):
    cli("disk", "create", "extra", "--size", "16M")
    cli("vm", "disk", "attach", web1, "extra", "--lun", "7")
    count = "ls -d /sys/class/scsi_disk/*:7 2>/dev/null | wc -l"
    assert cli.guest(web1, f"sleep 0.5; {count}") == "1"
    refused = cli.run("disk", "delete", "extra", status=4)
    assert b"detach" in refused.stderr
    cli("vm", "disk", "detach", web1, "extra")
    assert cli.guest(web1, count) == "0"
    cli("disk", "delete", "extra")


def test_looking_at_a_vm(cli, web1, tmp_path):
    cli("vm", "screenshot", web1, tmp_path / "screen.png")
    assert (tmp_path / "screen.png").read_bytes().startswith(b"\x89PNG")
    assert b"Linux" in cli.run("vm", "log", web1).stdout or cli.run("vm", "log", web1).stdout
    assert cli.run("vm", "run-command", web1, "--", "sh", "-c", "exit 7", status=7)


def test_stop_start_and_the_stopped_capture(cli, web1):
    cli("vm", "stop", web1)
    assert cli("vm", "show", web1)["powerState"] == "stopped"
    captured = cli("vm", "capture", web1, "--image", "off")
    assert captured["capture"]["consistency"] == "application"
    cli("vm", "start", web1)
    cli("vm", "wait", web1, "--for", "agent")
    cli.guest(web1, "echo dirty > /root/x; sync")
    cli("vm", "stop", web1, "--force")
    captured = cli("vm", "capture", web1, "--image", "cut")
    assert captured["capture"]["consistency"] == "crash"
    cli("vm", "deallocate", web1)
    assert cli("vm", "show", web1)["powerState"] == "deallocated"


def test_the_store_is_whole_after_all_that(cli, web1):
    assert cli("store", "check")["ok"]
    stats = cli("store", "stats")
    assert {image["image"] for image in stats["images"]} >= {"two-disks", "snap", "golden"}
    listed = cli.run("image", "list").stdout.decode()
    assert re.search(r"golden\s+VM image\s+Generalized", listed)
