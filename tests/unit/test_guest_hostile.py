"""Guests that were made to break who looks at them: they end soon, in our own error or a right result.

The source is never written to; what a hostile link names outside the tree is never seen.
"""

import hashlib
import os
import random
import shutil
import struct
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests import roots

from calotype import run
from calotype.disk.view import RawSource, writable
from calotype.errors import CalotypeError
from calotype.guest import generalize
from calotype.guest.ext4 import ROOT, Ext4
from calotype.guest.proof import Proof, prove_disk
from calotype.model import OsState, Verdict

Craft = Callable[[Path], None]


def debugfs(path: Path, *script: str) -> None:
    run.run(["debugfs", "-w", "-f", "-", str(path)], data="\n".join(script).encode() + b"\n")


def proof_of(path: Path) -> Proof:
    with closing(RawSource(path).open()) as disk:
        return prove_disk(disk)


def withstands(path: Path, room: Path, seconds: float = 60) -> Proof | CalotypeError:
    """Prove and generalize a hostile disk: in time, with no error but ours; the source stays as it was.

    Returns:
        The proof of the generalized copy, or the error that refused it.
    """
    before = hashlib.sha256(path.read_bytes()).digest()
    started = time.process_time()
    proof_of(path)
    try:
        with writable(RawSource(path), room / "overlay", room) as view:
            generalize(view)
        with closing(view.disk()) as disk:
            return prove_disk(disk)
    except CalotypeError as error:
        return error
    finally:
        assert hashlib.sha256(path.read_bytes()).digest() == before
        assert time.process_time() - started < seconds


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "debian.raw"
    roots.build("debian", "used", path)
    return path


