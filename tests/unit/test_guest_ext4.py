"""The ext4 reader against mke2fs and the kernel's own view of the same tree; damaged images end soon."""

import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from calotype import run
from calotype.errors import GuestError
from calotype.guest.ext4 import ROOT, Ext4, Inode

LAYOUTS = {
    "ext4": ["-t", "ext4"],
    "ext4-4k": ["-t", "ext4", "-b", "4096"],
    "ext3": ["-t", "ext3"],
    "ext2": ["-t", "ext2", "-b", "1024"],
    "inline": ["-t", "ext4", "-O", "inline_data", "-I", "256"],
    "meta_bg": ["-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024"],
    "32bit": ["-t", "ext4", "-O", "^64bit,^metadata_csum"],
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    (root / "a/b").mkdir(parents=True)
    (root / "small").write_bytes(b"x" * 50)
    (root / "medium").write_bytes(bytes(range(256)) * 30)
    with (root / "sparse").open("wb") as file:
        for at in (0, 50_000, 700_000):
            file.seek(at)
            file.write(b"here")
    (root / "big").write_bytes(random.Random(1).randbytes(1_500_000))
    (root / "empty").touch()
    (root / "short").symlink_to("../a")
    (root / "long").symlink_to("x" * 200)
    os.mkfifo(root / "a/fifo")
    os.link(root / "small", root / "a/hard")
    (root / "many").mkdir()
    for number in range(400):
        (root / f"many/name-{number:04}").write_text(str(number), "ascii")
    for name in (b"sp ace", b'qu"ote', b"new\nline", b"\xff\xfe", b"cr\r", b"<12>", b"x" * 255):
        (root / "a" / os.fsdecode(name)).touch()
    (root / "a").chmod(0o1750)
    return root


def make(tree: Path, image: Path, options: list[str], size: str = "12M") -> Path:
    run.run(["mke2fs", "-q", *options, "-d", str(tree), str(image), size])
    return image


def open_bytes(data: bytes) -> Ext4:
    return Ext4(lambda at, length: data[at : at + length].ljust(length, b"\0"), len(data))


def walk(fs: Ext4, number: int = ROOT, path: bytes = b"") -> Iterator[tuple[bytes, Inode]]:
    seen = set()
    pending = [(number, path)]
    while pending:
        number, path = pending.pop()
        if number in seen:
            continue
        seen.add(number)
        for entry in fs.entries(fs.inode(number)):
            inode = fs.inode(entry.inode)
            yield path + b"/" + entry.name, inode
            if inode.is_dir:
                pending.append((entry.inode, path + b"/" + entry.name))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_what_was_written(layout: str, tree: Path, tmp_path: Path) -> None:
    fs = open_bytes(make(tree, tmp_path / "img", LAYOUTS[layout]).read_bytes())
    found = dict(walk(fs))
    assert found.pop(b"/lost+found").is_dir
    base = os.fsencode(tree)
    real = {
        os.path.join(directory, name).removeprefix(base)
        for directory, directories, files in os.walk(base)
        for name in (*directories, *files)
    }
    assert set(found) == real
    for path, inode in found.items():
        expected = os.lstat(base + path)
        assert inode.mode == expected.st_mode, path
        assert (inode.uid, inode.gid) == (expected.st_uid, expected.st_gid)
        if stat.S_ISREG(inode.mode):
            content = Path(os.fsdecode(base + path)).read_bytes()
            assert inode.size == len(content)
            assert fs.read(inode, 1 << 30) == content, path
            assert fs.read(inode, 100) == content[:100]
        elif stat.S_ISLNK(inode.mode):
            assert fs.target(inode) == os.readlink(base + path)


def _damaged(data: bytes, seed: int) -> bytes:
    """Bytes changed where they hurt: superblock, descriptors, inode tables, directories."""
    dice = random.Random(seed)
    changed = bytearray(data)
    used = [at for at in range(1024, len(data), 1024) if any(data[at : at + 1024])][:900]
    for _ in range(dice.randint(1, 40)):
        at = used[int(len(used) * dice.random() ** 3)] + dice.randrange(1024)
        changed[at] = dice.choice((0, 255, dice.randrange(256)))
    changed[1024 + 56 : 1024 + 58] = b"\x53\xef"
    return bytes(changed)


@pytest.mark.parametrize("layout", ["ext4", "ext2", "inline"])
def test_damage_ends_in_an_error_or_in_bytes(layout: str, tree: Path, tmp_path: Path) -> None:
    data = make(tree, tmp_path / "img", LAYOUTS[layout], "6M").read_bytes()
    refused = 0
    for seed in range(25):
        try:
            fs = open_bytes(_damaged(data, seed))
            for count, (_path, inode) in enumerate(walk(fs)):
                if stat.S_ISREG(inode.mode):
                    fs.read(inode, 1 << 20)
                if stat.S_ISLNK(inode.mode):
                    fs.target(inode)
                assert count < 100_000
        except GuestError:
            refused += 1
    assert 0 < refused < 25


def _inode_at(data: bytes, number: int) -> int:
    fs = open_bytes(data)
    return data.index(fs.inode(number).raw)


def test_a_tree_of_extents_that_bites_its_tail(tree: Path, tmp_path: Path) -> None:
    data = bytearray(make(tree, tmp_path / "img", LAYOUTS["ext4-4k"]).read_bytes())
    fs = open_bytes(bytes(data))
    number = {e.name: e.inode for e in fs.entries(fs.inode(ROOT))}[b"big"]
    at = _inode_at(bytes(data), number)
    block = next(fs.runs(fs.inode(number))).physical
    index = b"".join(
        n.to_bytes(4, "little") + block.to_bytes(4, "little") + bytes(4) for n in range(4)
    )
    data[at + 40 : at + 100] = (b"\x0a\xf3\x04\0\x04\0\x05\0" + bytes(4) + index).ljust(60, b"\0")
    node = b"\x0a\xf3" + (340).to_bytes(2, "little") + b"\x54\x01\x04\0" + bytes(4)
    data[block * 4096 : (block + 1) * 4096] = (node + index * 85).ljust(4096, b"\0")
    broken = open_bytes(bytes(data))
    with pytest.raises(GuestError):
        broken.read(broken.inode(number), 1 << 20)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (56, b"\0\0", "no ext4"),
        (24, b"\x07\0\0\0", "no ext4"),
        (40, b"\0\0\0\0", "no sense"),
        (88, b"\x40\0", "no sense"),
        (4, b"\xff\xff\xff\x7f", "no sense"),
        (96, b"\xff\xff\xff\xff", "cannot be read"),
        (98, b"\x01\0", "encrypted"),
        (99, b"\x40", "unknown features"),
    ],
)
def test_superblocks_that_are_refused(
    at: int, value: bytes, message: str, tree: Path, tmp_path: Path
) -> None:
    data = bytearray(make(tree, tmp_path / "img", LAYOUTS["ext4"]).read_bytes())
    data[1024 + at : 1024 + at + len(value)] = value
    with pytest.raises(GuestError, match=message):
        open_bytes(bytes(data))
