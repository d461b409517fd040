"""Manifests and diffs: what mke2fs was given comes out, chunks say what contents say, damage ends soon."""

import json
import os
import random
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.disks import BytesDisk

from calotype import cli, run, wire
from calotype.config import Home
from calotype.disk.base import Extent
from calotype.engine.context import Context
from calotype.engine.proof.diff import diff_images
from calotype.errors import GuestError
from calotype.guest.diff import GuestDiff, Side, diff, packages_diff
from calotype.guest.ext4 import Ext4
from calotype.guest.ext4_manifest import ExtManifest
from calotype.guest.manifest import ContentHash, TreeManifest
from calotype.guest.noise import noise
from calotype.guest.offline import ExtGuest
from calotype.guest.packages import Family, Package
from calotype.model import (
    Image,
    ImageDisk,
    OsState,
    OsType,
    Provenance,
    SourceKind,
)
from calotype.store import MemoryStore, Repository
from calotype.store.chunking import Chunking
from calotype.store.compare import differing, doubts

MIB = 1 << 20
LAYOUTS = {
    "ext4": ["-t", "ext4", "-b", "4096"],
    "ext4-1k": ["-t", "ext4", "-b", "1024"],
    "ext3": ["-t", "ext3"],
    "ext2": ["-t", "ext2", "-b", "1024", "-I", "128"],
    "inline": ["-t", "ext4", "-O", "inline_data", "-I", "256"],
    "meta_bg": ["-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024"],
    "no_csum": ["-t", "ext4", "-O", "^64bit,^metadata_csum,^uninit_bg"],
}
STATUS = "Package: {}\nStatus: install ok installed\nVersion: {}\nArchitecture: all\n\n"


def make(tree: Path, image: Path, options: list[str], size: str = "12M") -> bytes:
    run.run(["mke2fs", "-q", "-F", *options, "-d", str(tree), str(image), size])
    return image.read_bytes()


def open_fs(data: bytes) -> Ext4:
    return Ext4(lambda at, length: data[at : at + length].ljust(length, b"\0"), len(data))


def side(data: bytes) -> Side:
    fs = open_fs(data)
    return Side(ExtGuest(fs), ExtManifest(fs, 0))


# Manifests


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    (root / "a/b/c").mkdir(parents=True)
    (root / "small").write_bytes(b"x" * 50)
    (root / "twin").write_bytes(b"x" * 50)
    (root / "other").write_bytes(b"y" * 50)
    with (root / "sparse").open("wb") as file:
        for at in range(0, 900_000, 90_000):
            file.seek(at)
            file.write(b"here")
    content = bytearray((root / "sparse").read_bytes())
    (root / "a/full").write_bytes(content)
    content[500_000] ^= 1
    (root / "a/bent").write_bytes(content)
    (root / "big").write_bytes(random.Random(1).randbytes(1_500_000))
    (root / "empty").touch()
    (root / "short").symlink_to("../a")
    (root / "long").symlink_to("x" * 200)
    os.mkfifo(root / "a/fifo")
    os.link(root / "big", root / "a/hard")
    (root / "many").mkdir()
    for number in range(400):
        (root / f"many/name-{number:04}").write_text(str(number), "ascii")
    for name in (b"sp ace", b"new\nline", b"\xff\xfe", b"x" * 255):
        (root / "a" / os.fsdecode(name)).touch()
    (root / "a").chmod(0o1750)
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_manifest_says_what_mke2fs_was_given(layout: str, tree: Path, tmp_path: Path) -> None:
    fs = open_fs(make(tree, tmp_path / "img", LAYOUTS[layout]))
    manifest = ExtManifest(fs, 0)
    assert manifest.notes == []
    found = dict(manifest.entries)
    assert found.pop("/lost+found").kind == stat.S_IFDIR
    wanted = {f"/{path.relative_to(tree)}": path for path in tree.rglob("*")}
    assert found.keys() == wanted.keys()
    for name, path in wanted.items():
        entry, seen = found[name], path.lstat()
        assert (entry.mode, entry.uid, entry.gid) == (seen.st_mode, seen.st_uid, seen.st_gid)
        assert entry.size == (seen.st_size if entry.is_file else 0)
        assert entry.target == (os.readlink(path) if path.is_symlink() else "")
    files = [name for name, path in wanted.items() if found[name].is_file]
    digests = manifest.digests(files)
    assert digests == TreeManifest(ExtGuest(fs)).digests(files)
    assert digests["/small"] == digests["/twin"] != digests["/other"]
    assert digests["/sparse"] == digests["/a/full"] != digests["/a/bent"]
    assert manifest.read(files, 2000) == {
        name: wanted[name].read_bytes() for name in files if found[name].size <= 2000
    }