@pytest.fixture
def disk(debian: Path, tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    shutil.copy(debian, path)
    return path


def inode(path: Path, name: str) -> tuple[Ext4, int]:
    """The file system, and the number of the inode of a path."""
    raw = path.read_bytes()
    fs = Ext4(lambda at, length: raw[at : at + length], len(raw))
    number = ROOT
    for part in filter(None, name.split("/")):
        number = {e.name: e.inode for e in fs.entries(fs.inode(number))}[part.encode()]
    return fs, number


LINKS = {
    "/etc/passwd": "/proc/self/environ",
    "/etc/shadow": "../../../../../../../../etc/shadow",
    "/etc/hostname": "/dev/zero",
    "/home": "/",
    "/var/log": "/etc",
    "/tmp": "/usr",
    "/root": "root/root",
    "/var/lib/cloud": "/var/lib/cloud",
    "/etc/machine-id": "/etc/machine-id",
    "/var/lib/waagent": "../../usr",
}


@pytest.mark.parametrize("name", LINKS)
def test_links_where_files_and_directories_are_expected(
    name: str, disk: Path, tmp_path: Path
) -> None:
    fs, number = inode(disk, name)
    remove = (
        [f"unlink {name}", f"clri <{number}>"]
        if not fs.inode(number).is_dir
        else [f"unlink {name}"]
    )
    debugfs(disk, *remove, f"symlink {name} {LINKS[name]}")
    run.run(["e2fsck", "-fy", str(disk)], check=False)  # frees what has no name any more
    result = withstands(disk, tmp_path)
    if name in ("/home", "/var/log"):
        assert isinstance(result, CalotypeError)
        assert f"{name} leads to {LINKS[name]}" in str(result)
    elif isinstance(result, Proof):
        assert result.verdict is Verdict.GENERALIZED
        assert result.seen.kernels  # the system is still there


@pytest.mark.parametrize("name", ["/etc/machine-id", "/etc/shadow", "/etc/passwd", "/etc/hosts"])
@pytest.mark.parametrize("kind", ["p", "c 1 5", "b 7 0", "dir"])
def test_other_things_where_files_are_expected(
    name: str, kind: str, disk: Path, tmp_path: Path
) -> None:
    directory, _, last = name.rpartition("/")
    make = f"mkdir {name}" if kind == "dir" else f"mknod {last} {kind}"
    debugfs(disk, f"rm {name}", f"cd {directory}", make)
    result = withstands(disk, tmp_path)
    if isinstance(result, Proof):
        assert result.contradicts(OsState.GENERALIZED) == () or result.reasons


def _cycle(path: Path) -> None:
    debugfs(path, "ln /etc /etc/ssh/again")


def _hard_linked(path: Path) -> None:
    debugfs(path, "ln /var/log /srv/log")


def _root_again(path: Path) -> None:
    debugfs(path, "ln / /srv/root")


def _many_cycles(path: Path) -> None:
    debugfs(path, *(f"ln /srv /srv/again{n}" for n in range(100)))


def _anothers_blocks(path: Path) -> None:
    """The history's content is the passwords' block."""
    fs, shadow = inode(path, "/etc/shadow")
    _, history = inode(path, "/root/.bash_history")
    block = next(fs.runs(fs.inode(shadow))).physical
    debugfs(path, f"sif <{history}> block[5] {block}")


def _absurd_size(path: Path) -> None:
    for name in ("/etc/passwd", "/root/.bash_history", "/var/log/syslog", "/swapfile"):
        _, number = inode(path, name)
        debugfs(path, f"sif <{number}> size {1 << 50}")


def _absurd_directory(path: Path) -> None:
    _, number = inode(path, "/etc")
    debugfs(path, f"sif <{number}> size {1 << 40}")


def _damaged_directory(path: Path) -> None:
    fs, number = inode(path, "/etc")
    at = next(fs.runs(fs.inode(number))).physical * fs.block
    with path.open("r+b") as file:
        file.seek(at)
        file.write(random.Random(1).randbytes(fs.block))


def _names(path: Path) -> None:
    """Names in the directory's block itself, so that no tool has to spell them."""
    names = [b"a" + bytes([n]) * 7 for n in range(1, 256) if n not in b"/"]
    fifos = (f"mknod f{n:07} p" for n in range(len(names)))
    debugfs(path, "mkdir /var/log/n", "cd /var/log/n", *fifos)
    fs, number = inode(path, "/var/log/n")
    with path.open("r+b") as file:
        for extent in fs.runs(fs.inode(number)):
            for block in range(extent.physical, extent.physical + extent.blocks):
                raw = fs.read_at(block * fs.block, fs.block)
                for n, name in enumerate(names):
                    raw = raw.replace(b"f%07d" % n, name)
                file.seek(block * fs.block)
                file.write(raw)


HOSTILE = [
    _cycle,
    _hard_linked,
    _root_again,
    _many_cycles,
    _anothers_blocks,
    _absurd_size,
    _absurd_directory,
    _damaged_directory,
    _names,
]


@pytest.mark.parametrize("craft", HOSTILE, ids=lambda craft: craft.__name__.strip("_"))
def test_metadata_that_makes_no_sense(craft: Craft, disk: Path, tmp_path: Path) -> None:
    craft(disk)
    result = withstands(disk, tmp_path)
    if isinstance(result, Proof):  # e2fsck could mend it: then nothing may be left
        assert result.verdict is Verdict.GENERALIZED, result.reasons


def test_a_loop_is_unknown_with_its_reason(disk: Path) -> None:
    _many_cycles(disk)
    proof = proof_of(disk)
    assert proof.verdict is Verdict.UNKNOWN
    assert "two names" in proof.reasons[0]


def test_an_account_file_of_64_mib(tmp_path: Path) -> None:
    root = roots.lay_out("debian", "used")
    person = b"alice:x:1000:1000::/home/alice:/bin/sh\n"
    root.file("/etc/passwd", b"root:x:0:0:root:/root:/bin/bash\n" + person * (1 << 21))
    disk = tmp_path / "disk.raw"
    root.ext4(disk, 160 << 20)
    result = withstands(disk, tmp_path)
    assert isinstance(result, CalotypeError)
    assert "/etc/passwd is larger than 16 MiB" in str(result)
    assert proof_of(disk).verdict is Verdict.UNKNOWN


def crowd(path: Path, directory: str, count: int, suffix: bytes = b"") -> None:
    """Fill a directory with ``count`` names of one inode: blocks written as they are, then mended.

    All names are links to one file, as far as the count of links goes, then to the next.
    """
    fs, number = inode(path, directory)
    per_file = 60_000
    files = -(-count // per_file)
    seed = path.parent / "seed"
    seed.write_bytes(b"crowd")
    debugfs(path, f"cd {directory}", *(f"write {seed} .seed{n}" for n in range(files)))
    fs, number = inode(path, directory)
    seeds = [e.inode for e in fs.entries(fs.inode(number)) if e.name.startswith(b".seed")]
    parent = struct.unpack_from("<I", fs.read(fs.inode(number), 24), 12)[0]
    listing = _blocks(fs.block, number, parent, seeds, count, per_file, suffix)
    whole = path.parent / "listing"
    whole.write_bytes(listing)
    old = [b for r in fs.runs(fs.inode(number)) for b in range(r.physical, r.physical + r.blocks)]
    debugfs(path, f"write {whole} crowd")
    fs, filled = inode(path, "/crowd")
    raw = fs.inode(filled).raw
    words = struct.unpack_from("<15I", raw, 40)
    indices = (*map(str, range(12)), "IND", "DIND", "TIND")
    script = [f"sif <{number}> block[{i}] {word}" for i, word in zip(indices, words, strict=True)]
    script += [f"sif <{number}> size {len(listing)}", f"sif <{number}> flags 0x80000"]
    script += ["unlink /crowd", f"clri <{filled}>", f"freeb {old[0]} {len(old)}"]
    debugfs(path, *script)
    run.run(["e2fsck", "-fy", str(path)], check=False)
    run.run(["e2fsck", "-fn", str(path)])


def _blocks(
    block: int, own: int, parent: int, seeds: list[int], count: int, per_file: int, suffix: bytes
) -> bytes:
    room = block - 12  # the checksum's
    parts: list[bytes] = []
    entries = [(own, b"."), (parent, b"..")]
    entries += [(seeds[n // per_file], b"f%07d%b" % (n, suffix)) for n in range(count)]
    entries += [(seed, b".seed%d" % n) for n, seed in enumerate(seeds)]
    used, last = 0, 0
    current = bytearray(block)

    def close() -> None:
        struct.pack_into("<H", current, last + 4, room - last)
        struct.pack_into("<IHBB", current, room, 0, 12, 0, 0xDE)
        parts.append(bytes(current))

    for number, name in entries:
        need = 8 + (len(name) + 3 & ~3)
        if used + need > room:
            close()
            current, used = bytearray(block), 0
        kind = 2 if name in (b".", b"..") else 1
        struct.pack_into("<IHBB", current, used, number, need, len(name), kind)
        current[used + 8 : used + 8 + len(name)] = name
        last, used = used, used + need
    close()
    return b"".join(parts)


@pytest.mark.parametrize("where", ["/tmp", "/var/log"])
def test_a_crowded_directory(where: str, tmp_path: Path) -> None:
    """100,000 names (a million with CALOTYPE_CROWD=1000000)."""
    count = int(os.environ.get("CALOTYPE_CROWD", "100000"))
    disk = tmp_path / "disk.raw"
    roots.build("debian", "fresh", disk, (32 << 20) + count * 100)
    crowd(disk, where, count, b".gz" if where == "/var/log" else b"")
    result = withstands(disk, tmp_path, seconds=30 + count / 2000)
    assert isinstance(result, Proof), result
    assert result.verdict is Verdict.GENERALIZED
    assert result.findings == ()


def test_ten_thousand_levels(tmp_path: Path) -> None:
    root = roots.lay_out("debian", "fresh")
    disk = tmp_path / "disk.raw"
    root.ext4(disk, 96 << 20)
    script = ["cd /tmp"]
    script += [line for _ in range(10_000) for line in ("mkdir d", "cd d")]
    debugfs(disk, *script)
    result = withstands(disk, tmp_path)
    assert isinstance(result, Proof), result
    assert result.verdict is Verdict.GENERALIZED
