"""A used Debian machine with canaries everywhere: what is the machine's or a person's goes, all of it."""

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from calotype import run
from calotype.disk.base import read
from calotype.disk.view import RawSource, writable
from calotype.errors import GuestError, InvalidInput
from calotype.guest import GeneralizeReport, generalize, inspect, prove_disk
from calotype.guest import steps as all_steps
from calotype.guest.ext4 import Ext4
from calotype.guest.offline import offline
from calotype.guest.steps import STEPS, select
from calotype.model import Architecture, Generation, OsType, Verdict

MIB = 1 << 20
ROOT_AT, ROOT_SIZE = 2 * MIB, 16 * MIB
SWAP_AT, SWAP_SIZE = 18 * MIB, 2 * MIB
SIZE = 21 * MIB

#: The steps that have something to do on the machine below.
OF_DEBIAN = select({"debian"}, enable=["application-secrets"])

_gone: list[str] = []


def gone(tag: str) -> str:
    """A canary that must not be found afterwards."""
    name = f"CANARY-{tag}-xyzzy"
    _gone.append(name)
    return name


KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----\n"
RELEASE = """PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
ID=debian
"""
PASSWD = """root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
postgres:x:107:113::/var/lib/postgresql:/bin/bash
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
alice:x:1000:1000:{alice}:/home/alice:/bin/bash
bob:x:1001:1001:{bob}:/opt/people/bob:/bin/bash
evil:x:1002:1002::/etc:/bin/bash
"""
SHADOW = """root:$6${root}:19000:0:99999:7:::
daemon:*:19000:0:99999:7:::
postgres:!$6${pg}:19000:0:99999:7:::
nobody:*:19000:0:99999:7:::
alice:$6${alice}:19000:0:99999:7:::
bob:$y${bob}:19000:0:99999:7:::
left:$6${left}:19000:0:99999:7:::
"""
GROUP = """root:x:0:
sudo:x:27:alice,bob
postgres:x:113:
docker:x:999:bob
alice:x:1000:
bob:x:1001:
"""
GSHADOW = """root:*::
sudo:*:alice:alice,bob
docker:!::bob
postgres:$6${group}::
alice:!::
bob:!::
"""
HOSTS = """127.0.0.1 localhost
127.0.1.1 {host}.corp.example {host}
::1 localhost ip6-localhost ip6-loopback
10.0.2.15 {host}.corp.example {host} # the machine itself
10.0.0.9 db01.corp.example db
"""

FSTAB = """LABEL=root / ext4 defaults 0 1
/swapfile none swap sw 0 0
tmpfs /tmp tmpfs defaults 0 0
LABEL=data /var/lib/postgresql/data-disk ext4 defaults,nofail 0 2
"""

HOST = gone("host")