PIECES = st.lists(
    st.tuples(st.integers(0, 200_000), st.sampled_from([b"a", b"\0", b"xyz" * 5000])), max_size=6
)


@given(pieces=PIECES, cuts=st.lists(st.integers(0, 300_000), max_size=5))
def test_a_digest_is_of_the_content_alone(pieces: list[tuple[int, bytes]], cuts: list[int]) -> None:
    content = bytearray(300_000)
    for at, data in pieces:
        content[at : at + len(data)] = data
    whole = ContentHash(len(content))
    whole.add(0, bytes(content))
    some = ContentHash(len(content))
    edges = sorted({0, *cuts, len(content)})
    for first, last in pairwise(edges):
        if any(content[first:last]):
            some.add(first, bytes(content[first:last]))
    assert whole.digest() == some.digest()
    if pieces and any(pieces[-1][1]):
        content[pieces[-1][0]] ^= 255
        bent = ContentHash(len(content))
        bent.add(0, bytes(content))
        assert bent.digest() != whole.digest()


# Indexes

SIZE = 2 * MIB + 8192  # the last region is short


@settings(max_examples=40, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 90_000)), max_size=6),
    seed=st.integers(0, 9),
)
def test_two_disks_are_equal_where_their_indexes_say_so(
    changes: list[tuple[int, int]], seed: int
) -> None:
    rng = random.Random(seed)
    before = bytearray(SIZE)
    for at in range(0, SIZE, 1 << 17):
        before[at : at + 70_000] = rng.randbytes(70_000)
    before = before[:SIZE]
    after = bytearray(before)
    for at, length in changes:
        count = min(length, SIZE - at)
        after[at : at + count] = rng.randbytes(count) if at % 2 else bytes(count)
    repository = Repository.create(MemoryStore(), chunking=Chunking(region=MIB))
    one = repository.ingest(BytesDisk(bytes(before))).index
    changed = [
        Extent(at, 4096, zero=False)
        for at in range(0, SIZE, 4096)
        if before[at : at + 4096] != after[at : at + 4096]
    ]
    two = repository.ingest(BytesDisk(bytes(after)), base=one, changed=changed).index
    a, b = repository.rows(one), repository.rows(two)
    covered = bytearray(before)
    for extent in differing(a, b):
        covered[extent.offset : extent.end] = after[extent.offset : extent.end]
    assert covered == after
    assert bool(changed) == any(True for _ in differing(a, b))

    # The disk as files of 8 KiB: what is called equal is, what is called unequal is not.
    start = np.arange(0, SIZE, 8192)
    runs = (np.arange(len(start)), np.zeros_like(start), start, np.full_like(start, 8192))
    found = doubts(a.pieces(*runs), b.pieces(*runs), len(start), one_domain=True)
    for number, at in enumerate(start.tolist()):
        same = before[at : at + 8192] == after[at : at + 8192]
        if found.unequal[number]:
            assert not same
        elif number not in found.file:
            assert same
    for number, first, last in zip(found.file, found.start, found.end, strict=True):
        at = int(start[number])
        part = bytearray(before[at : at + 8192])
        mine = found.file == number
        for low, high in zip(found.start[mine], found.end[mine], strict=True):
            part[low:high] = after[at + low : at + high]
        assert part == after[at : at + 8192], (first, last)


