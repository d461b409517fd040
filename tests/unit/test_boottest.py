"""The boot test without guests: comparing clones, bounding what they say, naming why one does not start."""

import base64
import hashlib
import os
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype.engine.boot import bootclone, bootwords
from calotype.engine.boot.bootlook import COLLECT, SETTLE, Login
from calotype.engine.boot.bootreport import (
    BootReport,
    CloneReport,
    compare,
    excerpt,
    fingerprints,
    parse,
)
from calotype.engine.boot.boottest import boot_test
from calotype.engine.context import Context
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.launch import uids
from calotype.engine.sources import Upload
from calotype.errors import GuestError, InvalidInput, NotFound, TimedOut, ToolFailed
from calotype.machine import Acceleration
from calotype.machine.watch import legible
from calotype.model import (
    Architecture,
    Image,
    ImageDisk,
    Network,
    OsState,
    OsType,
    Provenance,
    SourceKind,
    Stage,
)
from calotype.run import Sandbox, run


def clone(name="A", keys=None, **facts):
    told = {key.replace("_", "-"): (value,) for key, value in facts.items() if value is not None}
    return CloneReport(name=name, vm_id=name, host_keys=keys or {}, facts=told)


def judged(*clones):
    return {found.what: found for found in compare(clones)}


# -- comparing


def test_what_must_differ_and_what_must_be_equal():
    one = clone("A", {"ssh-ed25519": "SHA256:a"}, machine_id="1", hostname="a", kernel="6.1")
    two = clone("B", {"ssh-ed25519": "SHA256:b"}, machine_id="1", hostname="b", kernel="6.2")
    found = judged(one, two)
    assert found["SSH host key (ssh-ed25519)"].ok
    assert found["host name"].ok
    assert not found["machine-id"].ok
    assert found["machine-id"].must_differ is True
    assert found["machine-id"].values == ("1", "1")
    assert not found["kernel"].ok
    assert found["kernel"].must_differ is False


def test_one_host_key_in_common_is_enough():
    one = clone("A", {"ssh-rsa": "SHA256:same", "ssh-ed25519": "SHA256:a"})
    two = clone("B", {"ssh-rsa": "SHA256:same", "ssh-ed25519": "SHA256:b"})
    found = judged(one, two)
    assert not found["SSH host key (ssh-rsa)"].ok
    assert found["SSH host key (ssh-ed25519)"].ok


def test_what_one_clone_lacks_is_no_clash_but_no_equality_either():
    found = judged(clone("A", machine_id="1", packages="253"), clone("B"))
    assert found["machine-id"].ok
    assert found["machine-id"].values == ("1", None)
    assert not found["packages"].ok


def test_identities_of_disks_may_be_the_same():
    found = judged(clone("A", block="UUID=1"), clone("B", block="UUID=1"))
    assert found["identities of disks"].ok
    assert found["identities of disks"].must_differ is None


@given(st.lists(st.sets(st.sampled_from("abcd")), min_size=2, max_size=5))
def test_clones_differ_when_no_two_share_anything(values):
    clones = [
        CloneReport(name=str(n), vm_id=str(n), facts={"random-seed": tuple(sorted(seeds))})
        for n, seeds in enumerate(values)
    ]
    (found,) = compare(clones)
    assert found.ok == all(not one & other for one, other in combinations(values, 2))


def test_a_problem_is_what_fails_a_test():
    report = BootReport(
        image_id="i",
        image_name="i",
        os_state=OsState.GENERALIZED,
        indexes=(),
        acceleration="tcg",
        parallel=False,
        started_at="",
        seconds=1.0,
        clones=(),
        differences=(),
        base_untouched=True,
        problems=(),
        notes=("a note",),
        stage=Stage.PROMOTED,
    )
    assert report.passed
    assert not replace(report, problems=("the same",)).passed


# -- what a guest says is bounded


@given(st.binary(max_size=4000))
def test_whatever_a_guest_prints_becomes_bounded_facts(output):
    for name, values in parse(output).items():
        assert len(name) <= 64
        assert values
        assert all(0 < len(value) <= 512 for value in values)


