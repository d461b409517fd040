"""A running guest is generalized in place, makes an image, and comes back as it was; also killed midway."""

import time

import pytest

pytestmark = pytest.mark.vm

#: What the tools of a real guest would do, and one thing that only a restore brings back.
TOOLS = """
set -e
cat > /usr/sbin/waagent <<'END'
#!/bin/sh
rm -f /etc/dropbear/*host_key
echo "as told: $*"
END
cat > /usr/bin/cloud-init <<'END'
#!/bin/sh
rm -f /srv/canary
[ -e /etc/dropbear/dropbear_ed25519_host_key ] && exit 3
echo "as told: $*"
END
chmod +x /usr/sbin/waagent /usr/bin/cloud-init
"""
#: The data disk, by its size: two buses are probed at once, and names follow who answers first.
DATA = "awk '$3 == 32768 {print $4}' /proc/partitions"
USE = """
set -e
mkdir -p /srv
echo CANARY > /srv/canary
seq 20000 > /dev/$(DATA)
sync
""".replace("DATA", DATA)
#: What must be the same afterwards.
LOOK = """
set -e
for n in $(seq 300); do
    [ -s /etc/dropbear/dropbear_ed25519_host_key ] && break
    sleep 0.1
done
md5sum < /etc/dropbear/dropbear_ed25519_host_key
cat /etc/machine-id /srv/canary /etc/passwd
hostname
dd if=/dev/$(DATA) bs=1M 2> /dev/null | md5sum
""".replace("DATA", DATA)
#: Tells the console that it has begun its work, and does not end.
HANGS = """
cat > /usr/sbin/waagent <<'END'
#!/bin/sh
rm -f /etc/dropbear/*host_key /srv/canary; sync
echo DEPROVISIONING > /dev/console
sleep 1000
END
sync
"""


@pytest.fixture(scope="module")
def web(cli, tiny):
    """A running VM with a data disk that was used; what it looked like."""
    cli.run("image", "create", "tiny", "--source", tiny, "--os-state", "Generalized")
    cli.run(
        *("vm", "create", "web", "--image", "tiny", "--memory", "128M", "--data-disk-sizes", "32M"),
        *("--admin-username", "wilma"),
    )
    cli.run("vm", "wait", "web", "--for", "agent")
    cli.guest("web", TOOLS + USE)
    return cli.guest("web", LOOK)


def started(cli):
    """Start the VM; what it looks like."""
    cli.run("vm", "start", "web")
    cli.run("vm", "wait", "web", "--for", "agent")
    return cli.guest("web", LOOK)


def left(cli):
    """What commands left behind."""
    known = {disk["overlay"] or disk["id"] for disk in cli("disk", "list")}
    found = {path.stem for path in (cli.home / "disks").iterdir()}
    return sorted(found ^ known) + [path.name for path in cli.home.glob("tmp/op-*")]


def test_there_and_back(cli, web):
    would = cli("vm", "generalize", "web", "--dry-run")
    assert would["restorePoint"] is None
    assert cli("vm", "show", "web")["powerState"] == "running"

    report = cli("vm", "generalize", "web", "--yes")
    assert [(c["command"][0], c["status"], c["said"]) for c in report["inGuest"]] == [
        ("waagent", 0, "as told: -force -deprovision+user\n"),
        ("cloud-init", 0, "as told: clean --logs\n"),
    ]
    assert report["restorePoint"]["consistency"] == "filesystem"
    assert report["proof"]["verdict"] == "Generalized"
    vm = cli("vm", "show", "web")
    assert (vm["powerState"], vm["generalized"]) == ("stopped", True)
    refused = cli.run("vm", "start", "web", status=4)
    assert b"calotype vm restore web" in refused.stderr
    image = cli("vm", "capture", "web", "--image", "golden")
    assert (image["osState"], image["verdict"]) == ("Generalized", "Generalized")
    assert [disk["lun"] for disk in image["dataDisks"]] == [0]
    assert left(cli) == []

    restored = cli("vm", "restore", "web", "--yes")
    assert restored["point"]["id"] == report["restorePoint"]["id"]
    assert left(cli) == []
    assert started(cli) == web


def test_from_inside(cli, web):
    seen = cli("vm", "verify", "web")
    assert seen["verdict"] in ("Specialized", "Mixed")
    assert {"users", "machine-id"} & {finding["step"] for finding in seen["findings"]}
    assert cli("vm", "show", "web")["powerState"] == "running"

    report = cli("vm", "generalize", "web", "--yes", "--in-guest")
    assert {step["name"] for step in report["steps"]["steps"] if step["edits"]} >= {"users"}
    assert report["proof"]["verdict"] == "Generalized"
    assert cli("vm", "verify", "web")["verdict"] == "Generalized"
    assert cli("vm", "show", "web")["generalized"]
    assert left(cli) == []
    cli.run("vm", "restore", "web", "--yes")
    assert started(cli) == web


def test_killed_while_the_guests_tools_work(cli, web):
    cli.guest("web", HANGS)
    command = cli.start("vm", "generalize", "web", "--yes")
    while b"DEPROVISIONING" not in cli.run("vm", "log", "web").stdout:
        assert command.poll() is None, command.stderr.read().decode()
        time.sleep(0.1)  # the console has no event for a line
    command.kill()
    command.communicate()
    assert not cli("vm", "show", "web")["generalized"]
    points = cli("vm", "restore-point", "list", "web")
    assert [point["reason"] for point in points] == ["before vm generalize"] * 3

    refused = cli.run("vm", "restore", "web", "--yes", status=4)
    assert b"--force-stop" in refused.stderr
    cli.run("vm", "restore", "web", "--yes", "--force-stop")
    assert left(cli) == []
    assert started(cli) == web
    cli.run("vm", "delete", "web")
    assert cli("vm", "list") == []