#: Everything that a machine, its people and its provisioning leave behind.
LEAVINGS: dict[str, str] = {
    "/etc/passwd-": gone("old-passwd"),
    "/etc/shadow-": gone("old-shadow"),
    "/etc/group.orig": gone("old-group"),
    "/etc/subuid-": gone("old-subuid"),
    "/var/backups/shadow.bak": gone("backup-shadow"),
    "/etc/subuid": "alice:100000:65536\n" + gone("subuid") + ":200000:65536\n",
    "/etc/security/opasswd": gone("opasswd"),
    "/var/cache/debconf/passwords.dat": f"Name: a/b\nValue: {gone('debconf')}\n",
    "/etc/sudoers.d/90-cloud-init-users": gone("sudoers"),
    "/etc/sudoers": f"root ALL=(ALL) ALL\nalice ALL=(ALL) NOPASSWD: {gone('sudo-rule')}\n",
    "/root/.ssh/authorized_keys": gone("root-authorized"),
    "/root/.ssh/id_ed25519": KEY.format(gone("root-key")),
    "/root/.ssh/known_hosts": gone("root-known"),
    "/root/.bash_history": gone("root-history"),
    "/root/.aws/credentials": gone("root-aws"),
    "/root/original-ks.cfg": gone("kickstart"),
    "/var/lib/postgresql/.ssh/authorized_keys": gone("postgres-authorized"),
    "/etc/lvm/archive/vg_00000-1.vg": gone("lvm"),
    "/etc/popularity-contest.conf": f"MY_HOSTID={gone('popcon')}\n",
    "/etc/netplan/00-installer-config.yaml": gone("netplan-installer"),
    "/root/.cache/x": gone("root-cache"),
    "/root/.viminfo": gone("root-viminfo"),
    "/root/.lesshst": gone("root-less"),
    "/var/lib/postgresql/.psql_history": gone("psql-history"),
    "/home/alice/.ssh/authorized_keys": gone("alice-authorized"),
    "/home/alice/.ssh/id_rsa": KEY.format(gone("alice-key")),
    "/home/alice/.bash_history": gone("alice-history"),
    "/home/alice/.aws/credentials": gone("alice-aws"),
    "/home/alice/deep/er/still/notes": gone("alice-notes"),
    "/opt/people/bob/.kube/config": gone("bob-kube"),
    "/home/gone/.profile": gone("former-user"),
    "/var/mail/alice": gone("alice-mail"),
    "/var/mail/root": gone("root-mail"),
    "/var/spool/postfix/deferred/A/A1": gone("mail-queue"),
    "/var/spool/cron/crontabs/alice": gone("alice-cron"),
    "/var/lib/systemd/linger/alice": gone("linger"),
    "/var/lib/AccountsService/users/bob": gone("accountsservice"),
    "/etc/ssh/ssh_host_rsa_key": KEY.format(gone("host-rsa")),
    "/etc/ssh/ssh_host_rsa_key.pub": gone("host-rsa-public"),
    "/etc/ssh/ssh_host_ed25519_key": KEY.format(gone("host-ed25519")),
    "/etc/dropbear/dropbear_ecdsa_host_key": gone("dropbear"),
    "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "/var/lib/dbus/machine-id": "0123456789abcdef0123456789abcdef\n",
    "/etc/hostname": f"{HOST}\n",
    "/etc/mailname": f"{HOST}.corp.example\n",
    "/etc/hosts": HOSTS.format(host=HOST),
    "/etc/postfix/main.cf": f"myhostname = {HOST}.corp.example\nrelayhost = keep.example\n",
    "/etc/machine-info": f"PRETTY_HOSTNAME={gone('pretty')}\nICON_NAME=computer\n",
    "/var/lib/systemd/random-seed": gone("random-seed"),
    "/var/lib/systemd/credential.secret": gone("credential-secret"),
    "/var/lib/cloud/instances/i-1/user-data.txt": gone("user-data"),
    "/var/lib/cloud/instances/i-1/obj.pkl": gone("obj-pkl"),
    "/var/lib/cloud/data/previous-hostname": gone("previous-hostname"),
    "/var/lib/cloud/seed/nocloud/user-data": gone("seed"),
    "/var/lib/cloud/sem/config_once": gone("sem"),
    "/etc/ssh/sshd_config.d/50-cloud-init.conf": gone("sshd-cloud"),
    "/etc/network/interfaces.d/50-cloud-init": gone("interfaces-cloud"),
    "/etc/netplan/50-cloud-init.yaml": gone("netplan-cloud"),
    "/var/lib/waagent/ovf-env.xml": gone("ovf-env"),
    "/var/log/waagent.log": gone("waagent-log"),
    "/var/lib/hyperv/.kvp_pool_3": gone("kvp"),
    "/var/lib/dhcp/dhclient.eth0.leases": gone("lease"),
    "/etc/resolv.conf": f"search {gone('search')}\nnameserver 10.0.2.3\n",
    "/etc/udev/rules.d/70-persistent-net.rules": gone("udev"),
    "/etc/udev/rules.d/99-site.rules": f'ATTR{{address}}=="52:54:00", NAME="{gone("mac")}"\nKEEP-UDEV\n',
    "/etc/NetworkManager/system-connections/vpn.nmconnection": gone("vpn"),
    "/var/log/auth.log": gone("auth-log"),
    "/var/log/syslog.1": gone("syslog-1"),
    "/var/log/syslog.2.gz": gone("syslog-gz"),
    "/var/log/cloud-init.log": gone("cloud-log"),
    "/var/log/acme/app.out": gone("app-log"),
    "/var/log/wtmp": gone("wtmp"),
    "/var/log/journal/0123456789abcdef0123456789abcdef/system.journal": gone("journal"),
    "/tmp/secret": gone("tmp"),
    "/var/tmp/deep/secret": gone("var-tmp"),
    "/var/crash/core": gone("crash"),
    "/var/lib/systemd/coredump/core.x": gone("coredump"),
    "/var/lib/systemd/timers/stamp-apt-daily.timer": gone("stamp"),
    "/var/lib/ubuntu-advantage/machine-token.json": gone("pro"),
    "/etc/iscsi/initiatorname.iscsi": f"InitiatorName=iqn.1993-08.org.debian:{gone('iqn')}\n",
    "/etc/nvme/hostnqn": gone("nqn"),
    "/etc/salt/minion_id": gone("salt"),
    "/etc/puppetlabs/puppet/ssl/private_keys/x.pem": gone("puppet"),
    "/var/lib/sss/db/cache_corp.ldb": gone("sssd"),
    "/etc/userdb/carol.user": gone("userdb"),
    "/etc/acme/.agent.conf.swp": gone("swp"),
    "/etc/acme/agent.conf~": gone("tilde"),
}
#: What custom data and applications put there: stays as it is.
BELONGINGS: dict[str, str] = {
    "/etc/acme/agent.conf": "KEEP-agent",
    "/etc/cron.d/acme": "KEEP-cron",
    "/etc/ssl/private/web.key": KEY.format("KEEP-tls"),
    "/etc/wireguard/wg0.conf": "KEEP-wireguard",
    "/etc/environment": "TOKEN=KEEP-environment\n",
    "/root/.pgpass": "KEEP-root-pgpass",
    "/srv/data/records": "KEEP-records",
    "/var/lib/postgresql/data": "KEEP-database",
    "/var/spool/cron/crontabs/postgres": "KEEP-postgres-cron",
    "/etc/security/group.conf": "KEEP-pam",
    "/var/lib/cloud/scripts/per-boot/x": "KEEP-script",
}