def test_a_guest_that_prints_without_end_is_cut():
    facts = parse(b"".join(b"user\t%d%s\n" % (n, b"x" * 9999) for n in range(5000)))
    assert len(facts["user"]) <= 1000
    assert max(map(len, facts["user"])) == 512


@given(st.binary(max_size=3000), st.integers(200, 2000))
def test_an_excerpt_keeps_both_ends(log, limit):
    kept = excerpt(log, limit)
    assert len(kept) <= limit
    if len(log) <= limit:
        assert kept == log
    else:
        assert len(kept) == limit
        assert kept.startswith(log[: limit // 4])
        assert kept.endswith(log[-limit // 2 :])
        assert f"[... {len(log) - limit} bytes".encode() in kept


def test_fingerprints_are_those_of_openssh(tmp_path):
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    expected = subprocess.run(
        ["ssh-keygen", "-lf", f"{key}.pub"], check=True, capture_output=True, text=True
    ).stdout.split()[1]
    public = key.with_suffix(".pub").read_text()
    assert fingerprints([public]) == {"ssh-ed25519": expected}


def test_what_is_no_key_has_no_fingerprint():
    assert fingerprints(["", "ssh-rsa", "ssh-rsa ====", "ssh-rsa not-base64!"]) == {}


# -- words


@pytest.mark.parametrize(
    ("log", "words", "ends"),
    [
        (
            "VFS: Cannot open root device\nKernel panic - not syncing: VFS: Unable to mount root fs",
            "no root file system",
            True,
        ),
        ("Kernel panic - not syncing: Attempted to kill init!", "the kernel panicked", True),
        ("ALERT!  UUID=12-34 does not exist.  Dropping to a shell!", "initial RAM disk", False),
        ("BusyBox v1.35\r\n(initramfs) ", "initial RAM disk's shell", True),
        ("You are in emergency mode. After logging in, type", "emergency shell", True),
        ("error: no such partition.\ngrub rescue> ", "boot loader", True),
        ("Minimal BASH-like line editing is supported.\ngrub> ", "boot loader", True),
        ("Fatal glibc error: CPU does not support x86-64-v2", "newer processor", True),
        ("cloud-init[312]: No instance datasource found!", "cloud-init", False),
        ("No DHCPOFFERS received.", "no network", False),
        ("Debian GNU/Linux 12 web ttyS0\n\nweb login: ", "login prompt", False),
        ("[  OK  ] Started cron.service", "still starting", False),
        ("", "nothing on its serial port", False),
    ],
)
def test_the_usual_causes_have_words(log, words, ends):
    assert words in bootwords.cause(log.encode(), [])
    assert bootwords.hopeless(log.encode(), []) == ends


def test_the_line_that_shows_it_is_repeated():
    log = (
        b"[ 1.0] Kernel panic - not syncing: Attempted to kill init!\n"
        + b"[ 1.0] Call trace\n" * 30
    )
    words = bootwords.cause(log, [])
    assert (
        words == "the kernel panicked ([ 1.0] Kernel panic - not syncing: Attempted to kill init!)"
    )


def test_the_screen_tells_what_the_serial_port_does_not():
    screen = ["SeaBIOS (version 1.16.2)", "Boot failed: not a bootable disk", "No bootable device."]
    assert bootwords.hopeless(b"", screen)
    assert "BIOS" in bootwords.cause(b"", screen)


def test_a_start_that_goes_well_is_waited_for():
    log = b"""Copying (initramfs) to memory
    error: no such device: 1234.
    Begin: Running /scripts/init-bottom ... done.
    [    3.1] systemd[1]: Starting emergency.target documentation...
    web login: """
    assert not bootwords.hopeless(log, ["Booting from Hard Disk..."])


def test_last_words_are_lines_without_control_characters():
    log = b"first\r\n\x1b[=3h\x1b[0;32m  OK  \x1b[0m\x07 two\n\n\xff" + b"x" * 500
    *_, two, long = bootwords.lines(log)
    assert two == "  OK   two"
    assert len(long) == 200
    assert len(bootwords.lines(b"line\n" * 1000)) == 12


def test_a_screen_in_text_mode_is_read():
    lines = [b"SeaBIOS", b"No bootable device."]
    cells = b"".join(line.ljust(80, b"\0") for line in lines).ljust(2000, b" ")
    memory = b"".join(bytes([cell, 7]) for cell in cells)
    assert legible(memory) == ["SeaBIOS", "No bootable device."]
    assert legible(hashlib.shake_128(b"pixels").digest(4000)) == []
    assert legible(b"") == []


# -- the scripts that run in guests


@pytest.mark.parametrize("shell", [["dash"], ["busybox", "sh"], ["bash"]])
@pytest.mark.parametrize("script", [COLLECT, SETTLE], ids=["collect", "settle"])
def test_the_scripts_run_where_next_to_nothing_is(shell, script):
    done = run([*shell, "-s"], sandbox=Sandbox(), data=script.encode())
    facts = parse(done.stdout)
    assert facts.get("kernel", ("Linux",))[0].startswith("Linux")
    assert done.stderr == b""


def test_the_facts_are_those_of_the_guest(tmp_path):
    """In a sandbox that is furnished as a guest would be."""
    etc, lib = tmp_path / "etc", tmp_path / "var"
    for place in (
        etc / "ssh",
        lib / "lib/dpkg",
        lib / "lib/systemd",
        lib / "lib/dhcp",
        lib / "home",
    ):
        place.mkdir(parents=True)
    (etc / "machine-id").write_text("0123\n")
    (etc / "os-release").write_text('ID=debian\nVERSION_ID="12"\n')
    (etc / "passwd").write_text(
        "root:x:0:0::/root:/bin/bash\nbin:x:2:2::/bin:/usr/sbin/nologin\nal:x:1000:1000::/var/home:/bin/sh\n"
    )
    (etc / "shadow").write_text("root:*:1::::::\nal:$6$salt$hash:1::::::\n")
    (lib / "home/.ssh").mkdir()
    (lib / "home/.ssh/authorized_keys").write_text("ssh-ed25519 AAAA\n")
    blob = base64.b64encode(b"a public key").decode()
    (etc / "ssh/ssh_host_ed25519_key.pub").write_text(f"ssh-ed25519 {blob} root@web\n")
    (etc / "ssh/ssh_host_ed25519_key").write_text("PRIVATE")
    (lib / "lib/dpkg/status").write_text(
        "Package: a\nStatus: install ok installed\n\nPackage: b\nStatus: deinstall ok config-files\n"
    )
    (lib / "lib/systemd/random-seed").write_bytes(b"secret seed")
    (lib / "lib/dhcp/dhclient.leases").write_text('default-duid "\\000\\001";\n')
    sandbox = Sandbox(read_only={"/etc": str(etc), "/var": str(lib)})
    printed = run(["sh", "-s"], sandbox=sandbox, data=COLLECT.encode()).stdout
    facts = parse(printed)
    assert facts["machine-id"] == ("0123",)
    assert facts["os"] == ("debian 12",)
    assert facts["packages"] == ("1",)
    assert facts["user"] == ("root (0, locked)", "al (1000, password set, SSH key)")
    assert facts["duid"] == ('"\\000\\001";',)
    assert facts["host-key"] == (f"ssh-ed25519 {blob} root@web",)
    digest = hashlib.sha256(b"secret seed").hexdigest()
    assert facts["random-seed"] == (f"/var/lib/systemd/random-seed {digest}",)
    for secret in (b"secret seed", b"PRIVATE", b"$6$salt"):
        assert secret not in printed


def test_nobody_at_the_port_is_no_login(tmp_path):
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True
    )
    with pytest.raises(GuestError, match=r"cannot log in by SSH: .*refused"):
        Login(tmp_path, 1, "boot").script("true", timeout=20)
    with pytest.raises(TimedOut):
        Login(tmp_path, 1, "boot").command("true", timeout=0.001)


# -- the job, and the catalogue


def image(context, name="img", **values):
    made = Image(
        id=f"id-{name}",
        name=name,
        os_type=OsType.LINUX,
        os_state=OsState.GENERALIZED,
        os_disk=ImageDisk(index="0" * 64, size=1 << 20),
        provenance=Provenance(kind=SourceKind.FILE, source="x"),
        created_at=datetime.now(UTC),
    )
    context.catalog.add_image(replace(made, **values))


def test_an_image_is_promoted_and_taken_back_and_the_audit_says_so(context):
    image(context)
    assert context.catalog.image("img").stage is Stage.STAGED
    context.catalog.promote_image("id-img")
    context.catalog.promote_image("id-img")
    context.catalog.tag_image("id-img", {"team": "a"})
    assert context.catalog.image("img").stage is Stage.PROMOTED
    context.catalog.promote_image("id-img", Stage.STAGED)
    assert context.catalog.image("img").stage is Stage.STAGED
    actions = [entry.action for entry in context.catalog.audit.list()]
    assert actions == ["image.demote", "image.promote"]
    with pytest.raises(NotFound):
        context.catalog.promote_image("id-none")


@pytest.mark.parametrize(
    ("values", "clones", "words"),
    [
        ({}, 1, "cannot be compared"),
        ({}, 9, "cannot be compared"),
        ({"architecture": Architecture.ARM64}, 2, "Arm64"),
        ({"os_type": OsType.WINDOWS}, 2, "Windows"),
    ],
)
def test_what_cannot_be_tested_is_refused_at_once(context, values, clones, words):
    image(context, **values)
    with pytest.raises(InvalidInput, match=words):
        boot_test(context, "img", clones=clones)
    assert list(context.home.vms.glob("*")) == []


def test_no_time_is_refused(context):
    image(context)
    with pytest.raises(InvalidInput, match="second"):
        boot_test(context, "img", timeout=0.0)


def test_a_test_that_could_not_be_done_changes_nothing(context):
    image(context)
    context.catalog.promote_image("id-img")
    with pytest.raises(NotFound):  # the store has no such Index
        boot_test(context, "img")
    assert context.catalog.image("img").stage is Stage.PROMOTED
    assert [path for path in context.home.tmp.iterdir() if path.is_dir()] == []


def test_users_of_clones_come_from_the_other_end(context, monkeypatch):
    run_by = context.home.prepare().vms / "a-clone" / "run"
    run_by.mkdir(parents=True)
    first = bootclone._free_uid(context)
    assert first == max(uids(context))
    if os.geteuid() == 0:
        os.chown(run_by, first, first)
        assert bootclone._free_uid(context) == first - 1


def installation(home, driver):
    return Context(home, driver)


class NoQemu:
    """A driver on a host where no VM starts."""

    def acceleration(self):
        return Acceleration("tcg", "")

    def start(self, spec):
        assert spec.network is Network.RESTRICTED
        raise ToolFailed("QEMU did not start the VM: no memory")

    def kill(self, directory):
        pass


def test_a_host_that_starts_no_vm_is_no_verdict_on_the_image(context, tmp_path):
    disk = tmp_path / "empty.raw"
    disk.write_bytes(bytes(1 << 20))
    import_image(
        context,
        ImageRequest(name="img", os_state=OsState.GENERALIZED),
        Upload(location=str(disk)),
        {},
    )
    context.catalog.promote_image(context.catalog.image("img").id)
    broken = installation(context.home, NoQemu())
    try:
        with pytest.raises(ToolFailed, match="no memory"):
            boot_test(broken, "img")
    finally:
        broken.close()
    assert context.catalog.image("img").stage is Stage.PROMOTED
    assert list(context.home.vms.glob("*")) == []
    assert [path for path in context.home.tmp.iterdir() if path.is_dir()] == []
