"""Package databases: what the families' own tools wrote comes out; what strangers wrote ends soon."""

import os
import random
import sqlite3
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trees import Files

from calotype.errors import GuestError
from calotype.guest.packages import Family, Package, compare, inventory, owners
from calotype.guest.packages.rpm import Header
from calotype.guest.packages.rpm_bdb import blobs as bdb_blobs
from calotype.guest.packages.rpm_ndb import blobs as ndb_blobs
from calotype.guest.packages.sqlite import Database


def read(tree: Files) -> Callable[[list[str]], dict[str, bytes]]:
    return lambda paths: {path: tree.files[path] for path in paths}


# dpkg

STATUS = b"""Package: libc6
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Source: glibc (2.36-9)
Version: 2.36-9+deb12u14
Description: GNU C Library
 Package: not-this-one
 Version: 9

Package: gone
Status: deinstall ok config-files
Version: 1.0
Architecture: all

Package: half
Status: install ok half-configured
Version: 2:3~rc1-1
Architecture: all

Package: no-version
Status: install ok installed
"""


def test_dpkg_lists_what_is_installed() -> None:
    tree = Files({"/var/lib/dpkg/status": STATUS})
    assert inventory(tree).packages == [
        Package(Family.DEB, "half", "2:3~rc1-1", "all", "half"),
        Package(Family.DEB, "libc6", "2.36-9+deb12u14", "amd64", "glibc"),
    ]


def test_dpkg_of_images_without_a_package_manager() -> None:
    part = b"Package: tzdata\nVersion: 2024a-0+deb12u1\nArchitecture: all\n"
    tree = Files(
        {"/var/lib/dpkg/status.d/tzdata": part, "/var/lib/dpkg/status.d/tzdata.md5sums": b"\xff"}
    )
    assert [p.name for p in inventory(tree).packages] == ["tzdata"]


def test_dpkg_says_whose_a_file_is() -> None:
    tree = Files(
        {
            "/var/lib/dpkg/info/libc6:amd64.list": b"/.\n/lib\n/lib/libc.so.6\n",
            "/var/lib/dpkg/info/bash.list": b"/bin/bash\n/etc/\xff\n",
        }
    )
    found = owners(tree, read(tree))
    assert found["/lib/libc.so.6"] == "libc6"
    assert found["/bin/bash"] == found[os.fsdecode(b"/etc/\xff")] == "bash"


def test_the_same_as_dpkg_says_of_this_machine() -> None:
    tree = Files({"/var/lib/dpkg/status": Path("/var/lib/dpkg/status").read_bytes()})
    form = "${Package} ${Version} ${Architecture} ${source:Package}\n"
    said = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Abbrev}|" + form], check=True, capture_output=True
    )
    rows = [line.split("|")[1] for line in said.stdout.decode().splitlines() if line[1] != "c"]
    ours = [f"{p.name} {p.version} {p.architecture} {p.source}" for p in inventory(tree).packages]
    assert sorted(ours) == sorted(rows)


# apk

INSTALLED = b"""C:Q1+abc=
P:musl
V:1.2.5-r0
A:x86_64
L:MIT
o:musl
F:lib
R:ld-musl-x86_64.so.1
F:
R:top

C:Q1xyz=
P:busybox-binsh
V:1.36.1-r29
A:x86_64
o:busybox
F:bin
R:sh"""


def test_apk() -> None:
    tree = Files({"/lib/apk/db/installed": INSTALLED})
    assert inventory(tree).packages == [
        Package(Family.APK, "busybox-binsh", "1.36.1-r29", "x86_64", "busybox"),
        Package(Family.APK, "musl", "1.2.5-r0", "x86_64", "musl", "MIT"),
    ]
    found = owners(tree, read(tree))
    assert found["/lib/ld-musl-x86_64.so.1"] == found["/top"] == "musl"
    assert found["/bin/sh"] == "busybox-binsh"


