"""Offline editing: hostile names and links stay inside the tree, and the file system stays clean."""

import os
import stat
from pathlib import Path

import pytest
from tests.trees import HOSTILE_NAMES

from calotype import run
from calotype.errors import GuestError
from calotype.guest import Action, Edit, steps
from calotype.guest.guest import glob, walk
from calotype.guest.offline import offline


def image(tree: Path, path: Path, size: str = "16M", *options: str) -> Path:
    run.run(["mke2fs", "-q", "-t", "ext4", *options, "-d", str(tree), str(path), size])
    return path


def clean(path: Path) -> None:
    run.run(["e2fsck", "-fn", str(path)])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_bytes(b"root:x:0:0::/root:/bin/sh\n")
    return root


def names(found: list[str]) -> list[bytes]:
    return [os.fsencode(name) for name in found]


def test_hostile_names_are_read_removed_and_emptied(tree: Path, tmp_path: Path) -> None:
    for directory in ("one", "all", "kept", "big"):
        (tree / directory).mkdir()
        for name in HOSTILE_NAMES:
            (tree / directory / os.fsdecode(name)).write_bytes(b"content of " + name)
    (tree / "kept").chmod(0o1777)
    for number in range(1500):
        (tree / "big" / str(number)).touch()
    path = image(tree, tmp_path / "img")
    with offline(path) as guest:
        assert sorted(names(guest.list("/one"))) == sorted(HOSTILE_NAMES)
        for name in HOSTILE_NAMES:
            inner = "/one/" + os.fsdecode(name)
            assert guest.read(inner) == b"content of " + name
            guest.remove(inner)
            assert guest.stat(inner) is None
        assert guest.list("/one") == []
        guest.remove("/all")
        guest.truncate("/kept")
        guest.truncate("/big")
    clean(path)
    with offline(path) as guest:
        assert guest.list("/") == ["big", "etc", "kept", "lost+found", "one"]
        kept = guest.stat("/kept")
        assert kept is not None
        assert kept.mode == stat.S_IFDIR | 0o1777
        assert guest.list("/kept") == guest.list("/big") == guest.list("/one") == []


def test_hostile_names_are_written(tree: Path, tmp_path: Path) -> None:
    (tree / "d").mkdir()
    for name in HOSTILE_NAMES:
        (tree / "d" / os.fsdecode(name)).write_bytes(b"before")
    path = image(tree, tmp_path / "img")
    speakable = [name for name in HOSTILE_NAMES if not set(name) & set(b"\r\n")]
    with offline(path) as guest:
        for name in speakable:
            guest.write("/d/" + os.fsdecode(name), b"after " + name)
        for name in speakable:
            assert guest.read("/d/" + os.fsdecode(name)) == b"after " + name
    clean(path)


def test_removing_in_a_directory_with_a_hostile_name(tree: Path, tmp_path: Path) -> None:
    inner = tree / "new\nline" / 'qu"ote'
    inner.mkdir(parents=True)
    (inner / "a").touch()
    (inner / "b\r").touch()
    path = image(tree, tmp_path / "img")
    with offline(path) as guest:
        guest.remove('/new\nline/qu"ote/a')
        guest.truncate('/new\nline/qu"ote')
        assert guest.list("/new\nline") == ['qu"ote']
        assert guest.list('/new\nline/qu"ote') == []
        guest.remove("/new\nline")
    clean(path)


def test_write_keeps_mode_and_owner_and_breaks_no_hard_link(tree: Path, tmp_path: Path) -> None:
    (tree / "etc/shadow").write_bytes(b"old")
    (tree / "etc/shadow").chmod(0o640)
    os.link(tree / "etc/shadow", tree / "etc/other")
    if os.geteuid() == 0:
        os.chown(tree / "etc/shadow", 100_000, 42)
    path = image(tree, tmp_path / "img")
    with offline(path) as guest:
        before = guest.stat("/etc/shadow")
        assert before is not None
        assert before.links == 2
        guest.write("/etc/shadow", b"new" * 10_000)
        guest.write("/etc/fresh", b"fresh", 0o600)
        guest.write("/etc/passwd", b"root:x:0:0::/root:/bin/sh\n")  # nothing changes
        after = guest.stat("/etc/shadow")
        assert after is not None
        assert (after.mode, after.uid, after.gid) == (before.mode, before.uid, before.gid)
        assert guest.read("/etc/shadow") == b"new" * 10_000
        assert guest.read("/etc/other") == b"old"
        fresh = guest.stat("/etc/fresh")
        assert fresh is not None
        assert (fresh.mode, fresh.uid, fresh.size) == (stat.S_IFREG | 0o600, 0, 5)
        assert guest.edits == [
            Edit(Action.WRITTEN, "/etc/shadow"),
            Edit(Action.WRITTEN, "/etc/fresh"),
        ]
        guest.remove("/etc/other")
        with pytest.raises(GuestError, match="directory is missing"):
            guest.write("/nowhere/x", b"")
    clean(path)


