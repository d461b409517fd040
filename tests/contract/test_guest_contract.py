"""One contract, every guest: offline in an ext4 file system, and behind a shell of each kind."""

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.trees import HOSTILE_NAMES

from calotype import run
from calotype.errors import GuestError, TimedOut
from calotype.guest import Action, Edit
from calotype.guest.guest import glob, walk
from calotype.guest.offline import offline
from calotype.guest.remote import RemoteGuest

#: Opens the guest; its tree may be of any kind.
Opened = Callable[[], contextlib.AbstractContextManager[Any]]


class Done(NamedTuple):
    status: int
    stdout: bytes
    stderr: bytes


class TreeShell:
    """A shell that sees a directory as its root: busybox's own programs, or GNU's."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root = root
        self.calls = 0
        outside = ["--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev", "--bind", root, "/guest"]
        bwrap = ["bwrap", "--unshare-all", "--die-with-parent", *map(str, outside)]
        if os.geteuid() != 0:
            bwrap += ["--uid", "0", "--gid", "0"]
        if kind == "busybox":
            applets = root.parent / "applets"
            applets.mkdir(exist_ok=True)
            shutil.copy("/usr/bin/busybox", applets / "busybox")
            for name in subprocess.check_output(["busybox", "--list"], text=True).split():
                with contextlib.suppress(FileExistsError):
                    (applets / name).symlink_to("busybox")
            bwrap += ["--bind", str(applets), "/bin", "--setenv", "PATH", "/bin"]
            self.argv = [*bwrap, "--", "/bin/sh"]
        else:
            bwrap += ["--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin"]
            bwrap += ["--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"]
            self.argv = [*bwrap, "--", "/bin/sh"]

    def run(self, script: bytes, stdin: bytes = b"", *, timeout: float = 60.0) -> Done:
        self.calls += 1
        try:
            done = subprocess.run(
                [*self.argv, "-c", os.fsdecode(script)],
                input=stdin,
                capture_output=True,
                check=False,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise TimedOut("too long") from None
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in ("etc", "usr/bin", "var/log", "home", "root", "tmp"):
        (root / name).mkdir(parents=True)
    (root / "etc/passwd").write_bytes(b"root:x:0:0::/root:/bin/sh\n")
    return root


@pytest.fixture(params=["offline", "busybox", "gnu"])
def opened(request: pytest.FixtureRequest, tree: Path, tmp_path: Path) -> Opened:
    """A function: the guest on the tree as it is then, and another look at it after its end."""
    kind = request.param

    @contextlib.contextmanager
    def open_guest() -> Iterator[Any]:
        if kind == "offline":
            path = tmp_path / "img"
            if not path.exists():
                run.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(path), "24M"])
            with offline(path) as guest:
                yield guest
            run.run(["e2fsck", "-fn", str(path)])
        else:
            remote = RemoteGuest(TreeShell(tree, kind), "/guest")
            yield remote
            remote.flush()

    return open_guest


def test_what_stands_there(opened: Opened, tree: Path) -> None:
    (tree / "etc/secret").write_bytes(b"12345")
    (tree / "etc/secret").chmod(0o640)
    (tree / "etc/tool").touch()
    (tree / "etc/tool").chmod(0o4755)
    (tree / "etc/link").symlink_to("passwd")
    os.link(tree / "etc/secret", tree / "etc/second")
    os.mkfifo(tree / "etc/fifo")
    (tree / "tmp").chmod(0o1777)
    with opened() as guest:
        found = guest.stat("/etc/secret")
        assert found is not None
        assert (found.mode, found.size, found.links) == (stat.S_IFREG | 0o640, 5, 2)
        assert guest.stat("/etc/tool").mode == stat.S_IFREG | 0o4755
        assert guest.stat("/etc/link").is_link
        assert stat.S_ISFIFO(guest.stat("/etc/fifo").mode)
        assert guest.stat("/tmp").mode == stat.S_IFDIR | 0o1777
        assert guest.stat("/etc").is_dir
        assert guest.stat("/nothing") is None
        assert guest.stat("/etc/passwd/below") is None
        assert guest.list("/etc") == ["fifo", "link", "passwd", "second", "secret", "tool"]
        assert guest.list("/etc/passwd") == []
        assert guest.list("/nothing") == []
        assert guest.read("/etc/secret") == guest.read("/etc/second") == b"12345"
        assert guest.read("/etc/secret", 2) == b"12"
        assert guest.read("/etc/tool") == b""
        assert guest.read("/etc/link", 4) == b"root"
        assert guest.read("/etc/fifo") is None
        assert guest.read("/etc") is None
        assert guest.read("/nothing") is None


def test_links_stay_inside_the_tree(opened: Opened, tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "passwd").write_bytes(b"the host's")
    (tree / "abs").symlink_to("/etc")
    (tree / "up").symlink_to("../../../../../../etc/passwd")
    (tree / "host").symlink_to(outside)
    (tree / "dangling").symlink_to("etc/new")
    (tree / "one").symlink_to("two")
    (tree / "two").symlink_to("one")
    (tree / "self").symlink_to("self/x")
    (tree / "etc/deep").symlink_to("../abs/../up")
    (tree / "odd\nname").symlink_to(os.fsdecode(b"etc/\xff -> '\n//x"))
    (tree / "etc" / os.fsdecode(b"\xff -> '\n")).mkdir()
    (tree / "etc" / os.fsdecode(b"\xff -> '\n") / "x").write_bytes(b"found")
    with opened() as guest:
        passwd = (tree / "etc/passwd").read_bytes()
        for path in ("/abs/passwd", "/up", "/etc/deep", "/../etc/passwd", "/abs/../etc//./passwd"):
            assert guest.read(path) == passwd, path
            assert guest.real(path) == "/etc/passwd"
        assert guest.read("/odd\nname") == b"found"
        assert guest.read("/host/passwd") is None
        assert guest.list("/host") == []
        for path in ("/one", "/two", "/self", "/dangling", "/one/x"):
            assert guest.read(path) is None
            assert guest.real(path) is None
        assert guest.stat("/one").is_link
        guest.remove("/abs")
        guest.write("/dangling", b"made")
        assert guest.read("/etc/new") == b"made"
        with pytest.raises(GuestError):
            guest.write("/host/passwd", b"x")
        with pytest.raises(GuestError):
            guest.write("/one", b"x")
    with opened() as guest:
        assert guest.stat("/abs") is None
        assert guest.read("/etc/passwd") == passwd
        assert guest.read("/etc/new") == b"made"
        assert guest.stat("/dangling").is_link
    assert (outside / "passwd").read_bytes() == b"the host's"


def test_names_of_any_bytes(opened: Opened, tree: Path) -> None:
    for directory in ("one", "all", "kept"):
        (tree / "home" / directory).mkdir()
        for name in HOSTILE_NAMES:
            (tree / "home" / directory / os.fsdecode(name)).write_bytes(b"content of " + name)
    (tree / "home/kept").chmod(0o1777)
    with opened() as guest:
        assert [os.fsencode(n) for n in guest.list("/home/one")] == sorted(HOSTILE_NAMES)
        for name in HOSTILE_NAMES:
            inner = "/home/one/" + os.fsdecode(name)
            assert guest.read(inner) == b"content of " + name
            if b"\n" not in name and b"\r" not in name:  # no line of debugfs can name a new one
                guest.write(inner, b"new " + name)
        guest.remove("/home/all")
        guest.truncate("/home/kept")
    with opened() as guest:
        for name in HOSTILE_NAMES:
            inner = "/home/one/" + os.fsdecode(name)
            plain = b"\n" not in name and b"\r" not in name
            assert guest.read(inner) == (b"new " if plain else b"content of ") + name
            guest.remove(inner)
        assert guest.list("/home") == ["kept", "one"]
        assert guest.list("/home/kept") == []
        assert guest.stat("/home/kept").mode == stat.S_IFDIR | 0o1777
        assert guest.list("/home/one") == []
    with opened() as guest:
        assert guest.list("/home/one") == []
    assert not (tree / "gone").exists()


def test_changes_show_at_once_and_last(opened: Opened, tree: Path) -> None:
    (tree / "var/log/syslog").write_bytes(b"line\n" * 1000)
    (tree / "var/log/empty").touch()
    (tree / "var/log/old").mkdir()
    (tree / "var/log/old/x").write_bytes(b"x")
    (tree / "etc/shadow").write_bytes(b"root:$6$hash:::\n")
    (tree / "etc/shadow").chmod(0o640)
    large = os.urandom(3 << 20)
    with opened() as guest:
        guest.truncate("/var/log/syslog")
        guest.truncate("/var/log/empty")
        guest.truncate("/nothing")
        guest.remove("/nothing")
        guest.remove("/var/log/old")
        guest.write("/etc/shadow", b"root:*:::\n", 0o777)
        guest.write("/etc/shadow", b"root:*:::\n")
        guest.write("/etc/new", b"", 0o444)
        guest.write("/etc/large", large, 0o600)
        expected = [
            Edit(Action.EMPTIED, "/var/log/syslog"),
            Edit(Action.REMOVED, "/var/log/old"),
            Edit(Action.WRITTEN, "/etc/shadow"),
            Edit(Action.WRITTEN, "/etc/new"),
            Edit(Action.WRITTEN, "/etc/large"),
        ]
        assert guest.edits == expected
        _as_changed(guest, large)
        with pytest.raises(GuestError):
            guest.write("/nowhere/x", b"x")
        with pytest.raises(GuestError):
            guest.write("/etc", b"x")
        with pytest.raises(GuestError):
            guest.remove("/")
    with opened() as guest:
        _as_changed(guest, large)


def _as_changed(guest: Any, large: bytes) -> None:
    assert guest.read("/var/log/syslog") == b""
    assert guest.stat("/var/log/syslog").size == 0
    assert guest.list("/var/log") == ["empty", "syslog"]
    assert guest.stat("/var/log/old/x") is None
    assert guest.read("/etc/shadow") == b"root:*:::\n"
    assert guest.stat("/etc/shadow").mode == stat.S_IFREG | 0o640
    assert guest.stat("/etc/new").mode == stat.S_IFREG | 0o444
    assert guest.read("/etc/new") == b""
    assert guest.read("/etc/large", 10) == large[:10]
    assert guest.read("/etc/large") == large
    assert guest.stat("/etc/large").mode == stat.S_IFREG | 0o600


def test_hard_links_are_other_files(opened: Opened, tree: Path) -> None:
    (tree / "home/a").write_bytes(b"shared")
    os.link(tree / "home/a", tree / "home/b")
    with opened() as guest:
        guest.remove("/home/a")
        assert guest.stat("/home/a") is None
        assert guest.read("/home/b") == b"shared"
    with opened() as guest:
        assert guest.read("/home/b") == b"shared"
        assert guest.stat("/home/b").links == 1


def test_large_files_are_read_in_part(opened: Opened, tree: Path) -> None:
    content = os.urandom(9 << 20)
    (tree / "var/large").write_bytes(content)
    with opened() as guest:
        assert guest.read("/var/large", 100_000) == content[:100_000]
        assert guest.read("/var/large") == content


def test_blanking_keeps_the_head(opened: Opened, tree: Path) -> None:
    (tree / "swap").write_bytes(b"\1" * 40_000)
    (tree / "zero").write_bytes(bytes(40_000))
    with opened() as guest:
        assert guest.is_blank("/zero", 0)
        assert not guest.is_blank("/swap", 4096)
        guest.blank("/swap", 4096)
        assert guest.is_blank("/swap", 4096)
        assert not guest.is_blank("/swap", 0)
        assert guest.edits == [Edit(Action.BLANKED, "/swap")]
    with opened() as guest:
        assert guest.read("/swap") == b"\1" * 4096 + bytes(40_000 - 4096)


def test_walks_and_globs(opened: Opened, tree: Path) -> None:
    deep = tree / "srv/a/b/c/d/e"
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"f")
    (tree / "srv/a/loop").symlink_to("..")
    with opened() as guest:
        found = [path for path, _ in walk(guest, "/srv")]
        assert found == [
            *("/srv/a", "/srv/a/b", "/srv/a/b/c", "/srv/a/b/c/d", "/srv/a/b/c/d/e"),
            *("/srv/a/b/c/d/e/f", "/srv/a/loop"),
        ]
        assert list(glob(guest, "/srv/*/loop/a/b*")) == ["/srv/a/loop/a/b"]


# Of shells alone


@pytest.fixture(params=["busybox", "gnu"])
def shell(request: pytest.FixtureRequest, tree: Path) -> TreeShell:
    return TreeShell(tree, request.param)


def test_a_tree_takes_few_calls(shell: TreeShell, tree: Path) -> None:
    for number in range(300):
        place = tree / f"etc/d{number % 20}"
        place.mkdir(exist_ok=True)
        (place / f"f{number}").write_bytes(b"%d" % number)
    guest = RemoteGuest(shell, "/guest")
    contents = [guest.read(path) or b"" for path, found in walk(guest, "/etc") if found.is_file]
    assert sorted(contents) == sorted(
        [b"%d" % n for n in range(300)] + [b"root:x:0:0::/root:/bin/sh\n"]
    )
    assert shell.calls <= 4
    for path in list(glob(guest, "/etc/d*/f*")):
        guest.remove(path)
    guest.flush()
    assert shell.calls <= 5
    assert list(glob(guest, "/etc/d*/f*")) == []


def test_a_deep_tree_that_nobody_foresaw_takes_few_calls(shell: TreeShell, tree: Path) -> None:
    for number in range(64):
        (tree / f"usr/share/{number % 8}/{number}/deep/deeper").mkdir(parents=True)
    guest = RemoteGuest(shell, "/guest")
    assert len(list(walk(guest, "/usr/share"))) == 8 + 64 * 3
    assert shell.calls <= 7


def test_what_is_mounted_apart_looks_empty_and_stays(shell: TreeShell, tree: Path) -> None:
    (tree / "home/[x]").mkdir()
    (tree / "home/[x]/file").write_bytes(b"x")
    (tree / "home/x").mkdir()
    (tree / "home/x/file").write_bytes(b"x")
    guest = RemoteGuest(shell, "/guest", apart=["/home/[x]"])
    assert guest.list("/home") == ["[x]", "x"]
    assert guest.list("/home/[x]") == []
    assert guest.list("/home/x") == ["file"]
    assert guest.stat("/home/[x]/file") is None
    for path in ("/home", "/home/[x]"):
        with pytest.raises(GuestError, match="mounted"):
            guest.remove(path)
    with pytest.raises(GuestError, match="mounted"):
        guest.truncate("/home")
    guest.remove("/home/x")
    guest.flush()
    assert (tree / "home/[x]/file").exists()


def test_what_cannot_be_changed_is_an_error(shell: TreeShell, tree: Path) -> None:
    guest = RemoteGuest(shell, "/guest")
    assert guest.list("/etc") == ["passwd"]
    (tree / "etc/new").mkdir()
    guest.remove("/etc/passwd")
    guest.write("/etc/new", b"x")
    with pytest.raises(GuestError, match=r"/etc/new could not be written"):
        guest.flush()


def test_files_without_tar(shell: TreeShell, tree: Path) -> None:
    (tree / "etc/two").write_bytes(b"2")
    plain = shell.run

    def without(script: bytes, stdin: bytes = b"", *, timeout: float = 60.0) -> Done:
        return plain(script.replace(b"tar cf", b"no-such-program cf"), stdin, timeout=timeout)

    shell.run = without  # type: ignore[method-assign]  # a guest that lacks it
    guest = RemoteGuest(shell, "/guest")
    assert guest.read("/etc/two") == b"2"
    assert guest.read("/etc/passwd") == b"root:x:0:0::/root:/bin/sh\n"


def test_attributes_and_other_names_survive_a_rewrite(shell: TreeShell, tree: Path) -> None:
    path = tree / "etc/passwd"
    os.setxattr(path, "user.label", b"kept")
    os.link(path, tree / "etc/other")
    guest = RemoteGuest(shell, "/guest")
    guest.write("/etc/passwd", b"new")
    assert guest.read("/etc/other") == b"new"
    guest.flush()
    assert os.getxattr(path, "user.label") == b"kept"
    assert path.read_bytes() == b"new"