def plant(root: Path, path: str, content: str | bytes) -> Path:
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content if isinstance(content, bytes) else content.encode())
    return target


def used_machine(root: Path) -> None:
    """Lay out the tree of a machine that was provisioned and used."""
    for path, content in (LEAVINGS | BELONGINGS).items():
        plant(root, path, content)
    plant(root, "/usr/lib/os-release", RELEASE)
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    (root / "etc/localtime").symlink_to("/usr/share/zoneinfo/Europe/Madrid")
    plant(root, "/usr/share/zoneinfo/Europe/Madrid", "TZif")
    plant(root, "/usr/bin/bash", Path("/bin/sh").resolve().read_bytes()[:4096])
    (root / "bin").symlink_to("usr/bin")
    hashes = {tag: gone(f"hash-{tag}") for tag in ("root", "pg", "alice", "bob", "left", "group")}
    plant(root, "/etc/passwd", PASSWD.format(alice=gone("gecos"), bob=gone("gecos-bob")))
    plant(root, "/etc/shadow", SHADOW.format(**hashes)).chmod(0o640)
    plant(root, "/etc/group", GROUP)
    plant(root, "/etc/gshadow", GSHADOW.format(**hashes)).chmod(0o640)
    plant(root, "/etc/fstab", FSTAB)
    plant(root, "/boot/vmlinuz-6.1.0-1-amd64", "kernel")
    plant(root, "/var/lib/dpkg/status", "Package: a\nStatus: install ok installed\n" * 7)
    plant(root, "/swapfile", bytes(4086) + b"SWAPSPACE2" + gone("swap-file").encode() * 900)
    plant(root, "/swap.img", gone("unsigned-swap").encode() * 900)
    (root / "tmp").chmod(0o1777)
    if os.geteuid() == 0:
        for path, uid in (("home/alice", 1000), ("opt/people/bob", 1001), ("home/gone", 1500)):
            for directory, _names, files in os.walk(root / path):
                for name in (".", *files):
                    os.chown(Path(directory) / name, uid, uid)
        os.chown(root / "etc/shadow", 0, 42)