def test_hard_links_inside_and_outside_of_what_goes(tree: Path, tmp_path: Path) -> None:
    (tree / "home/a").mkdir(parents=True)
    (tree / "home/a/f").write_bytes(b"shared")
    os.link(tree / "home/a/f", tree / "etc/outside")
    (tree / "home/a/g").write_bytes(b"private")
    os.link(tree / "home/a/g", tree / "home/a/g2")
    path = image(tree, tmp_path / "img")
    with offline(path) as guest:
        guest.remove("/home/a")
        found = guest.stat("/etc/outside")
        assert found is not None
        assert found.links == 1
    clean(path)
    with offline(path) as guest:
        assert guest.read("/etc/outside") == b"shared"


@pytest.mark.parametrize(
    "options", [(), ("-O", "inline_data"), ("-O", "^extents,^64bit"), ("-b", "1024")]
)
def test_truncating_in_place(options: tuple[str, ...], tree: Path, tmp_path: Path) -> None:
    for name, size in (("small", 20), ("middle", 5000), ("large", 900_000)):
        (tree / name).write_bytes(b"y" * size)
        (tree / name).chmod(0o640)
    path = image(tree, tmp_path / "img", "16M", *options)
    with offline(path) as guest:
        for name in ("small", "middle", "large"):
            guest.truncate(f"/{name}")
            found = guest.stat(f"/{name}")
            assert found is not None
            assert (found.size, found.mode) == (0, stat.S_IFREG | 0o640)
            assert guest.read(f"/{name}") == b""
        guest.truncate("/small")
        assert len(guest.edits) == 3
    clean(path)


def test_blanking_in_place(tree: Path, tmp_path: Path) -> None:
    (tree / "swap").write_bytes(b"s" * 300_000)
    path = image(tree, tmp_path / "img")
    with offline(path) as guest:
        assert not guest.is_blank("/swap", 4096)
        guest.blank("/swap", 4096)
        assert guest.is_blank("/swap", 4096)
        assert guest.read("/swap") == b"s" * 4096 + bytes(300_000 - 4096)
    clean(path)


