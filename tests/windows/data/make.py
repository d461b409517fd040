"""Makes ``volume.ntfs.xz``: an NTFS file system with the directories of Windows, and what is hard to read.

It needs root and FUSE, so its result is kept beside it, and tests add their files with ``ntfscp``:

    sudo python3 tests/windows/data/make.py
"""

import contextlib
import lzma
import os
import subprocess
import tempfile
from pathlib import Path

SIZE = 16 << 20
DIRECTORIES = (
    "Windows/System32/config",
    "Windows/System32/Sysprep/Panther",
    "Windows/Setup/State",
    "Windows/Panther/Unattend",
    "Users/alice/.ssh",
    "Users/Public",
    "ProgramData/ssh",
    "hard/many",
)


def fill(root: Path) -> None:
    """The files; ``hard`` has one of each kind that a reader can get wrong."""
    for name in DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
    hard = root / "hard"
    for number in range(1500):  # an index of several levels
        (hard / "many" / f"A name that is long enough to fill the index {number:04d}").touch()
    for number in range(0, 1500, 3):
        (hard / "many" / f"A name that is long enough to fill the index {number:04d}").unlink()
    (hard / "resident").write_bytes(b"in the record itself")
    (hard / "large").write_bytes(b"".join(b"%07d\n" % n for n in range(40_000)) + b"end")
    with (hard / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(3_000_000)
        file.write(b"end")
    with (hard / "longer").open("wb") as file:  # bytes past those that were ever written
        file.write(b"x" * 5000)
        file.truncate(1_000_000)
    _shatter(hard)
    (hard / "compressed").mkdir()
    os.setxattr(hard / "compressed", "system.ntfs_attrib_be", (0x800).to_bytes(4, "big"))
    (hard / "compressed" / "file").write_bytes(b"a line that repeats\n" * 20_000)
    (hard / "Größe ✓ 名前").write_text("a name in another script\n")
    (hard / "Case").write_text("upper\n")
    (hard / "case").write_text("lower\n")
    junction = 0xA0000003.to_bytes(4, "little") + (28).to_bytes(2, "little") + bytes(2)
    target = "\\??\\C:\\Windows"[:10].encode("utf-16-le")
    junction += b"\0\0" + len(target).to_bytes(2, "little") + b"\0\0\0\0" + target
    (hard / "junction").mkdir()
    os.setxattr(hard / "junction", "system.ntfs_reparse_data", junction)
    (hard / "wof").write_bytes(b"not what it says")
    os.setxattr(
        hard / "wof",
        "system.ntfs_reparse_data",
        0x80000017.to_bytes(4, "little") + (16).to_bytes(2, "little") + bytes(18),
    )


def _shatter(hard: Path) -> None:
    """A file in so many pieces that their runs need a list of attributes: only gaps are left for it."""
    bits = [hard / f"bit{number}" for number in range(1200)]
    for bit in bits:
        bit.write_bytes(bytes(1024))
    filler = (hard / "filler").open("wb", buffering=0)
    with contextlib.suppress(OSError):
        while True:
            filler.write(bytes(1 << 16))
    with contextlib.suppress(OSError):
        while True:
            filler.write(bytes(512))
    for bit in bits[::2]:
        bit.unlink()
    with contextlib.suppress(OSError), (hard / "pieces").open("wb", buffering=0) as pieces:
        for number in range(1 << 20):
            pieces.write(b"%07d\n" % number * 64)
    filler.close()
    for path in (*bits[1::2], hard / "filler"):
        path.unlink()


def main() -> None:
    """Write the image beside this file."""
    with tempfile.TemporaryDirectory() as scratch:
        image, mount = Path(scratch, "image"), Path(scratch, "mount")
        with image.open("wb") as file:
            file.truncate(SIZE)
        subprocess.run(
            ["mkntfs", "-q", "-F", "-s", "512", "-c", "512", image], check=True, capture_output=True
        )
        mount.mkdir()
        subprocess.run(["ntfs-3g", "-o", "compression", image, mount], check=True)
        try:
            fill(mount)
        finally:
            subprocess.run(["umount", mount], check=True)
        packed = lzma.compress(image.read_bytes(), preset=9)
    Path(__file__).with_name("volume.ntfs.xz").write_bytes(packed)


if __name__ == "__main__":
    main()
