"""The cache of images, and a whole disk made of a tree (without a mirror)."""

import hashlib
import subprocess
import threading

import pytest

from calotype.errors import InvalidInput, ToolFailed
from calotype.model import MIB, Generation, OsType
from calotype.recipe import build, unpack
from calotype.recipe.image import Identity
from calotype.recipe.tree import Owner

ROOT = 8 * MIB  # where the tiny guest's root file system begins


def tool(*argv):
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "MTOOLS_SKIP_CHECK": "1"}
    return subprocess.run(argv, env=path, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def filled(monkeypatch):
    """Packages that need no mirror; returns the calls made."""
    calls = []

    def fill(recipe, tree, debs, work):
        calls.append(recipe.name)
        tree.write("boot/vmlinuz-1", b"kernel")
        tree.write("boot/initrd.img-1", b"initrd")
        tree.write("etc/sudoers", b"root ALL=(ALL) ALL\n")
        tree.write("etc/shadow", b"root:*:::::::\n", 0o640)
        tree.own("etc/shadow", 0, 42)
        tree.write("usr/bin/ping", b"ping", 0o755)
        tree.owners["usr/bin/ping"] = Owner(
            0, 0, (("security.capability", b"\1\0\0\2" + bytes(16)),)
        )
        tree.write("var/lib/dpkg/status", "Package: b\nVersion: 2\n\nPackage: a\nVersion: 1\n")

    monkeypatch.setattr(unpack, "fill", fill)
    return calls


def left(cache):
    """What lies in the cache besides locks and packages."""
    return sorted(
        path.name
        for path in (cache / "recipes").iterdir()
        if path.suffix != ".lock" and path.is_file()
    ) + [p.name for p in (cache / "recipes").iterdir() if p.is_dir() and p.name != "packages"]


def test_builds_once(tmp_path, filled):
    first = build("tiny", tmp_path)
    assert build("tiny", tmp_path) == first
    assert filled == ["tiny"]
    assert left(tmp_path) == [f"tiny-{first.digest[:16]}.json", f"tiny-{first.digest[:16]}.raw"]
    assert first.sha256 == hashlib.sha256(first.path.read_bytes()).hexdigest()
    assert first.packages == (("a", "1"), ("b", "2"))
    assert (first.os_type, first.generation) == (OsType.LINUX, Generation.V1)
    assert first.path.stat().st_mode & 0o777 == 0o444
    assert first.path.stat().st_blocks * 512 < 40 * MIB  # sparse


def test_the_disk(tmp_path, filled):
    built = build("tiny", tmp_path)
    disk, root = str(built.path), f"{built.path}?offset={ROOT}"
    identity = Identity.of(built.digest)
    assert "No problems found" in tool("sgdisk", "-v", disk)
    tool("e2fsck", "-fn", root)
    assert str(identity.root) in tool("dumpe2fs", "-h", root)
    stat = tool("debugfs", "-R", "stat /etc/shadow", root)
    assert "Group:    42" in stat
    assert "Mode:  0640" in stat
    assert "User:     0   Group:     0" in tool("debugfs", "-R", "stat /etc/sudoers", root)
    assert "Mode:  0440" in tool("debugfs", "-R", "stat /etc/sudoers", root)
    assert "security.capability (20)" in tool("debugfs", "-R", "ea_list /usr/bin/ping", root)
    assert f"root=UUID={identity.root} ro" in tool("debugfs", "-R", "cat /boot/grub/grub.cfg", root)
    assert f"UUID={identity.root} / ext4" in tool("debugfs", "-R", "cat /etc/fstab", root)
    listing = tool("mdir", "-b", "-/", "-i", f"{disk}@@{4 * MIB}", "::")
    assert "EFI/BOOT/BOOTX64.EFI" in listing
    with built.path.open("rb") as file:
        assert b"GRUB" in file.read(440)


def test_a_fresh_build_takes_the_newest_packages_and_the_place_of_the_cached_one(
    tmp_path, filled, monkeypatch
):
    first = build("tiny", tmp_path)

    def newer(recipe, tree, debs, work):
        calls(recipe, tree, debs, work)
        tree.write("var/lib/dpkg/status", "Package: a\nVersion: 9\n")

    calls = unpack.fill
    monkeypatch.setattr(unpack, "fill", newer)
    assert build("tiny", tmp_path) == first
    fresh = build("tiny", tmp_path, fresh=True)
    assert (fresh.path, fresh.packages) == (first.path, (("a", "9"),))
    assert fresh.sha256 != first.sha256
    assert build("tiny", tmp_path) == fresh
    assert len(left(tmp_path)) == 2


def test_a_fresh_build_that_fails_leaves_the_cached_one(tmp_path, filled, monkeypatch):
    first = build("tiny", tmp_path)

    def fail(recipe, tree, debs, work):
        raise ToolFailed("the mirror is gone")

    monkeypatch.setattr(unpack, "fill", fail)
    with pytest.raises(ToolFailed):
        build("tiny", tmp_path, fresh=True)
    assert build("tiny", tmp_path) == first


@pytest.mark.parametrize("error", [ToolFailed("the mirror is gone"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_build_that_ends_early(tmp_path, filled, monkeypatch, error):
    def fail(recipe, tree, debs, work):
        tree.write("half", b"made")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(unpack, "fill", fail)
        with pytest.raises(type(error)):
            build("tiny", tmp_path)
    assert left(tmp_path) == []
    assert build("tiny", tmp_path).path.exists()


def test_what_a_killed_build_and_an_older_recipe_left_is_swept(tmp_path, filled):
    home = tmp_path / "recipes"
    (home / ".tiny.work-dead/root").mkdir(parents=True)
    (home / "tiny-0123456789abcdef.raw").write_bytes(b"old")
    (home / "tiny-plus-0123456789abcdef.raw").write_bytes(b"another recipe's")
    built = build("tiny", tmp_path)
    assert left(tmp_path) == [
        built.path.with_suffix(".json").name,
        built.path.name,
        "tiny-plus-0123456789abcdef.raw",
    ]


def test_a_damaged_entry_is_built_again(tmp_path, filled):
    built = build("tiny", tmp_path)
    built.path.with_suffix(".json").write_bytes(b"{")
    assert build("tiny", tmp_path).digest == built.digest
    assert len(filled) == 2


def test_two_at_once_do_it_once(tmp_path, filled):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(build("tiny", tmp_path))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert filled == ["tiny"]
    assert len(results) == 3
    assert len(set(results)) == 1


def test_paths_that_tools_would_misread(tmp_path):
    with pytest.raises(InvalidInput, match="blanks"):
        build("tiny", tmp_path / "a b")
