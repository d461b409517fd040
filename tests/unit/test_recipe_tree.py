"""Trees of files that belong to the builder, and who owns what in the image."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from calotype.errors import InvalidInput
from calotype.recipe.image import owner_commands
from calotype.recipe.install import pack
from calotype.recipe.tree import Owner, Tree


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    return Tree(root)


def member(name, *, data=b"", kind=tarfile.REGTYPE, mode=0o644, uid=0, gid=0, link="", pax=None):
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.uid, info.gid, info.linkname = kind, mode, uid, gid, link
    info.size = len(data)
    info.pax_headers = pax or {}
    return info, io.BytesIO(data)


def archive(*members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, data)
    buffer.seek(0)
    return buffer


def test_unpacks_through_links_to_directories(tree):
    tree.mkdir("usr/lib")
    tree.symlink("usr/lib", "lib")
    tree.unpack(
        archive(
            member("./lib", kind=tarfile.DIRTYPE, mode=0o755),
            member("./lib/x/y", data=b"hi", mode=0o600, gid=42),
            member("./lib/z", kind=tarfile.LNKTYPE, link="./lib/x/y"),
        )
    )
    assert (tree.root / "lib").is_symlink()
    assert (tree.root / "usr/lib/x/y").read_bytes() == b"hi"
    assert (tree.root / "usr/lib/z").stat().st_ino == (tree.root / "usr/lib/x/y").stat().st_ino
    assert tree.owners["usr/lib/x/y"] == Owner(0, 42)


@pytest.mark.parametrize("target", ["/", "/etc", "../../../../../../../etc", "a/../../../../etc"])
def test_no_link_leads_outside(tree, target):
    tree.unpack(
        archive(
            member("etc-link", kind=tarfile.SYMTYPE, link=target),
            member("etc-link/calotype-was-here", data=b"x"),
            member("../../calotype-was-here", data=b"x"),
        )
    )
    assert not Path("/etc/calotype-was-here").exists()
    assert not Path("/calotype-was-here").exists()
    found = [path for path in tree.root.rglob("calotype-was-here") if not path.is_symlink()]
    assert found
    assert all(path.resolve().is_relative_to(tree.root.resolve()) for path in found)
    assert sorted(p.name for p in tree.root.parent.iterdir()) == ["root"]


def test_a_link_in_place_of_a_file_is_replaced_not_followed(tree, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    (tree.root / "f").symlink_to(outside)
    tree.unpack(archive(member("f", data=b"theirs")))
    tree.write("g", b"1")
    (tree.root / "g").unlink()
    (tree.root / "g").symlink_to(outside)
    tree.write("g", b"2")
    assert outside.read_bytes() == b"mine"
    assert (tree.root / "f").read_bytes() == b"theirs"


def test_links_in_circles(tree):
    tree.symlink("b", "a")
    tree.symlink("a", "b")
    with pytest.raises(InvalidInput, match="links"):
        tree.write("a/file", b"")


def test_owners_and_attributes_survive_the_fast_way(tree, tmp_path):
    pax = {"SCHILY.xattr.security.capability": "\x01\x00\x00\x02"}
    file = tmp_path / "root.tar"
    file.write_bytes(
        archive(
            member("./usr/bin/ping", data=b"p", mode=0o755, pax=pax),
            member("./var/mail", kind=tarfile.DIRTYPE, mode=0o2775, gid=8),
            member("./dev/null", kind=tarfile.CHRTYPE),
            member("./etc/plain"),
        ).getvalue()
    )
    tree.unpack_file(file)
    assert tree.owners == {
        "usr/bin/ping": Owner(0, 0, (("security.capability", b"\x01\0\0\x02"),)),
        "var/mail": Owner(0, 8),
    }
    assert (tree.root / "etc/plain").stat().st_uid == os.geteuid()
    assert not (tree.root / "dev/null").exists()
    tree.prune(["usr/bin/*"])
    assert list(tree.owners) == ["var/mail"]


def test_commands_for_owners(tmp_path):
    owners = {
        "etc/shadow": Owner(0, 42),
        "a file": Owner(7, 0, (("security.capability", b"\1\2"),)),
    }
    commands, files = owner_commands(owners, tmp_path)
    assert commands == [
        'set_inode_field "/a file" uid 7',
        f'ea_set -f "{tmp_path}/xattr-0" "/a file" security.capability',
        'set_inode_field "/etc/shadow" gid 42',
    ]
    assert [file.read_bytes() for file in files] == [b"\1\2"]


@pytest.mark.parametrize("name", ['a"b', "a\nquit"])
def test_names_that_would_be_commands(tmp_path, name):
    with pytest.raises(InvalidInput, match="impossible name"):
        owner_commands({name: Owner(1, 1)}, tmp_path)


def test_plain_files_get_their_modes_from_what_they_are(tree, tmp_path):
    files = tmp_path / "files"
    (files / "etc").mkdir(parents=True)
    (files / "etc/run").write_bytes(b"#!/bin/sh\n")
    (files / "etc/conf").write_bytes(b"x\n")
    tree.lay(files)
    modes = {name: (tree.root / "etc" / name).stat().st_mode & 0o777 for name in ("run", "conf")}
    assert modes == {"run": 0o755, "conf": 0o644}
    with tarfile.open(fileobj=io.BytesIO(pack([files]))) as tar:
        assert {m.name: m.mode for m in tar} == {
            "./etc": 0o755,
            "./etc/run": 0o755,
            "./etc/conf": 0o644,
        }
        assert {m.uid for m in tar} == {0}


def test_later_trees_win(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    with tarfile.open(fileobj=io.BytesIO(pack([tmp_path / "one", tmp_path / "two"]))) as tar:
        file = tar.extractfile("./f")
        assert file is not None
        assert file.read() == b"two"