# Diffs


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two trees of a small Debian: the second was upgraded and used."""
    roots = (tmp_path / "before", tmp_path / "after")
    for root, newer in zip(roots, (False, True), strict=True):
        for name in ("etc/systemd/system/multi-user.target.wants", "usr/bin", "boot", "var/log"):
            (root / name).mkdir(parents=True)
        for name in ("var/lib/dpkg/info", "srv", "opt/app"):
            (root / name).mkdir(parents=True)
        version = "12.1" if newer else "12.0"
        (root / "etc/os-release").write_text(
            f'ID=debian\nVERSION_ID=12\nPRETTY_NAME="D {version}"\n'
        )
        (root / "etc/passwd").write_text(
            "root:x:0:0:root:/root:/bin/bash\n" + "eve:x:1000:1000::/home/eve:/bin/sh\n" * newer
        )
        (root / "etc/group").write_text(f"sudo:x:27:{'eve' * newer}\n")
        packages = {"tool": "2.0-1" if newer else "1.9-1", "down": "1" if newer else "1~1"}
        packages["down"] = "1~1" if newer else "1"
        packages["new" if newer else "old"] = "1"
        (root / "var/lib/dpkg/status").write_text(
            "".join(STATUS.format(name, version) for name, version in packages.items())
        )
        (root / "var/lib/dpkg/info/tool.list").write_text("/bin/tool\n/usr/bin/tool\n")
        (root / "usr/bin/tool").write_bytes(random.Random(1).randbytes(300_000 + newer))
        (root / "usr/bin/same").write_bytes(random.Random(2).randbytes(700_000))
        # One size, other bytes: at the end of a large file, and in a small one.
        data = bytearray(random.Random(3).randbytes(600_000))
        data[-10] ^= newer
        (root / "srv/late").write_bytes(data)
        (root / "srv/small").write_text(f"version {int(newer)}")
        (root / "srv/moved").write_text("the same")
        (root / "srv/moved").chmod(0o600 if newer else 0o644)
        (root / "srv/link").symlink_to("there" if newer else "here")
        if newer:
            (root / "srv/kind").mkdir()
            (root / "opt/app/added").write_bytes(bytes(1000) + b"!" * 50_000)
            (root / "var/log/syslog").write_text("noise")
            (root / "boot/vmlinuz-6.2").touch()
        else:
            (root / "srv/kind").write_text("file")
            (root / "boot/vmlinuz-6.1").touch()
        wants = root / "etc/systemd/system/multi-user.target.wants"
        unit = "new.service" if newer else "old.service"
        (wants / unit).symlink_to(f"/lib/systemd/system/{unit}")
        (root / "etc/systemd/system/cups.service").symlink_to("/dev/null" if newer else "/x")
    return roots


@pytest.mark.parametrize("through", ["bulk", "tree"])
def test_everything_that_differs_is_told(
    through: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    disks = [make(root, tmp_path / f"{root.name}.raw", LAYOUTS["ext4"]) for root in pair]
    sides = [side(disk) for disk in disks]
    if through == "tree":
        sides = [Side.of(one.tree) for one in sides]
    found = diff(sides[0], sides[1])
    check(found, links=through == "bulk")
    assert not diff(sides[0], sides[0])


def check(found: GuestDiff, *, links: bool = True) -> None:
    packages = found.packages
    assert [p.name for p in packages.added] == ["new"]
    assert [p.name for p in packages.removed] == ["old"]
    assert [(p.name, p.before, p.after) for p in packages.upgraded] == [("tool", "1.9-1", "2.0-1")]
    assert [(p.name, p.before, p.after) for p in packages.downgraded] == [("down", "1", "1~1")]
    files = {change.path: change for change in found.files}
    assert files["/usr/bin/tool"].aspects == ("content",)
    assert files["/usr/bin/tool"].package == "tool"
    assert "/usr/bin/same" not in files
    assert files["/srv/late"].aspects == files["/srv/small"].aspects == ("content",)
    assert files["/srv/moved"].aspects == ("mode",)
    assert files["/srv/kind"].aspects == ("type",)
    assert files["/opt/app/added"].status == "added"
    assert files["/var/log/syslog"].noise == "log"
    assert files["/var/lib/dpkg/status"].noise == "package database"
    assert [(c.name, c.before) for c in found.users] == [("eve", None)]
    assert [(c.name, c.before, c.after) for c in found.groups] == [
        ("sudo", "gid 27", "gid 27: eve")
    ]
    assert [(c.name, c.after) for c in found.kernels] == [("6.1", None), ("6.2", "kernel")]
    assert [(c.name, c.after) for c in found.release] == [("PRETTY_NAME", "D 12.1")]
    if links:
        assert files["/srv/link"].aspects == ("target",)
        assert [(c.name, c.before, c.after) for c in found.services] == [
            ("cups.service", None, "masked"),
            ("new.service", None, "multi-user.target"),
            ("old.service", "multi-user.target", None),
        ]
    sizes = {d.path: d.after - d.before for d in found.directories}
    assert sizes["/opt/app"] == 51_000
    assert sizes["/usr/bin"] == 1


def test_packages_of_several_versions() -> None:
    def kernel(version: str) -> Package:
        return Package(Family.RPM, "kernel", version, "x86_64")

    found = packages_diff([kernel("1-1"), kernel("2-1")], [kernel("2-1"), kernel("3-1")])
    assert [(c.before, c.after) for c in found.upgraded] == [("1-1", "3-1")]
    found = packages_diff([kernel("1-1")], [kernel("1-1"), kernel("2-1"), kernel("3-1")])
    assert [p.version for p in found.added] == ["2-1", "3-1"]
    assert not found.removed
    assert not packages_diff([kernel("1-1")], [kernel("1-1")])


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/usr/lib/python3/__pycache__/x.cpython-311.pyc", "byte code"),
        ("/var/cache/apt/pkgcache.bin", "cache"),
        ("/home/eve/.cache/x\ny", "cache"),
        ("/var/log", ""),
        ("/etc/passwd", ""),
        ("/usr/bin/.cached", ""),
    ],
)
def test_noise(path: str, kind: str) -> None:
    assert noise(path) == kind


# Images


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    context = wire.build(home=Home(tmp_path / "home"))
    yield context
    context.close()


def add(context: Context, name: str, index: str, size: int, data: str | None = None) -> None:
    extra = (ImageDisk(index=data, size=MIB, lun=3),) if data else ()
    context.catalog.add_image(
        Image(
            id=f"{name}-id",
            name=name,
            os_type=OsType.LINUX,
            os_state=OsState.SPECIALIZED,
            os_disk=ImageDisk(index=index, size=size),
            data_disks=extra,
            provenance=Provenance(kind=SourceKind.FILE, source="x"),
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
        )
    )


@pytest.fixture
def images(context: Context, pair: tuple[Path, Path], tmp_path: Path) -> Context:
    disks = [BytesDisk(make(root, tmp_path / f"{root.name}.raw", LAYOUTS["ext4"])) for root in pair]
    repository = context.repository
    plain, bent = (repository.ingest(BytesDisk(data * MIB)).index for data in (b"d", b"e"))
    indexes = [repository.ingest(disk).index for disk in disks]
    repository.add_domain("apart")
    apart = repository.ingest(disks[1], domain="apart").index
    add(context, "a", indexes[0], disks[0].size, plain)
    add(context, "b", indexes[1], disks[1].size, bent)
    add(context, "b-apart", apart, disks[1].size)
    add(context, "no-guest", plain, MIB)
    return context


def test_images_are_compared_by_their_chunks(images: Context) -> None:
    found = diff_images(images, "a", "b")
    assert found.guest is not None
    check(found.guest)
    assert found.guest.read < found.guest.compared
    assert [(d.lun, d.differing > 0) for d in found.disks] == [(None, True), (3, True)]
    assert found.differ


def test_another_domain_costs_reads_and_says_the_same(images: Context) -> None:
    found, apart = diff_images(images, "a", "b"), diff_images(images, "a", "b-apart")
    assert found.guest is not None
    assert apart.guest is not None
    assert apart.guest.files == found.guest.files
    assert apart.guest.read == apart.guest.compared > found.guest.read
    same = diff_images(images, "b", "b-apart")
    assert same.guest is not None
    assert not same.guest


def test_an_image_does_not_differ_from_itself(images: Context) -> None:
    found = diff_images(images, "a", "a")
    assert not found.differ
    assert found.guest is not None


def test_an_image_without_a_guest_is_compared_by_bytes(images: Context) -> None:
    found = diff_images(images, "a", "no-guest")
    assert found.guest is None
    assert "'no-guest'" in found.notes[0]
    assert found.differ


def test_what_is_not_ext4_is_walked_in_an_appliance(
    images: Context, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the appliance: what is tested is that its tree is walked, and let go."""
    data = make(pair[1], tmp_path / "again.raw", LAYOUTS["ext4"])
    closed = []

    @contextmanager
    def stand_in(_context: Context, _disk: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(guest=ExtGuest(open_fs(data)))
        closed.append(True)

    monkeypatch.setattr("calotype.engine.generalize.appliance.appliance_tree", stand_in)
    found = diff_images(images, "a", "no-guest", appliance=True)
    assert found.guest is not None
    check(found.guest, links=False)
    assert closed


def test_the_command(
    images: Context, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CALOTYPE_HOME", str(images.home.root))
    assert cli.run(["image", "diff", "a", "b"]) == 0
    told = capsys.readouterr().out
    for line in ("↑ tool 1.9-1 → 2.0-1", "+ eve", "~ /srv/moved  (mode 0644 → 0600)", "LUN 3"):
        assert line in told
    assert "/usr/bin/tool" not in told
    assert cli.run(["image", "diff", "a", "b", "--files", "--all", "--exit-code"]) == 1
    told = capsys.readouterr().out
    assert "~ /usr/bin/tool" in told
    assert "[tool]" in told
    assert "/var/log/syslog" in told
    assert cli.run(["image", "diff", "a", "a", "--exit-code"]) == 0
    capsys.readouterr()
    assert cli.run(["image", "diff", "a", "b", "-o", "json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["differ"] is True
    assert record["guest"]["packages"]["upgraded"][0]["after"] == "2.0-1"


# Hostile


def test_directories_in_themselves_are_noted(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "img"
    make(tree, image, LAYOUTS["ext4"])
    run.run(
        ["debugfs", "-w", "-f", "-", str(image)],
        data=b"link /a /a/b/loop\nlink /a/b /a/b/c/again\n",
    )
    manifest = ExtManifest(open_fs(image.read_bytes()), 0)
    assert any("in themselves" in note for note in manifest.notes)
    assert "/a/b/loop" in manifest.entries
    assert not any(path.startswith("/a/b/loop/") for path in manifest.entries)


def test_paths_that_are_too_long_in_all_are_refused(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few megabytes of directories can spell terabytes of paths."""
    fs = open_fs(make(tree, tmp_path / "img", LAYOUTS["ext4"]))
    monkeypatch.setattr("calotype.guest.manifest.MOST_CHARACTERS", 5000)
    with pytest.raises(GuestError, match="longer in all"):
        ExtManifest(fs, 0)
    with pytest.raises(GuestError, match="longer ones"):
        TreeManifest(ExtGuest(fs))


def test_a_file_of_a_petabyte_costs_nothing(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "img"
    make(tree, image, LAYOUTS["ext4"])
    run.run(["debugfs", "-w", "-R", "sif /empty size 1125899906842624", str(image)])
    run.run(["debugfs", "-w", "-R", "sif /small size 1125899906842624", str(image)])
    manifest = ExtManifest(open_fs(image.read_bytes()), 0)
    assert manifest.entries["/empty"].size == 1 << 50
    assert len(manifest.digests(["/empty", "/small"])) == 2
    assert manifest.read(["/empty"], MIB) == {}


def test_files_that_share_blocks_are_refused(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "img"
    make(tree, image, ["-t", "ext2", "-b", "1024"], "3M")
    data = bytearray(image.read_bytes())
    fs = open_fs(bytes(data))
    manifest = ExtManifest(fs, 0)
    big = fs.inode(manifest.entries["/big"].inode)
    for number in range(10):  # ten more files of the same blocks
        entry = manifest.entries[f"/many/name-{number:04}"]
        old = fs.inode(entry.inode)
        at = bytes(data).index(old.raw)
        data[at : at + len(big.raw)] = big.raw
    shared = ExtManifest(open_fs(bytes(data)), 0)
    files = [path for path, entry in shared.entries.items() if entry.is_file]
    with pytest.raises(GuestError, match="share blocks"):
        shared.runs(files)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_file_systems_raise_nothing_else(seed: int, tree: Path, tmp_path: Path) -> None:
    rng = random.Random(seed)
    layout = rng.choice(list(LAYOUTS))
    data = make(tree, tmp_path / "img", LAYOUTS[layout])
    whole = side(data)
    tables = [offset for _, offset, _ in open_fs(data).tables()]
    for _ in range(25):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 10, 100))):
            base = rng.choice((1024, 2048, *tables, *tables, rng.randrange(len(data) - 9000)))
            damaged[base + rng.randrange(8192)] = rng.choice((0, 255, rng.randrange(256)))
        try:
            other = side(bytes(damaged))
            files = [p for p, e in other.manifest.entries.items() if e.is_file]
            other.manifest.digests(files)
            diff(whole, other)
        except GuestError:
            continue