def test_links_lead_nowhere_but_into_the_tree(tree: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    host.mkdir()
    (host / "ssh_host_rsa_key").write_bytes(b"the host's own")
    (tree / "etc/ssh").symlink_to(host)
    (tree / "etc/up").symlink_to("../../../../../../../etc")
    (tree / "etc/loop").symlink_to("loop")
    (tree / "etc/ping").symlink_to("pong")
    (tree / "etc/pong").symlink_to("ping/../ping")
    (tree / "etc/machine-id").symlink_to(host / "ssh_host_rsa_key")
    (tree / "inner").mkdir()
    (tree / "inner/file").write_bytes(b"inner")
    (tree / "dir").symlink_to("inner")
    (tree / "dots").symlink_to("inner/./../inner//")
    path = image(tree, tmp_path / "img")
    with offline(path) as guest:
        assert guest.list("/etc/ssh") == []
        assert guest.read("/etc/machine-id") is None
        assert guest.read("/etc/up/passwd") == (tree / "etc/passwd").read_bytes()
        assert guest.real("/etc/up/../etc/up/passwd") == "/etc/passwd"
        for path_ in ("/etc/loop", "/etc/loop/x", "/etc/ping/x"):
            assert guest.read(path_) is None
            assert guest.list(path_) == []
        assert guest.read("/dir/file") == guest.read("/dots/file") == b"inner"
        assert guest.real("/dots/file") == "/inner/file"
        guest.remove("/dir")
        assert guest.read("/inner/file") == b"inner"
        assert guest.stat("/etc/passwd/x") is None
        for step in steps.STEPS:
            step.perform(guest)
            assert step.check(guest) == [], step.name
        with pytest.raises(GuestError, match="root directory"):
            guest.remove("/etc/..")
    clean(path)
    assert (host / "ssh_host_rsa_key").read_bytes() == b"the host's own"


def test_every_step_withstands_files_of_the_wrong_kind(tree: Path, tmp_path: Path) -> None:
    """FIFOs, directories and endless links where the steps expect files, and files for directories."""
    (tree / "var/lib").mkdir(parents=True)
    for name in ("etc/machine-id", "etc/hostname", "etc/shadow", "etc/hosts", "var/lib/dbus"):
        os.mkfifo(tree / name)
    for name in ("etc/resolv.conf", "etc/fstab", "etc/group", "swapfile", "etc/gshadow"):
        (tree / name).mkdir()
    for name in ("tmp", "var/log", "home", "var/mail", "var/lib/cloud"):
        (tree / name).write_bytes(b"no directory")
    (tree / "root").symlink_to("root/root")
    (tree / "etc/subuid").symlink_to("/dev/zero")
    if os.geteuid() == 0:
        (tree / "dev").mkdir()
        os.mknod(tree / "dev/zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    path = image(tree, tmp_path / "img")
    with offline(path) as guest:
        for step in steps.STEPS:
            step.check(guest)
            try:
                step.perform(guest)
            except GuestError:
                assert step.name == "hostname"  # a FIFO in the place of a file it must write
    clean(path)


def test_a_huge_tree_goes_in_one_sweep(tree: Path, tmp_path: Path) -> None:
    deep = tree / "home"
    for level in range(60):
        deep /= f"level{level}"
    deep.mkdir(parents=True)
    wide = tree / "home/wide"
    wide.mkdir()
    for number in range(2500):
        (wide / f"file-{number}").touch()
    path = image(tree, tmp_path / "img", "32M", "-N", "4000")
    with offline(path) as guest:
        assert sum(1 for _ in walk(guest, "/home")) == 2561
        guest.remove("/home")
        assert guest.stat("/home") is None
    clean(path)


def test_globs(tree: Path, tmp_path: Path) -> None:
    for name in ("log/a.log", "log/.hidden.log", "log/b.txt", "spool/x/1", "spool/y/1"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    (tree / "link").symlink_to("log")
    path = image(tree, tmp_path / "img")
    with offline(path) as guest:
        assert list(glob(guest, "/log/*.log")) == ["/log/.hidden.log", "/log/a.log"]
        assert list(glob(guest, "/link/*.txt")) == ["/link/b.txt"]
        assert list(glob(guest, "/spool/*/1")) == ["/spool/x/1", "/spool/y/1"]
        assert list(glob(guest, "/spool/*/2")) == []
        assert list(glob(guest, "/link")) == ["/link"]
        assert list(glob(guest, "/no/such")) == []


def test_what_debugfs_complains_of_is_told(tree: Path, tmp_path: Path) -> None:
    path = image(tree, tmp_path / "img")

    def full() -> None:
        with offline(path) as guest:
            guest.write("/etc/passwd", b"z" * (32 << 20))

    with pytest.raises(GuestError, match="could not be changed"):
        full()


def test_no_file_system(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(1 << 20))
    with pytest.raises(GuestError, match="no ext4"), offline(tmp_path / "zeros"):
        pass


ACL = bytes.fromhex("0200000001000600ffffffff02000400e803000004000400ffffffff") + bytes.fromhex(
    "10000400ffffffff20000000ffffffff"
)


@pytest.mark.parametrize(
    "options", [("-I", "256"), ("-I", "128"), ("-O", "inline_data", "-I", "256")]
)
def test_a_rewritten_file_keeps_its_attributes(
    options: tuple[str, ...], tree: Path, tmp_path: Path
) -> None:
    """SELinux's label, capabilities, an ACL and more than the inode has room for."""
    path = image(tree, tmp_path / "img", "16M", *options)
    (tmp_path / "acl").write_bytes(ACL)
    (tmp_path / "cap").write_bytes(bytes.fromhex("0100000200040000000000000000000000000000"))
    script = [
        "ea_set /etc/passwd security.selinux system_u:object_r:passwd_file_t:s0",
        "ea_set /etc security.selinux system_u:object_r:etc_t:s0",
        f"ea_set -f {tmp_path / 'cap'} /etc/passwd security.capability",
        f"ea_set -f {tmp_path / 'acl'} /etc/passwd system.posix_acl_access",
        f"ea_set /etc/passwd user.big {'v' * 200}",
    ]
    run.run(["debugfs", "-w", "-f", "-", str(path)], data="\n".join(script).encode())

    def attributes(name: str) -> list[bytes]:
        said = run.run(["debugfs", "-R", f"ea_list {name}", str(path)])
        return sorted(line for line in said.stdout.splitlines()[1:] if b"system.data" not in line)

    before = attributes("/etc/passwd")
    assert len(before) == 4
    with offline(path) as guest:
        guest.write("/etc/passwd", b"root:x:0:0::/root:/bin/bash\n" * 100)
        guest.write("/etc/new", b"new")
    assert attributes("/etc/passwd") == before
    assert attributes("/etc/new") == attributes("/etc")
    run.run(["e2fsck", "-fp", str(path)], check=False)  # frees the old block of attributes
    clean(path)


@pytest.mark.parametrize("options", [(), ("-O", "^metadata_csum"), ("-O", "metadata_csum_seed")])
def test_names_leave_a_directory_with_an_index(
    options: tuple[str, ...], tree: Path, tmp_path: Path
) -> None:
    (tree / "many").mkdir()
    for number in range(6000):
        (tree / f"many/name-{number:05}").touch()
    path = image(tree, tmp_path / "img", "32M", "-N", "8000", "-b", "1024", *options)
    run.run(["e2fsck", "-fpD", str(path)], check=False)  # builds the index
    with offline(path) as guest:
        for name in guest.list("/many")[::2]:
            guest.remove(f"/many/{name}")
    clean(path)
    assert b"name-00000" not in path.read_bytes()
    with offline(path) as guest:
        assert guest.list("/many") == [f"name-{number:05}" for number in range(1, 6000, 2)]
        guest.truncate("/many")
    clean(path)


def test_loops_of_directories_are_refused(tree: Path, tmp_path: Path) -> None:
    (tree / "var/log/deep").mkdir(parents=True)
    path = image(tree, tmp_path / "img")
    run.run(["debugfs", "-w", "-R", "ln /var/log /var/log/deep/again", str(path)])
    with pytest.raises(GuestError, match="two names"), offline(path) as guest:
        list(walk(guest, "/var"))