# rpm

SPEC = """Name: {name}
Version: {version}
Release: 3
{epoch}
Summary: a package
License: MIT
BuildArch: noarch
%description
A package.
%install
mkdir -p %{{buildroot}}/usr/share/{name}
for i in $(seq {files}); do echo $i > %{{buildroot}}/usr/share/{name}/file-$i; done
%files
/usr/share/{name}
"""
WANTED = [
    Package(Family.RPM, "alpha", "2:1.2-3", "noarch", "alpha-1.2-3.src.rpm", "MIT"),
    Package(Family.RPM, "beta", "0.9~rc1-3", "noarch", "beta-0.9~rc1-3.src.rpm", "MIT"),
]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of real packages, written by rpm itself."""
    root = tmp_path_factory.mktemp("rpm")
    for name, version, epoch, files in (
        ("alpha", "1.2", "Epoch: 2", 1),
        ("beta", "0.9~rc1", "", 400),
    ):
        spec = root / f"{name}.spec"
        spec.write_text(SPEC.format(name=name, version=version, epoch=epoch, files=files))
        top = ["--define", f"_topdir {root}"]
        subprocess.run(["rpmbuild", "--quiet", *top, "-bb", spec], check=True, capture_output=True)
    where = root / "db"
    where.mkdir()
    packages = sorted((root / "RPMS/noarch").glob("*.rpm"))
    subprocess.run(
        ["rpm", "--dbpath", str(where), "--justdb", "--nodeps", "-i", *map(str, packages)],
        check=True,
        capture_output=True,
    )
    return where


@pytest.fixture(scope="module")
def headers(database: Path) -> list[bytes]:
    rows = sqlite3.connect(database / "rpmdb.sqlite").execute("SELECT blob FROM Packages")
    return [row[0] for row in rows]


def ndb(headers: list[bytes]) -> bytes:
    """An ndb as rpm's source lays it out; Debian's rpm writes none."""
    slots, heap, block = b"", b"", 4096 // 16
    for number, header in enumerate(headers, 1):
        length = len(header)
        body = struct.pack("<4I", 0x53626C42, number, 1, length) + header
        body += bytes(-(len(body) + 12) % 16) + struct.pack("<3I", 0, length, 0x45626C42)
        slots += struct.pack("<4I", 0x746F6C53, number, block, len(body) // 16)
        heap += body
        block += len(body) // 16
    free = (4096 - 32 - len(slots)) // 16
    slots += struct.pack("<4I", 0x746F6C53, 0, 0, 0) * free
    return struct.pack("<4I16x", 0x506D7052, 0, 1, 1) + slots + heap


def bdb(headers: list[bytes], path: Path) -> bytes:
    """A hash that Berkeley DB's own tool wrote."""

    def line(data: bytes) -> str:
        return " " + "".join(f"\\{byte:02x}" for byte in data)

    pairs = [(bytes(4), struct.pack("<I", len(headers)))]
    pairs += [(struct.pack("<I", n), header) for n, header in enumerate(headers, 1)]
    lines = ["VERSION=3", "format=print", "type=hash", "db_pagesize=4096", "HEADER=END"]
    lines += [line(part) for pair in pairs for part in pair]
    text = "\n".join([*lines, "DATA=END", ""]).encode()
    subprocess.run(["db_load", path], input=text, check=True)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["sqlite", "ndb", "bdb"])
def test_rpm(kind: str, database: Path, headers: list[bytes], tmp_path: Path) -> None:
    if kind == "sqlite":
        files = {"/var/lib/rpm/rpmdb.sqlite": (database / "rpmdb.sqlite").read_bytes()}
    elif kind == "ndb":
        files = {"/usr/lib/sysimage/rpm/Packages.db": ndb(headers)}
    else:
        files = {"/var/lib/rpm/Packages": bdb(headers, tmp_path / "Packages")}
    tree = Files(files)
    assert inventory(tree).packages == WANTED
    assert inventory(tree).notes == []
    found = owners(tree, read(tree))
    assert found["/usr/share/beta/file-400"] == "beta"
    assert found["/usr/share/alpha"] == "alpha"


