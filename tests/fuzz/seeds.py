"""Make the seeds: ``python -m tests.fuzz.seeds`` adds them to the committed corpus.

Small file systems from their own mkfs, of which only what the readers read is kept.
"""

import mmap
import random
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.fuzz import corpus
from tests.fuzz.physical_volume import physical_volume
from tests.fuzz.sparse import Traced

from calotype.store.files import areas, ext4, ntfs, xfs
from calotype.store.files.volume import Reader

_EXT4 = {
    "1k": ["-b", "1024", "-N", "64"],
    "4k": ["-b", "4096", "-N", "64"],
    "64bit": ["-b", "1024", "-N", "128", "-g", "1024", "-O", "64bit,meta_bg,^resize_inode"],
    "bigalloc": ["-N", "64", "-O", "bigalloc", "-C", "16384"],
    "inline": ["-N", "64", "-I", "512", "-O", "inline_data"],
    "maps": ["-b", "1024", "-N", "64", "-I", "128", "-O", "^extents,^64bit,^metadata_csum"],
    "sparse2": [
        "-b",
        "1024",
        "-N",
        "128",
        "-g",
        "1024",
        "-O",
        "meta_bg,^resize_inode,sparse_super2",
    ],
}
_XFS = {
    "v5": [],
    "v4": ["-m", "crc=0"],
    "v4, 256": ["-m", "crc=0", "-i", "size=256", "-b", "size=1024"],
    "1k": ["-b", "size=1024"],
    "nrext64": ["-i", "nrext64=1", "-m", "bigtime=1"],
    "dense": ["-i", "sparse=0,size=2048"],
}
_NTFS = {
    "4k": ["-c", "4096"],
    "512": ["-c", "512"],
    "64k": ["-c", "65536"],
}


def _tree(root: Path) -> list[Path]:
    """Files of some sizes, and one with many holes."""
    rng = random.Random(1)
    (root / "tiny").write_bytes(b"tiny")
    for number in range(6):
        (root / f"small{number}").write_bytes(rng.randbytes(900 + number * 3000))
    (root / "large").write_bytes(rng.randbytes(400_000))
    with (root / "holes").open("wb") as file:
        for piece in range(90):
            file.seek(piece * 16384)
            file.write(rng.randbytes(700))
    return sorted(root.iterdir())


def _image(path: Path, size: int) -> Path:
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


def _run(*command: str | Path) -> None:
    subprocess.run([*map(str, command)], check=True, capture_output=True)


def ext4_images(root: Path, scratch: Path) -> Iterator[Path]:
    """With each set of features."""
    for options in _EXT4.values():
        path = _image(scratch / "ext4", 8 << 20)
        _run("mke2fs", "-q", "-F", "-t", "ext4", "-d", root, *options, path)
        yield path


def xfs_images(files: list[Path], scratch: Path) -> Iterator[Path]:
    """Of both versions, with inodes and blocks of several sizes."""
    lines = ["/none", "0 0", "d--755 0 0"]
    lines += [f"{path.name} ---644 0 0 {path}" for path in files]
    proto = scratch / "proto"
    proto.write_text("\n".join([*lines, "$", ""]))
    for options in _XFS.values():
        path = _image(scratch / "xfs", 300 << 20)
        _run("mkfs.xfs", "-q", "-f", "-p", proto, *options, path)
        yield path


def ntfs_images(files: list[Path], scratch: Path) -> Iterator[Path]:
    """With clusters of several sizes."""
    for options in _NTFS.values():
        path = _image(scratch / "ntfs", 8 << 20)
        _run("mkntfs", "-q", "-F", "-s", "512", *options, path)
        for file in files:
            _run("ntfscp", "-f", path, file, file.name)
        yield path
    path = _image(scratch / "ntfs", 4 << 20)
    _run("mkntfs", "-q", "-F", "-s", "512", "-c", "512", path)
    names = ["a", "b", "c"]
    for name in names:
        _run("ntfscp", "-f", path, files[-1], name)
    # Three files that grow in turns: so many runs that each needs an attribute list.
    for size in range(6000, 220_000, 512):
        for name in names:
            _run("ntfsfallocate", "-f", "-l", str(size), path, name)
    _run("ntfstruncate", path, "64", "1000000")  # a hole
    yield path


def disks(root: Path, scratch: Path) -> Iterator[Path]:
    """With partition tables, and with a physical volume of LVM alone and in a partition."""
    path = _image(scratch / "ext4", 1 << 20)
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-N", "32", "-O", "^has_journal", path)
    small = path.read_bytes()
    volumes = physical_volume({"root": [(8, 12), (0, 4)], "swap": [(4, 4)]}, extents=32)
    volumes[(1 << 20) + 8 * 65536 : (1 << 20) + 20 * 65536] = small[: 12 * 65536]
    volumes[1 << 20 : (1 << 20) + 4 * 65536] = small[12 * 65536 :]
    path = scratch / "disk"
    path.write_bytes(volumes)
    yield path
    for kind in ("gpt", "dos"):
        path = _image(scratch / kind, 16 << 20)
        if kind == "gpt":
            _run("sgdisk", "-n", "1:2048:4095", "-n", "2:4096:+4M", path)
        disk = bytearray(path.read_bytes())
        if kind == "dos":
            disk[:512] = _mbr([(0x83, 2048, 2048), (5, 5000, 25000)])
            disk[5000 * 512 : 5001 * 512] = _mbr([(0x83, 1, 100), (5, 7192, 17000)])
            disk[12192 * 512 : 12193 * 512] = _mbr([(0x8E, 96, 8192)])
        disk[1 << 20 : 2 << 20] = small
        start = (2 << 20) if kind == "gpt" else (6 << 20)
        disk[start : start + len(volumes)] = volumes
        path.write_bytes(disk)
        yield path


def _mbr(entries: list[tuple[int, int, int]]) -> bytes:
    rows = b"".join(struct.pack("<4xB3xII", *entry) for entry in entries)
    return (bytes(446) + rows).ljust(510, b"\0") + b"\x55\xaa"


def describe(path: Path, read: Callable[[Reader], object]) -> bytes:
    """The input that describes what is read of an image."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        traced = Traced(data)
        read(traced)
        return traced.described()


def main() -> None:
    """Make them all."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        root = scratch / "tree"
        root.mkdir()
        files = _tree(root)
        made: dict[str, tuple[Iterator[Path], Callable[[Reader], object]]] = {
            "ext4": (ext4_images(root, scratch), ext4.read_map),
            "xfs": (xfs_images(files, scratch), xfs.read_map),
            "ntfs": (ntfs_images(files, scratch), ntfs.read_map),
            "volumes": (disks(root, scratch), areas),
        }
        for target, (images, read) in made.items():
            fresh = [describe(image, read) for image in images]
            corpus.pack(target, [*(data for _name, data in corpus.inputs(target)), *fresh])


if __name__ == "__main__":
    main()
