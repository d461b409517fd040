"""Documents of the software in an image: valid, deterministic, and safe whatever a guest says of itself."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given
from hypothesis import strategies as st
from tests.disks import BytesDisk
from tests.trees import Files
from tests.unit.test_guest_packages import INSTALLED, STATUS

from calotype import cli, run
from calotype.config import Home
from calotype.errors import GuestError
from calotype.guest.packages import sqlite
from calotype.guest.packages.package import Family, Package
from calotype.guest.sbom import Subject, document, of_tree, purl
from calotype.model import Architecture, Image, ImageDisk, OsState, OsType, Provenance, SourceKind
from calotype.wire import build

SUBJECT = Subject(
    name="web-7",
    id="0b6e1f0c-95f8-4c26-9c2e-6d1d9a3ff001",
    created_at=datetime(2026, 3, 1, 12, tzinfo=UTC),
    architecture=Architecture.X64,
    indexes=("ab" * 32, "cd" * 32),
)
DEBIAN = {
    "/etc/os-release": b'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12"\n',
    "/var/lib/dpkg/status": STATUS,
}


def valid(document: bytes) -> Any:
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(document.decode())
    assert problem is None, problem
    return json.loads(document)


def test_a_debian_is_a_valid_document() -> None:
    found = valid(of_tree(SUBJECT, Files(DEBIAN)))
    assert found["specVersion"] == "1.6"
    assert found["metadata"]["component"]["name"] == "web-7"
    said = {p["name"]: p["value"] for p in found["metadata"]["component"]["properties"]}
    assert said["calotype:disk:0:index:blake3"] == "ab" * 32
    assert said["calotype:disk:1:index:blake3"] == "cd" * 32
    kinds = {c["name"]: c for c in found["components"]}
    assert kinds["debian"]["type"] == "operating-system"
    assert kinds["debian"]["version"] == "12"
    wanted = "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64&distro=debian-12"
    assert kinds["libc6"]["purl"] == wanted
    assert kinds["libc6"]["properties"] == [{"name": "calotype:source", "value": "glibc"}]


def test_one_image_has_one_document() -> None:
    first = of_tree(SUBJECT, Files(DEBIAN))
    code = (
        "import sys; from tests.unit.test_guest_sbom import *; "
        "sys.stdout.buffer.write(of_tree(SUBJECT, Files(DEBIAN)))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    again = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=env)
    assert again.stdout == first
    assert json.loads(first)["metadata"]["timestamp"].startswith("2026-03-01T12:00:00")


def test_an_alpine_and_its_licences() -> None:
    files = {
        "/etc/os-release": b"ID=alpine\nVERSION_ID=3.20.1\n",
        "/lib/apk/db/installed": INSTALLED,
    }
    found = valid(of_tree(SUBJECT, Files(files)))
    musl = next(c for c in found["components"] if c["name"] == "musl")
    assert musl["purl"] == "pkg:apk/alpine/musl@1.2.5-r0?arch=x86_64&distro=alpine-3.20.1"
    assert musl["licenses"] == [{"license": {"name": "MIT"}}]


def test_purl_of_an_rpm_has_its_epoch_apart() -> None:
    package = Package(Family.RPM, "bind", "32:9.16-1.el9", "x86_64")
    release = {"ID": "almalinux", "VERSION_ID": "9.4"}
    assert str(purl(package, release)) == (
        "pkg:rpm/almalinux/bind@9.16-1.el9?arch=x86_64&distro=almalinux-9.4&epoch=32"
    )


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"/etc/os-release": b"ID=\xff\xfe\nVERSION_ID=\x1b[31m\n"},
        {"/etc/os-release": b"ID=" + b"x" * 60000},
        {
            "/var/lib/dpkg/status": b"Package: \xff\x1b\xe2\x80\xae\nVersion: \x00\x07\nSource: ?/#\n\n"
        },
        {
            "/var/lib/dpkg/status": b"Package: a/../b@c?d#e\nVersion: ../../%00\nArchitecture: &=\n\n"
        },
        {"/var/lib/dpkg/status": b"Package: \nVersion: \n\nPackage: x\nVersion:\n\n"},
        {"/var/lib/dpkg/status": b"Package: a\nVersion: 1\n\n" * 3},
        {"/var/lib/dpkg/status": b"Package: /\nVersion: 1\n\nPackage: //\nVersion: @\n"},
        {"/lib/apk/db/installed": b"P:\nV:\nL:" + b"\x1b" * 5000 + b"\n\nP:x\nV:y\nL:\xff\n"},
        {"/var/lib/rpm/rpmdb.sqlite": b"SQLite format 3\0" + bytes(5000)},
    ],
)
def test_whatever_a_guest_says_the_document_is_valid(files: dict[str, bytes]) -> None:
    found = of_tree(SUBJECT, Files(files))
    valid(found)
    assert all(sign.isprintable() or sign == "\n" for sign in found.decode())


@given(
    family=st.sampled_from(Family),
    texts=st.lists(st.text(max_size=8), min_size=5, max_size=5),
    release=st.dictionaries(st.sampled_from(["ID", "VERSION_ID"]), st.text(max_size=8)),
)
def test_any_package_has_a_purl_or_none(
    family: Family, texts: list[str], release: dict[str, str]
) -> None:
    found = purl(Package(family, *texts), release)
    assert found is None or str(found).startswith("pkg:")


def test_a_disk_without_a_guest_has_no_document() -> None:
    with pytest.raises(GuestError):
        document(SUBJECT, BytesDisk(bytes(1 << 20)))


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    (root / "usr").mkdir(parents=True)
    for path, data in DEBIAN.items():
        (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (root / path[1:]).write_bytes(data)
    run.run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(tmp_path / "disk"), "8M"])
    context = build(home=Home(tmp_path / "home"))
    disk = BytesDisk((tmp_path / "disk").read_bytes())
    index = context.repository.ingest(disk).index
    context.catalog.add_image(
        Image(
            id="0b6e1f0c-95f8-4c26-9c2e-6d1d9a3ff002",
            name="debian",
            os_type=OsType.LINUX,
            os_state=OsState.SPECIALIZED,
            os_disk=ImageDisk(index=index, size=disk.size),
            provenance=Provenance(kind=SourceKind.FILE, source="x"),
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
        )
    )
    context.close()
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))
    assert cli.run(["image", "sbom", "debian"]) == 0
    said = capsys.readouterr().out
    assert "libc6" in str(valid(said.encode())["components"])
    assert cli.run(["image", "sbom", "debian", str(tmp_path / "sbom.json")]) == 0
    assert (tmp_path / "sbom.json").read_text() == said
    assert cli.run(["image", "sbom", "nobody"]) == 3


def test_sqlite_is_read_by_our_own_code() -> None:
    assert "sqlite3" not in vars(sqlite)
