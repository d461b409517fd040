"""Machines that look general: identity and credentials in the less usual places."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests import roots
from tests.roots import Root

from calotype import run
from calotype.disk.base import read
from calotype.disk.view import RawSource, writable
from calotype.guest import Proof, generalize
from calotype.guest.offline import ExtGuest
from calotype.guest.proof import prove_disk
from calotype.guest.sshd import settings
from calotype.model import Verdict

SIZE = 24 << 20
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nYmxh\n-----END OPENSSH PRIVATE KEY-----\n"
PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 bob@laptop\n"
Change = Callable[[Root], None]


def append(path: str, more: str) -> Change:
    def change(root: Root) -> None:
        old = root.entries[path]
        root.file(path, (old.content or b"") + more.encode(), old.mode, old.uid, old.gid)

    return change


def replace(path: str, old: str, new: str) -> Change:
    def change(root: Root) -> None:
        entry = root.entries[path]
        content = (entry.content or b"").decode()
        assert old in content
        root.file(path, content.replace(old, new), entry.mode, entry.uid, entry.gid)

    return change


def file(path: str, content: str, mode: int = 0o600) -> Change:
    return lambda root: root.file(path, content, mode)


def both(*changes: Change) -> Change:
    def change(root: Root) -> None:
        for one in changes:
            one(root)

    return change


def laid_out(tmp_path: Path, family: str, change: Change) -> Path:
    root = roots.lay_out(family, "fresh")
    change(root)
    root.ext4(tmp_path / "root.raw", SIZE)
    return tmp_path / "root.raw"


def proof_of(path: Path) -> Proof:
    with closing(RawSource(path).open()) as disk:
        return prove_disk(disk)


#: What is hidden -> (how, the step that finds it). Generalizing must take each of them away.
HIDDEN: dict[str, tuple[Change, str]] = {
    "an account without a password in passwd itself": (
        replace("/etc/passwd", "root:x:0", "root::0"),
        "passwords",
    ),
    "an account without a password in shadow's old short form": (
        replace("/etc/shadow", "root:*:19600:0:99999:7:::", "root::19600:0:99999"),
        "passwords",
    ),
    "a person without a shell": (
        append("/etc/passwd", "alice:x:1000:1000:A:/srv/alice\n"),
        "users",
    ),
    "a person whose id has a space before it": (
        append("/etc/passwd", "alice:x: 1000:1000:A:/srv/alice:/bin/sh\n"),
        "users",
    ),
    "a person with a vertical tab in the name": (
        append("/etc/passwd", "alice:x:1000:1000:A\x0bB:/srv/alice:/bin/sh\n"),
        "users",
    ),
    "a person with a high id": (
        append("/etc/passwd", "alice:x:100001:100001:A:/home/alice:/bin/sh\n"),
        "users",
    ),
    "a host key in another place": (
        both(
            append("/etc/ssh/sshd_config", "HostKey /etc/ssh/keys/host\n"),
            file("/etc/ssh/keys/host", KEY),
        ),
        "ssh-host-keys",
    ),
    "a host key that an included file names after a Match": (
        both(
            append("/etc/ssh/sshd_config", "Match User x\ninclude more/*\n"),
            file("/etc/ssh/more/1", "hostkey=/var/lib/keys/host\n"),
            file("/var/lib/keys/host", KEY),
        ),
        "ssh-host-keys",
    ),
    "root's keys in another place": (
        both(
            append("/etc/ssh/sshd_config", "AuthorizedKeysFile /etc/ssh/people/%u\n"),
            file("/etc/ssh/people/root", PUBLIC),
        ),
        "authorized-keys",
    ),
    "keys under another name in a home": (
        both(
            append("/etc/ssh/sshd_config", "AuthorizedKeysFile .ssh/authorized_keys %h/.mine\n"),
            file("/root/.mine", PUBLIC),
        ),
        "authorized-keys",
    ),
    "a user record of systemd": (
        file("/etc/userdb/alice.user", '{"userName": "alice", "uid": 1500}'),
        "user-records",
    ),
    "a password among systemd's credentials": (
        file("/etc/credstore/passwd.hashed-password.root", "$6$a$b"),
        "user-records",
    ),
    "people in another database": (
        file("/var/lib/extrausers/passwd", "alice:x:1500:1500::/srv/alice:/bin/sh\n"),
        "user-records",
    ),
    "a machine-id that the kernel is told": (
        both(
            file("/boot/grub/grub.cfg", f"linux /vmlinuz systemd.machine_id={'ab' * 16} quiet\n"),
            file("/etc/default/grub", f'GRUB_CMDLINE_LINUX="systemd.machine_id={"ab" * 16}"\n'),
        ),
        "machine-id",
    ),
}


@pytest.mark.parametrize("what", HIDDEN)
def test_what_is_hidden_is_found_and_removed(what: str, tmp_path: Path) -> None:
    change, step = HIDDEN[what]
    path = laid_out(tmp_path, "debian", change)
    proof = proof_of(path)
    assert proof.verdict is Verdict.MIXED
    assert [f.step for f in proof.findings if f.step == step], proof.reasons
    with writable(RawSource(path), tmp_path / "overlay", tmp_path) as view:
        generalize(view)
    with closing(view.disk()) as disk:
        assert prove_disk(disk).verdict is Verdict.GENERALIZED


@pytest.mark.parametrize("word", ["!locked", "*LK*", "!!", "!*", "*NP*", "x", "!x"])
def test_a_lock_is_no_password(word: str, tmp_path: Path) -> None:
    path = laid_out(tmp_path, "alma", replace("/etc/shadow", "root:!!:", f"root:{word}:"))
    assert proof_of(path).verdict is Verdict.GENERALIZED


@pytest.mark.parametrize(
    "secret", ["$y$j9T$a$b", "!$6$a$b", "!ab1234567890A", "_J9..rasmBYk8r9AiWNc"]
)
def test_a_hash_is_a_password(secret: str, tmp_path: Path) -> None:
    path = laid_out(tmp_path, "alma", replace("/etc/shadow", "root:!!:", f"root:{secret}:"))
    assert proof_of(path).reasons == ("passwords: /etc/shadow has a password of root",)


def test_lines_end_where_the_guest_ends_them(tmp_path: Path) -> None:
    """A form feed ends a line for Python alone: half of a row would go, and the other half stay."""
    row = "www:x:990:990:A\x0cB\u2028C:/srv/www:/bin/sh\n"
    change = both(append("/etc/passwd", row + "alice:x:1000:1000::/home/alice:/bin/sh\n"))
    path = laid_out(tmp_path, "debian", change)
    with writable(RawSource(path), tmp_path / "overlay", tmp_path) as view:
        generalize(view)
    with closing(view.disk()) as disk:
        after = ExtGuest.on_disk(disk, 0, disk.size).read("/etc/passwd") or b""
    assert row.encode() in after
    assert b"alice" not in after


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("UUID=2 /home/ ext4 defaults 0 2", "/home"),
        ("UUID=2 //home ext4 defaults 0 2", "/home"),
        ("UUID=2 /home/alice ext4 defaults 0 2", "/home/alice"),
        ("UUID=2 /etc/ssh ext4 defaults 0 2", "/etc/ssh"),
        ("UUID=2 /var/lib/cloud ext4 defaults 0 2", "/var/lib/cloud"),
        ("UUID=2 /v\\141r xfs defaults 0 2", "/var"),
        ("overlay /etc overlay lowerdir=/etc,upperdir=/data/upper,workdir=/data/work 0 0", "/etc"),
    ],
)
def test_mounts_by_other_spellings(line: str, where: str, tmp_path: Path) -> None:
    proof = proof_of(laid_out(tmp_path, "debian", append("/etc/fstab", f"{line}\n")))
    assert proof.verdict is Verdict.UNKNOWN
    assert proof.reasons == (f"{where} is on a file system of its own, which was not looked into",)


def test_mounts_by_units(tmp_path: Path) -> None:
    unit = "[Mount]\nWhat=/dev/disk/by-label/h\nWhere=/home\nType=ext4\n"

    def change(root: Root) -> None:
        root.file("/etc/systemd/system/home.mount", unit)
        root.link("/etc/systemd/system/local-fs.target.wants/home.automount", "../home.automount")

    assert proof_of(laid_out(tmp_path, "debian", change)).seen.apart == ("/home",)


@pytest.mark.parametrize(
    "line",
    [
        "tmpfs /tmp tmpfs defaults 0 0",
        "none /var/tmp tmpfs defaults 0 0",
        "UUID=2 /boot ext4 defaults 0 2",
        "UUID=2 /boot/efi vfat umask=0077 0 1",
        "UUID=2 /srv ext4 defaults 0 2",
        "UUID=2 /var/lib/postgresql ext4 defaults 0 2",
        "UUID=2 none swap sw 0 0",
    ],
)
def test_mounts_that_hide_nothing(line: str, tmp_path: Path) -> None:
    proof = proof_of(laid_out(tmp_path, "debian", append("/etc/fstab", f"{line}\n")))
    assert proof.verdict is Verdict.GENERALIZED


@pytest.mark.parametrize("name", ["HostKey", "AuthorizedKeysFile"])
def test_what_the_server_is_told_takes_no_other_file_away(name: str, tmp_path: Path) -> None:
    change = append("/etc/ssh/sshd_config", f"{name} /etc/passwd\n{name} none\n")
    path = laid_out(tmp_path, "debian", change)
    assert proof_of(path).verdict is Verdict.GENERALIZED
    with writable(RawSource(path), tmp_path / "overlay", tmp_path) as view:
        generalize(view)
    with closing(view.disk()) as disk:
        assert ExtGuest.on_disk(disk, 0, disk.size).stat("/etc/passwd")


def test_a_server_with_its_keys_elsewhere_makes_new_ones(tmp_path: Path) -> None:
    """A line that names a key that nobody makes would keep the server from starting."""
    change = both(
        append("/etc/ssh/sshd_config", "HostKey /etc/ssh/keys/host\nPort 22\n"),
        file("/etc/ssh/keys/host", KEY),
        file("/etc/ssh/keys/host.pub", PUBLIC),
    )
    path = laid_out(tmp_path, "debian", change)
    with writable(RawSource(path), tmp_path / "overlay", tmp_path) as view:
        generalize(view)
    with closing(view.disk()) as disk:
        tree = ExtGuest.on_disk(disk, 0, disk.size)
        assert (tree.read("/etc/ssh/sshd_config") or b"").endswith(b"120\nPort 22\n")
        assert tree.list("/etc/ssh/keys") == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("users:\n - name: ops\n   ssh_authorized_keys: [ssh-ed25519 AAAA]\n", True),
        ("ssh_authorized_keys:\n  - ssh-ed25519 AAAA\n", True),
        ("chpasswd:\n  list: 'root:$6$a$b'\n", True),
        ("password: hunter22\n", True),
        ("ssh_pwauth: false\nsystem_info: {default_user: {lock_passwd: true}}\n", False),
        ("ssh_authorized_keys: []\n# password: none\n", False),
        ("disable_root: true\nssh_deletekeys: true\nmodules: [ssh, set_passwords]\n", False),
    ],
)
def test_what_cloud_init_gives_to_every_clone_is_told(
    content: str, told: bool, tmp_path: Path
) -> None:
    path = laid_out(tmp_path, "debian", file("/etc/cloud/cloud.cfg.d/99_site.cfg", content))
    assert [s.path for s in proof_of(path).secrets if "cloud-init" in s.kind] == (
        ["/etc/cloud/cloud.cfg.d/99_site.cfg"] if told else []
    )


def test_files_that_include_each_other(tmp_path: Path) -> None:
    def change(root: Root) -> None:
        for number in range(40):
            root.file(f"/etc/ssh/sshd_config.d/{number}.conf", "Include sshd_config.d/*\n" * 40)

    with closing(RawSource(laid_out(tmp_path, "debian", change)).open()) as disk:
        tree = ExtGuest.on_disk(disk, 0, disk.size)
        assert [setting.key for setting in settings(tree)] == ["clientaliveinterval"]


@pytest.mark.parametrize("damaged", [False, True])
def test_deleted_files_on_other_partitions(tmp_path: Path, *, damaged: bool) -> None:
    """Ubuntu has an ext4 at /boot, people have one at /srv: what was deleted there is erased too."""
    path, other = laid_out(tmp_path, "debian", lambda _: None), tmp_path / "srv.raw"
    (tmp_path / "gone").write_text("CANARY-deleted " * 1000)
    (tmp_path / "kept").write_text("KEEP-me " * 1000)
    run.run(["mke2fs", "-q", "-t", "ext4", str(other), f"{SIZE >> 10}k"])
    script = f"write {tmp_path}/gone gone\nwrite {tmp_path}/kept kept\nrm gone\n"
    script += "clri <2>\n" if damaged else ""
    run.run(["debugfs", "-w", "-f", "-", str(other)], data=script.encode())
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(SIZE * 2 + (3 << 20))
        for number, part in enumerate((path, other)):
            file.seek((1 << 20) + number * SIZE)
            file.write(part.read_bytes())
    first, sectors = (1 << 20) // 512, SIZE // 512
    argv = ["sgdisk", "-n", f"1:{first}:{first + sectors - 1}"]
    run.run([*argv, "-n", f"2:{first + sectors}:{first + 2 * sectors - 1}", str(disk)])
    assert b"CANARY-deleted" in disk.read_bytes()
    with writable(RawSource(disk), tmp_path / "overlay", tmp_path) as view:
        report = generalize(view)
    with closing(view.disk()) as after:
        raw = read(after, 0, after.size)
    assert (b"CANARY-deleted" in raw) is damaged
    assert b"KEEP-me KEEP-me" in raw
    assert any("partition 2" in note for note in report.notes) is damaged


@pytest.mark.parametrize(
    ("kind", "make", "reason"),
    [
        ("8302", ["mke2fs", "-q", "-t", "ext4"], "/home is on a file system of its own"),
        ("0700", ["mkfs.fat", "-n", "CIDATA"], "partition 2 is a seed"),
        ("8300", ["mke2fs", "-q", "-L", "config-2"], "partition 2 is a seed"),
        ("8300", ["mke2fs", "-q", "-L", "BOOT"], ""),
        ("ef00", ["mkfs.fat", "-n", "UEFI"], ""),
    ],
)
def test_partitions_that_no_file_names(
    kind: str, make: list[str], reason: str, tmp_path: Path
) -> None:
    root, other = laid_out(tmp_path, "debian", lambda _: None), tmp_path / "other.raw"
    size = 4 << 20
    other.write_bytes(bytes(size))
    run.run([*make, str(other)])
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(SIZE + size + (3 << 20))
        file.seek(1 << 20)
        file.write(root.read_bytes())
        file.seek((1 << 20) + SIZE)
        file.write(other.read_bytes())
    first, middle, last = ((1 << 20) + at for at in (0, SIZE, SIZE + size))
    argv = ["sgdisk", "-n", f"1:{first // 512}:{middle // 512 - 1}"]
    argv += ["-n", f"2:{middle // 512}:{last // 512 - 1}", "-t", f"2:{kind}"]
    run.run([*argv, str(disk)])
    proof = proof_of(disk)
    assert proof.verdict is (Verdict.UNKNOWN if reason else Verdict.GENERALIZED)
    assert [found.startswith(reason) for found in proof.reasons] == [True] * bool(reason)


def test_the_data_of_a_service_that_has_a_persons_number_stays(tmp_path: Path) -> None:
    row = "pg:x:1001:1001::/var/lib/pgdata:/bin/bash\n"

    def change(root: Root) -> None:
        append("/etc/passwd", row)(root)
        root.directory("/var/lib/pgdata", 0o700, 1001, 1001)
        for path, content in (("base/1", "rows"), (".ssh/id_rsa", KEY), (".bash_history", "ls")):
            root.file(f"/var/lib/pgdata/{path}", content, 0o600, 1001, 1001)

    disk = laid_out(tmp_path, "debian", change)
    with writable(RawSource(disk), tmp_path / "overlay", tmp_path) as view:
        generalize(view)
    with closing(view.disk()) as done:
        assert prove_disk(done).verdict is Verdict.GENERALIZED
        tree = ExtGuest.on_disk(done, 0, done.size)
        assert tree.list("/var/lib/pgdata") == ["base"]
        assert tree.read("/var/lib/pgdata/base/1") == b"rows"
        assert "pg" not in (tree.read("/etc/passwd") or b"").decode()