def test_rpm_itself_reads_the_hash_of_these_tests(headers: list[bytes], tmp_path: Path) -> None:
    bdb(headers, tmp_path / "Packages")
    argv = ["rpm", "--define", "_db_backend bdb_ro", "--dbpath", str(tmp_path), "-qa"]
    said = subprocess.run(argv, check=True, capture_output=True).stdout.split()
    assert sorted(said) == [b"alpha-1.2-3.noarch", b"beta-0.9~rc1-3.noarch"]


def test_freebsd(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "local.sqlite") as db:
        db.execute(
            "CREATE TABLE packages (id INTEGER PRIMARY KEY, origin TEXT NOT NULL, name TEXT NOT NULL, "
            "version TEXT NOT NULL, flatsize INTEGER, arch TEXT, UNIQUE(name))"
        )
        db.execute("CREATE TABLE files (path TEXT PRIMARY KEY, sha256 TEXT, package_id INTEGER)")
        db.execute(
            "INSERT INTO packages VALUES (7, 'shells/bash', 'bash', '5.2.37', 1, 'FreeBSD:14')"
        )
        db.execute("INSERT INTO files VALUES ('/usr/local/bin/bash', 'x', 7)")
    db.close()
    tree = Files({"/var/db/pkg/local.sqlite": (tmp_path / "local.sqlite").read_bytes()})
    assert inventory(tree).packages == [
        Package(Family.FREEBSD, "bash", "5.2.37", "FreeBSD:14", "shells/bash")
    ]
    assert owners(tree, read(tree)) == {"/usr/local/bin/bash": "bash"}


# SQLite

VALUES = st.one_of(
    st.none(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(allow_nan=False),
    st.text(max_size=30),
    st.binary(max_size=30),
    st.integers(400, 9000).map(bytes),
)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(VALUES, VALUES), max_size=40),
    page=st.sampled_from([512, 1024, 4096, 65536]),
    encoding=st.sampled_from(["UTF-8", "UTF-16le", "UTF-16be"]),
)
def test_sqlite_gives_what_sqlite_was_given(
    rows: list[tuple[object, object]], page: int, encoding: str
) -> None:
    db = sqlite3.connect(":memory:")
    db.execute(f"PRAGMA page_size={page}")
    db.execute(f"PRAGMA encoding='{encoding}'")
    db.execute("CREATE TABLE t (a, b BLOB, UNIQUE(a, b))")
    db.execute("DROP TABLE t")
    db.execute("CREATE TABLE t (a, b)")
    db.executemany("INSERT INTO t VALUES (?, ?)", rows)
    db.commit()
    found = [(row["a"], row["b"]) for _, row in Database(db.serialize()).rows("t")]
    assert found == [tuple(row) for row in db.execute("SELECT a, b FROM t ORDER BY rowid")]
    db.close()


def test_sqlite_of_many_pages() -> None:
    db = sqlite3.connect(":memory:")
    db.execute("PRAGMA page_size=512")
    db.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)")
    db.executemany("INSERT INTO t VALUES (?, ?)", [(n, "x" * (n % 900)) for n in range(5000)])
    db.commit()
    found = [(number, row["b"]) for number, row in Database(db.serialize()).rows("t")]
    assert found == [(n, "x" * (n % 900)) for n in range(5000)]
    db.close()