def bury(image: Path) -> None:
    """Leave what is seen by no listing: deleted files, names and links, and the journal's copies."""
    buried = plant(image.parent, "buried", gone("deleted-file") * 500)
    name = gone("deleted-name")
    script = [f"symlink /srv/l {gone('deleted-link')}", f"write {buried} /srv/{name}"]
    script += [f"rm /srv/{name}", "rm /srv/l"]
    debugfs = run.run(["debugfs", "-w", "-f", "-", str(image)], data="\n".join(script).encode())
    assert len(debugfs.stderr.splitlines()) == 1, debugfs.stderr
    with image.open("r+b") as file:
        fs = Ext4(lambda at, length: os.pread(file.fileno(), length, at), ROOT_SIZE)
        journal = next(fs.runs(fs.inode(fs.journal_inode)))
        os.pwrite(file.fileno(), gone("journal-copy").encode(), (journal.physical + 5) * fs.block)


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole disk (GPT: BIOS boot, root, swap) of a used machine."""
    room = tmp_path_factory.mktemp("used")
    used_machine(room / "tree")
    part = room / "root.ext4"
    args = ["mke2fs", "-q", "-t", "ext4", "-L", "root", "-b", "4096", "-d", str(room / "tree")]
    run.run([*args, str(part), f"{ROOT_SIZE >> 10}k"])
    bury(part)
    disk = room / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(SIZE)
    sector = 512
    argv = ["sgdisk", "-n", f"14:2048:{ROOT_AT // sector - 1}", "-t", "14:EF02"]
    argv += ["-n", f"1:{ROOT_AT // sector}:{(ROOT_AT + ROOT_SIZE) // sector - 1}", "-t", "1:8304"]
    argv += ["-n", f"2:{SWAP_AT // sector}:{(SWAP_AT + SWAP_SIZE) // sector - 1}", "-t", "2:8200"]
    run.run([*argv, str(disk)])
    with disk.open("r+b") as file:
        file.seek(ROOT_AT)
        file.write(part.read_bytes())
        file.seek(SWAP_AT + 4086)
        file.write(b"SWAPSPACE2")
        file.seek(SWAP_AT + MIB)
        file.write(gone("swap-partition").encode())
    shutil.rmtree(room / "tree")
    return disk


class Outcome:
    """A generalized disk: its raw bytes, the report, a check of its file system."""

    def __init__(self, source: Path, room: Path, **options: object) -> None:
        with writable(RawSource(source), room / "o", room) as view:
            self.report: GeneralizeReport = generalize(view, **options)  # type: ignore[arg-type]  # spelled out by each test
        self.changed = view.changed()
        with closing(view.disk()) as disk:
            self.raw = read(disk, 0, disk.size)
            self.proof = prove_disk(disk)
        self.root = room / "root.ext4"
        self.root.write_bytes(self.raw[ROOT_AT : ROOT_AT + ROOT_SIZE])

    def file(self, path: str) -> bytes | None:
        with offline(self.root) as guest:
            return guest.read(path)


@pytest.fixture(scope="module")
def outcome(used: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return Outcome(used, tmp_path_factory.mktemp("outcome"))


def test_the_canaries_are_there_before(used: Path) -> None:
    raw = used.read_bytes()
    assert [name for name in sorted(set(_gone)) if name.encode() not in raw] == []
    assert len(set(_gone)) >= 60


def test_no_canary_is_left_in_the_raw_bytes(outcome: Outcome) -> None:
    found = {name for name in _gone if name.encode() in outcome.raw}
    assert found == set()
    assert b"0123456789abcdef0123456789abcdef" not in outcome.raw
    for person in (b"alice", b"/bob", b"bob:"):
        assert person not in outcome.raw


def test_what_is_no_machines_and_no_persons_stays(outcome: Outcome) -> None:
    for path, content in BELONGINGS.items():
        assert outcome.file(path) == content.encode(), path
    assert outcome.file("/etc/hosts") == (
        b"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n10.0.0.9 db01.corp.example db\n"
    )
    assert outcome.file("/etc/postfix/main.cf") == (
        b"myhostname = localhost\nrelayhost = keep.example\n"
    )
    assert outcome.file("/etc/udev/rules.d/99-site.rules") == b"KEEP-UDEV\n"
    assert outcome.file("/etc/machine-info") == b"ICON_NAME=computer\n"
    assert outcome.file("/etc/sudoers") == b"root ALL=(ALL) ALL\n"
    assert outcome.file("/etc/iscsi/initiatorname.iscsi") == b"GenerateName=yes\n"


def test_accounts(outcome: Outcome) -> None:
    passwd = (outcome.file("/etc/passwd") or b"").decode()
    assert [line.split(":")[0] for line in passwd.splitlines()] == [
        "root",
        "daemon",
        "postgres",
        "nobody",
    ]
    shadow = (outcome.file("/etc/shadow") or b"").decode()
    assert [line.split(":")[:2] for line in shadow.splitlines()] == [
        ["root", "*"],
        ["daemon", "*"],
        ["postgres", "*"],
        ["nobody", "*"],
    ]
    assert outcome.file("/etc/group") == b"root:x:0:\nsudo:x:27:\npostgres:x:113:\ndocker:x:999:\n"
    assert outcome.file("/etc/subuid") == b""
    with offline(outcome.root) as guest:
        found = guest.stat("/etc/shadow")
        assert found is not None
        assert found.mode & 0o7777 == 0o640
        assert found.gid == (42 if os.geteuid() == 0 else found.gid)
        assert guest.list("/home") == []
        assert guest.list("/opt/people") == []
        assert guest.stat("/etc/acme") is not None  # a home called /etc is not removed


def test_what_must_stay_in_place(outcome: Outcome) -> None:
    with offline(outcome.root) as guest:
        for path in ("/etc/machine-id", "/var/log/auth.log", "/var/log/wtmp", "/etc/resolv.conf"):
            assert guest.read(path) == b"", path
        tmp = guest.stat("/tmp")
        assert tmp is not None
        assert tmp.mode == 0o41777
        assert guest.list("/tmp") == []
        assert guest.list("/var/log/journal") == []
        swap = guest.read("/swapfile")
        assert swap is not None
        assert swap[4086:4096] == b"SWAPSPACE2"
        assert not any(swap[4096:])
    assert outcome.raw[SWAP_AT + 4086 : SWAP_AT + 4096] == b"SWAPSPACE2"


def test_the_file_system_is_clean(outcome: Outcome) -> None:
    run.run(["e2fsck", "-fn", str(outcome.root)])
    assert "files" in outcome.report.filesystem
    assert outcome.report.wiped > 0


def test_the_report(outcome: Outcome) -> None:
    report = outcome.report
    assert {step.name for step in report.steps} == {step.name for step in select({"debian"})}
    silent = {step.name for step in report.steps if not step.edits}
    assert silent == {step.name for step in OF_DEBIAN if step.command}
    assert all(not step.left for step in report.steps)
    kinds = {secret.path: secret.kind for secret in report.secrets}
    assert kinds["/etc/ssl/private/web.key"] == "TLS private key"
    assert kinds["/root/.pgpass"] == "database password"
    assert "/etc/wireguard/wg0.conf" in kinds
    assert "/etc/environment" in kinds
    assert report.notes == ("the time zone stays Europe/Madrid",)
    assert report.before.users == ("alice", "bob", "evil")


def test_inspection_before_and_after(used: Path, outcome: Outcome) -> None:
    with closing(RawSource(used).open()) as disk:
        proof = prove_disk(disk)
    before = proof.seen
    assert before.os_type is OsType.LINUX
    assert (before.os_id, before.os_version) == ("debian", "12")
    assert before.hostname == HOST
    assert before.passwords == ("root", "alice", "bob", "left")
    assert before.architecture in (Architecture.X64, Architecture.ARM64)
    assert before.generations == (Generation.V1,)
    assert before.packages == 7
    assert before.kernels == ("6.1.0-1-amd64",)
    assert before.mounts[:2] == (("/", "LABEL=root"), ("none", "/swapfile"))
    assert proof.verdict is Verdict.MIXED  # without systemd and sshd nothing tells a whole machine
    assert len(proof.reasons) > 8
    assert outcome.proof.verdict is Verdict.GENERALIZED
    assert outcome.proof.findings == ()
    after = outcome.proof.seen
    assert after.users == after.host_keys == after.passwords == ()


def test_the_source_is_not_touched_and_changes_are_few(used: Path, outcome: Outcome) -> None:
    assert HOST.encode() in used.read_bytes()
    assert sum(extent.length for extent in outcome.changed if not extent.zero) < 4 * MIB


def test_twice_is_once(outcome: Outcome, tmp_path: Path) -> None:
    again = tmp_path / "again.raw"
    again.write_bytes(outcome.raw)
    second = Outcome(again, tmp_path)
    assert [step.name for step in second.report.steps if step.edits] == []


def test_a_dry_run_changes_no_file(used: Path, tmp_path: Path) -> None:
    dry = Outcome(used, tmp_path, dry_run=True)
    assert all(name.encode() in dry.raw for name in set(_gone))
    would = {edit.path for step in dry.report.steps for edit in step.edits}
    assert {"/home/alice", "/etc/ssh/ssh_host_rsa_key", "/var/log/auth.log"} <= would
    assert dry.proof.verdict is Verdict.MIXED


@pytest.mark.parametrize(
    "step", [s for s in OF_DEBIAN if not s.command], ids=lambda step: step.name
)
def test_each_check_finds_what_its_step_would_remove(
    step: all_steps.SysprepStep, used: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root.ext4"
    root.write_bytes(used.read_bytes()[ROOT_AT : ROOT_AT + ROOT_SIZE])
    with offline(root) as guest:
        assert step.check(guest) != []
        step.perform(guest)
        assert step.check(guest) == []


def test_a_step_left_undone_is_refused(
    used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = [replace(s, perform=lambda _g: None) if s.name == "ssh-host-keys" else s for s in STEPS]
    monkeypatch.setattr(all_steps, "STEPS", tuple(lazy))
    with pytest.raises(GuestError, match="ssh-host-keys: /etc/ssh/ssh_host_ed25519_key is there"):
        Outcome(used, tmp_path)
    assert not (tmp_path / "o").exists()


def test_a_disabled_step_is_neither_done_nor_checked(used: Path, tmp_path: Path) -> None:
    kept = Outcome(used, tmp_path, disable=["timers", "editor-files"])
    assert kept.report.disabled == ("editor-files", "timers")
    assert kept.file("/var/lib/systemd/timers/stamp-apt-daily.timer")
    assert kept.file("/etc/ssh/ssh_host_rsa_key") is None


def test_names_of_steps() -> None:
    names = [step.name for step in STEPS]
    assert len(set(names)) == len(names)
    assert [step.order for step in STEPS] == sorted(step.order for step in STEPS)
    assert all(step.heading for step in STEPS)
    with pytest.raises(InvalidInput, match="no step named typo"):
        select({"debian"}, disable=["typo"])
    with pytest.raises(InvalidInput, match="both"):
        select({"debian"}, enable=["users"], disable=["users"])
    only = replace(STEPS[0], distributions=frozenset({"alpine"}))
    assert only not in select({"debian"})


Change = Callable[[Path], None]


def _other_system(root: Path) -> None:
    plant(root, "/usr/lib/os-release", 'ID=plan9\nPRETTY_NAME="Plan 9"\n')


def _own_home_partition(root: Path) -> None:
    plant(root, "/etc/fstab", "LABEL=root / ext4 defaults 0 1\nLABEL=h /home ext4 defaults 0 2\n")


def _no_system(root: Path) -> None:
    shutil.rmtree(root / "etc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_system, "Plan 9 cannot be generalized yet"),
        (_own_home_partition, "/home is on a file system of its own"),
        (_no_system, "no operating system"),
    ],
)
def test_refusals(change: Change, message: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    plant(tree, "/usr/lib/os-release", RELEASE)
    plant(tree, "/etc/passwd", PASSWD)
    (tree / "etc/os-release").symlink_to("../usr/lib/os-release")
    change(tree)
    disk = tmp_path / "d.raw"
    run.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(disk), "8M"])
    with pytest.raises(GuestError, match=message):
        Outcome(disk, tmp_path)


def test_a_dirty_journal_is_replayed(used: Path, tmp_path: Path) -> None:
    root = tmp_path / "root.ext4"
    root.write_bytes(used.read_bytes()[ROOT_AT : ROOT_AT + ROOT_SIZE])
    script = b"feature needs_recovery\n"
    run.run(["debugfs", "-w", "-f", "-", str(root)], data=script)
    with pytest.raises(GuestError, match="not replayed"), offline(root):
        pass
    disk = tmp_path / "disk.raw"
    shutil.copy(used, disk)
    with disk.open("r+b") as file:
        file.seek(ROOT_AT)
        file.write(root.read_bytes())
    with closing(RawSource(disk).open()) as opened:
        assert inspect(opened).stale
    assert Outcome(disk, tmp_path).proof.verdict is Verdict.GENERALIZED


def test_a_damaged_file_system_is_refused(used: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    shutil.copy(used, disk)
    root = tmp_path / "root.ext4"
    root.write_bytes(used.read_bytes()[ROOT_AT : ROOT_AT + ROOT_SIZE])
    # A directory in two places cannot be mended without a question.
    inode = subprocess.run(
        ["debugfs", "-R", "stat /srv/data", str(root)], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    run.run(["debugfs", "-w", "-f", "-", str(root)], data=f"ln <{inode}> /etc/loop\n".encode())
    with disk.open("r+b") as file:
        file.seek(ROOT_AT)
        file.write(root.read_bytes())
    with pytest.raises(GuestError, match="damaged"):
        Outcome(disk, tmp_path)
