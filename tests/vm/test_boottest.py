"""Boot tests of real guests: clones that differ, clones that are one machine, and none that start."""

import base64
import hashlib
import json
import shutil
import signal
import sqlite3
import struct
import subprocess
import time
import uuid
from contextlib import closing
from pathlib import Path

import pytest

pytestmark = pytest.mark.vm

MIB = 1 << 20
ROOT = 8 * MIB  # where the tiny guest's root file system starts
MACHINE_ID = "0123456789abcdef0123456789abcdef"


def lie(cli, name, disk):
    """Declare an image generalized, whatever the evidence on its disk."""
    cli.run("image", "create", name, "--source", disk, "--os-state", "Generalized", "--force")


def dropbear_key(path):
    """An Ed25519 key of OpenSSH as dropbear stores it."""
    public = base64.b64decode(path.with_suffix(".pub").read_text().split()[1])[-32:]
    private = base64.b64decode("".join(path.read_text().splitlines()[1:-1]))
    at = private.rindex(public)
    kind = b"ssh-ed25519"
    return struct.pack(">I", len(kind)) + kind + struct.pack(">I", 64) + private[at - 32 : at + 32]


def processes(cli):
    """The command lines of QEMUs and of SSH clients that speak of this installation."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if bytes(cli.home) in line and (b"qemu-system" in line or b"ssh" in line):
            found.append(line)
    return found


def assert_nothing_left(cli):
    assert list(cli.home.glob("vms/*")) == []
    assert list(cli.home.glob("disks/*")) == []
    assert list(cli.home.glob("tmp/op-*")) == []
    assert processes(cli) == []
    assert {base.stat().st_nlink for base in cli.home.glob("bases/*.raw")} <= {1}
    assert cli("vm", "list") == []


def stage(cli, image):
    return cli("image", "show", image)["stage"]


@pytest.fixture(scope="module")
def image(cli, tiny):
    cli.run("image", "create", "tiny", "--source", tiny, "--os-state", "Generalized")
    return "tiny"


@pytest.fixture(scope="module")
def passed(cli, image, tmp_path_factory):
    """The report of a test that went well, and where its artifacts are."""
    keep = tmp_path_factory.mktemp("evidence") / "new"
    assert stage(cli, image) == "Staged"
    return cli("image", "test", image, "--keep", keep, "--timeout", "3m"), keep


@pytest.fixture(scope="module")
def used(tmp_path_factory, tiny):
    """The tiny guest's disk after a life: a machine-id, and host keys that no provisioning replaces."""
    room = tmp_path_factory.mktemp("used")
    disk = room / "used.raw"
    subprocess.run(["cp", "--sparse=always", tiny, disk], check=True)
    disk.chmod(0o600)
    root = f"{disk}?offset={ROOT}"
    found = subprocess.run(
        ["debugfs", "-R", "cat /usr/lib/tiny/provision", root], check=True, capture_output=True
    ).stdout
    careless = found.replace(b"rm -f /etc/dropbear/dropbear_*_host_key\n", b"")
    assert careless != found
    (room / "provision").write_bytes(careless)
    (room / "machine-id").write_text(f"{MACHINE_ID}\n")
    script = [
        "rm /usr/lib/tiny/provision",
        f"write {room}/provision /usr/lib/tiny/provision",
        "sif /usr/lib/tiny/provision mode 0100755",
        "rm /etc/machine-id",
        f"write {room}/machine-id /etc/machine-id",
    ]
    subprocess.run(
        ["debugfs", "-w", "-f", "-", root],
        input="\n".join(script).encode(),
        check=True,
        capture_output=True,
    )
    return disk


@pytest.fixture(scope="module")
def specialized(cli, used, tmp_path_factory):
    """An image of that machine after it has made its host keys, and the report of its test."""
    data = tmp_path_factory.mktemp("data") / "data.raw"
    data.write_bytes(bytes(3 * MIB))
    cli.run(
        *("image", "create", "machine", "--source", used, "--os-state", "Specialized"),
        *("--data-disk", f"5={data}"),
    )
    return cli("image", "test", "machine", "--timeout", "3m")


def test_two_clones_of_a_generalized_image_differ(cli, image, passed):
    report, _ = passed
    assert report["passed"]
    assert report["problems"] == []
    assert report["stage"] == stage(cli, image) == "Promoted"
    one, two = report["clones"]
    for clone in (one, two):
        assert clone["reached"] in ("agent", "ssh")
        assert clone["inside"] in ("agent", "ssh")
        assert clone["login"]
        assert clone["sudo"]
        assert clone["clean"]
        assert clone["offAfter"] < 60
        assert set(clone["hostKeys"]) == {"ssh-ed25519", "ecdsa-sha2-nistp256"}
        uuid.UUID(clone["vmId"])
    judged = {found["what"]: found for found in report["differences"]}
    for what in ("machine-id", "host name", "boot id", "SSH host key (ssh-ed25519)"):
        assert judged[what]["mustDiffer"] is True
        assert judged[what]["ok"]
        assert len(set(judged[what]["values"])) == 2
        assert None not in judged[what]["values"]
    for what in ("operating system", "kernel"):
        assert judged[what]["mustDiffer"] is False
        assert judged[what]["ok"]
        assert len(set(judged[what]["values"])) == 1


def test_it_leaves_nothing_and_the_base_as_it_was(cli, passed, tiny):
    report, _ = passed
    assert report["baseUntouched"]
    assert_nothing_left(cli)
    (index,) = report["indexes"]
    base = (cli.home / "bases" / f"{index}.raw").read_bytes()
    assert hashlib.sha256(base).digest() == hashlib.sha256(tiny.read_bytes()).digest()