def test_sqlite_sees_what_its_log_committed(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE t (a)")
    db.execute("INSERT INTO t VALUES ('first')")
    db.commit()
    db.execute("INSERT INTO t VALUES ('second')")
    db.commit()
    wal = path.with_name("x.sqlite-wal").read_bytes()
    data = path.read_bytes() or b""
    rows = [row["a"] for _, row in Database(data.ljust(4096, b"\0"), wal).rows("t")]
    assert rows == ["first", "second"]
    torn = [row["a"] for _, row in Database(data.ljust(4096, b"\0"), wal[:-100]).rows("t")]
    assert torn == ["first"]
    db.close()


def test_sqlite_runs_nothing() -> None:
    """A view that never ends is no table; SQLite would have computed it."""
    db = sqlite3.connect(":memory:")
    db.execute(
        "CREATE VIEW Packages AS WITH RECURSIVE c(blob) AS (SELECT 1 UNION ALL SELECT blob+1 FROM c) "
        "SELECT blob FROM c"
    )
    assert list(Database(db.serialize()).rows("Packages")) == []
    db.close()


# Hostile


def test_a_status_file_of_64_mib_ends_soon() -> None:
    started = time.process_time()
    for filling in (b"\n", b"Package: x\n", b"Package: a\nVersion: 1\n\n", b"\xff", b"a"):
        data = (filling * ((64 << 20) // len(filling) + 1))[: 64 << 20]
        inventory(Files({"/var/lib/dpkg/status": data}))
    assert time.process_time() - started < 20
    larger = Files({"/var/lib/dpkg/status": bytes((64 << 20) + 1)})
    assert "larger than 64 MiB" in inventory(larger).notes[0]


def test_too_many_packages_are_a_note() -> None:
    data = b"".join(b"Package: %d\nVersion: 1\n\n" % n for n in range(200_100))
    assert "more than 200000" in inventory(Files({"/var/lib/dpkg/status": data})).notes[0]


@pytest.mark.parametrize("seed", range(3))
def test_damaged_databases_raise_nothing_else(
    seed: int, database: Path, headers: list[bytes], tmp_path: Path
) -> None:
    rng = random.Random(seed)
    small = headers[:1]
    whole = {
        "/var/lib/rpm/rpmdb.sqlite": (database / "rpmdb.sqlite").read_bytes()[: 40 * 4096],
        "/var/lib/rpm/Packages.db": ndb(small),
        "/var/lib/rpm/Packages": bdb(small, tmp_path / "Packages"),
    }
    for path, data in whole.items():
        for _ in range(120):
            damaged = bytearray(data)
            for _ in range(rng.choice((1, 4, 40))):
                near = rng.choice((64, 4096, len(data)))
                damaged[rng.randrange(min(near, len(data)))] = rng.choice(
                    (0, 255, rng.randrange(256))
                )
            cut = damaged[: rng.randrange(len(data))] if rng.random() < 0.2 else damaged
            tree = Files({path: bytes(cut)})
            inventory(tree)
            owners(tree, read(tree))


def test_pages_that_lead_in_a_circle_are_an_error() -> None:
    db = sqlite3.connect(":memory:")
    db.execute("PRAGMA page_size=512")
    db.execute("CREATE TABLE t (a)")
    db.execute("INSERT INTO t VALUES (?)", (bytes(5000),))
    db.commit()
    data = bytearray(db.serialize())
    db.close()
    for page in range(2, len(data) // 512):  # each overflow page leads to itself
        struct.pack_into(">I", data, page * 512, page + 1)
    with pytest.raises(GuestError, match="twice"):
        list(Database(bytes(data)).rows("t"))


def test_headers_that_claim_too_much() -> None:
    for data in (
        b"",
        bytes(8),
        struct.pack(">II", 1 << 30, 1 << 30),
        struct.pack(">II", 1, 1 << 31),
    ):
        with pytest.raises(GuestError):
            Header(data)
    for reader in (ndb_blobs, bdb_blobs):
        with pytest.raises(GuestError):
            list(reader(bytes(8192)))


def test_long_directories_do_not_multiply() -> None:
    """A few megabytes of a database can spell terabytes of paths."""
    data = b"P:x\nF:" + b"d" * (4 << 20) + b"\n" + b"".join(b"R:%d\n" % n for n in range(60_000))
    tree = Files({"/lib/apk/db/installed": data})
    found = owners(tree, read(tree))
    assert sum(map(len, found)) <= 128 << 20
    names = b"".join(b"%d\0" % n for n in range(100_000))
    store = b"d" * (4 << 20) + b"\0"
    index = struct.pack(">4I", 1118, 8, 0, 1) + struct.pack(">4I", 1117, 8, len(store), 100_000)
    store += names
    store += bytes(-len(store) % 4)
    index += struct.pack(">4I", 1116, 4, len(store), 100_000)
    store += bytes(400_000)
    header = struct.pack(">II", 3, len(store)) + index + store
    tree = Files({"/var/lib/rpm/Packages.db": ndb([header])})
    assert owners(tree, read(tree)) == {}


# Versions

DEB = st.text("0123456789abAZ.+~", max_size=8)


@settings(max_examples=100, deadline=None)
@given(a=DEB, b=DEB, epochs=st.tuples(st.sampled_from(["", "0:", "1:", "02:"])), revision=DEB)
def test_deb_versions_as_dpkg_compares_them(
    a: str, b: str, epochs: tuple[str], revision: str
) -> None:
    one, two = f"{epochs[0]}1{a}-1{revision}", f"1{b}"
    word = {-1: "lt", 0: "eq", 1: "gt"}[compare(Family.DEB, one, two)]
    argv = ["dpkg", "--compare-versions", one, word, two]
    assert subprocess.run(argv, check=False, capture_output=True).returncode == 0, argv


RPM = st.text("0123456789abAZ.+~^_", max_size=8)


@pytest.fixture(scope="module")
def rpm_says() -> Callable[[str, str], int]:
    """What rpm itself says of two versions: its Lua has the function."""

    def says(a: str, b: str) -> int:
        script = f"%{{lua:print(rpm.vercmp('{a}', '{b}'))}}"
        done = subprocess.run(["rpm", "--eval", script], check=True, capture_output=True)
        return int(done.stdout)

    return says


@settings(max_examples=100, deadline=None)
@given(a=RPM, b=RPM, epoch=st.sampled_from(["", "0:", "1:"]), release=st.sampled_from(["1", "2~"]))
def test_rpm_versions_as_rpm_compares_them(
    a: str, b: str, epoch: str, release: str, rpm_says: Callable[[str, str], int]
) -> None:
    one, two = f"{epoch}1{a}-{release}", f"1{b}-1"
    assert compare(Family.RPM, one, two) == rpm_says(one, two), (one, two)


APK_ORDER = """1.0_alpha 1.0_alpha2 1.0_beta 1.0_pre1 1.0_rc1 1.0_rc2-r1 1.0 1.0-r1 1.0-r10 1.0_git20200101
1.0_p1 1.0_p2 1.0a 1.0b 1.0.1 1.05 1.1 1.2 1.10 2 10 10.0.1"""


def test_apk_versions() -> None:
    order = APK_ORDER.split()
    for at, one in enumerate(order):
        for further, two in enumerate(order):
            expected = (at > further) - (at < further)
            assert compare(Family.APK, one, two) == expected, (one, two)


def test_freebsd_versions() -> None:
    order = ["1.9", "1.10", "1.10_1", "1.10_12", "0.5,1", "0.5_1,1", "0.1,2"]
    for at, one in enumerate(order):
        for further, two in enumerate(order):
            assert compare(Family.FREEBSD, one, two) == (at > further) - (at < further)


@given(family=st.sampled_from(Family), a=st.text(max_size=12), b=st.text(max_size=12))
def test_any_text_is_compared(family: Family, a: str, b: str) -> None:
    assert compare(family, a, b) == -compare(family, b, a)
    assert compare(family, a, a) == 0