def test_the_evidence_is_kept_with_its_digests(passed):
    report, keep = passed
    artifacts = [artifact for clone in report["clones"] for artifact in clone["artifacts"]]
    assert {(a["name"], a["kind"]) for a in artifacts} == {
        ("clone-a.png", "screenshot"),
        ("clone-b.png", "screenshot"),
        ("clone-a.serial.log", "serial-log"),
        ("clone-b.serial.log", "serial-log"),
    }
    assert {path.name for path in keep.iterdir()} == {a["name"] for a in artifacts}
    for artifact in artifacts:
        content = Path(artifact["path"]).read_bytes()
        assert len(content) == artifact["size"]
        assert hashlib.sha256(content).hexdigest() == artifact["sha256"]
    assert (keep / "clone-a.png").read_bytes().startswith(b"\x89PNG")
    hostname = report["clones"][0]["facts"]["hostname"][0]
    assert hostname.encode() in (keep / "clone-a.serial.log").read_bytes()
    assert b"PRIVATE KEY" not in json.dumps(report).encode()


def test_an_image_keeps_its_stage_when_its_tags_change(cli, image, passed):
    cli.run("image", "tag", image, "team=a")
    assert stage(cli, image) == "Promoted"
    assert b"Promoted" in cli.run("image", "list").stdout


def test_a_specialized_image_starts_once(cli, specialized):
    assert specialized["passed"]
    assert specialized["differences"] == []
    (clone,) = specialized["clones"]
    assert clone["facts"]["machine-id"] == [MACHINE_ID]
    assert clone["facts"]["disks"] == ["6144 sectors 262144 sectors"]
    assert clone["login"] is None
    assert "one machine twice" in specialized["notes"][0]
    assert stage(cli, "machine") == "Promoted"
    assert_nothing_left(cli)


def test_clones_that_are_one_machine_are_told_by_name(cli, specialized, used, tiny, tmp_path):
    """The disk holds a machine-id and host keys, and somebody says that it is generalized."""
    disk = tmp_path / "forged.raw"
    shutil.copyfile(used, disk)
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    (tmp_path / "dropbear").write_bytes(dropbear_key(key))
    script = [
        "mkdir /etc/dropbear",
        f"write {tmp_path}/dropbear /etc/dropbear/dropbear_ed25519_host_key",
    ]
    subprocess.run(
        ["debugfs", "-w", "-f", "-", f"{disk}?offset={ROOT}"],
        input="\n".join(script).encode(),
        check=True,
        capture_output=True,
    )
    lie(cli, "forged", disk)
    with closing(sqlite3.connect(cli.home / "catalog.db")) as db, db:
        db.execute("UPDATE images SET stage = 'Promoted' WHERE name = 'forged'")
    done = cli.run("image", "test", "forged", "--timeout", "3m", "-o", "json", status=8)
    report = json.loads(done.stdout)
    assert not report["passed"]
    same = {found["what"] for found in report["differences"] if not found["ok"]}
    assert same == {"machine-id", "SSH host key (ssh-ed25519)"}
    words = done.stderr.decode()
    assert MACHINE_ID in words
    assert "machine-id is the same" in words
    assert "SSH host key (ssh-ed25519) is the same" in words
    assert "--generalize" in words
    expected = subprocess.run(
        ["ssh-keygen", "-lf", f"{key}.pub"], check=True, capture_output=True, text=True
    ).stdout.split()[1]
    assert report["clones"][0]["hostKeys"]["ssh-ed25519"] == expected
    assert stage(cli, "forged") == "Staged", "a test that fails takes a promotion back"
    assert_nothing_left(cli)


@pytest.mark.parametrize(
    ("kept", "timeout", "words"),
    [
        (b"", "2m", b"No bootable device"),
        (b"\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa", "4s", b"nothing on its serial port"),
    ],
    ids=["nothing to start", "it hangs in silence"],
)
def test_what_does_not_start_fails_in_time_and_in_words(
    cli, image, tiny, tmp_path, kept, timeout, words
):
    disk = tmp_path / "broken.raw"
    shutil.copyfile(tiny, disk)
    disk.chmod(0o600)
    with disk.open("r+b") as file:
        file.write(kept.ljust(512, b"\0"))
    name = f"broken-{timeout}"
    lie(cli, name, disk)
    begun = time.monotonic()
    keep = tmp_path / "keep"
    done = cli.run("image", "test", name, "--timeout", timeout, "--keep", keep, status=8)
    assert time.monotonic() - begun < 110  # whatever other guests take of the processors
    assert words in done.stderr
    assert b"clone A" in done.stderr
    assert (keep / "clone-a.png").exists(), "what was on the screen is kept"
    assert stage(cli, name) == "Staged"
    assert_nothing_left(cli)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_whoever_stops_it_finds_nothing_left(cli, image, number):
    before = stage(cli, image)
    test = cli.start("image", "test", image)
    while len(list(cli.home.glob("vms/*/run/query.sock"))) < 2:
        assert test.poll() is None, test.stderr.read().decode()
        time.sleep(0.01)
    test.send_signal(number)
    test.communicate(timeout=60)
    if number is signal.SIGKILL:
        assert list(cli.home.glob("vms/*")) != []
        cli.run("disk", "create", "any", "--size", "1M")
        cli.run("disk", "delete", "any")
    else:
        assert test.returncode == (130 if number is signal.SIGINT else 143)
    assert_nothing_left(cli)
    assert stage(cli, image) == before
