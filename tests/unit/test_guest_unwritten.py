"""What stands in blocks that a file was promised and never wrote."""

import os
import subprocess
from pathlib import Path

import pytest

from calotype.guest.ext4 import Ext4
from calotype.guest.offline import offline
from calotype.guest.steps import swap_files
from calotype.guest.unwritten import unwritten
from calotype.guest.wipe import wipe

CANARY = b"what was swapped out, or deleted before"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A file system with a swap file that ``fallocate`` made, and a file of many unwritten extents."""
    path, page = tmp_path / "fs", tmp_path / "page"
    page.write_bytes(b"\0" * 4086 + b"SWAPSPACE2")
    path.touch()
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", path, "32M"], check=True)
    commands = [f"write {page} swapfile", "fallocate swapfile 1 255", "sif swapfile size 1048576"]
    commands += [f"write {page} many", "sif many size 2097152"]
    commands += [f"fallocate many {n} {n}" for n in range(2, 100, 2)]
    subprocess.run(
        ["debugfs", "-w", "-f", "-", path], input="\n".join(commands), text=True, check=True
    )
    assert subprocess.run(["e2fsck", "-fn", path], check=False).returncode == 0
    fill(path)
    return path


def opened(fd: int) -> Ext4:
    return Ext4(lambda at, length: os.pread(fd, length, at), os.fstat(fd).st_size)


def fill(path: Path) -> None:
    """Write into every unwritten block, past the file system."""
    fd = os.open(path, os.O_RDWR)
    runs = list(unwritten(opened(fd)))
    for offset, length in runs:
        for at in range(offset, offset + length, 4096):
            os.pwrite(fd, CANARY, at)
    os.close(fd)
    assert sum(length for _, length in runs) == (255 + 49) * 4096


def test_a_swap_file_by_fallocate_is_blanked_where_it_lies(disk: Path) -> None:
    with offline(disk) as guest:
        assert swap_files.STEP.check(guest) == ["/swapfile holds swapped pages"]
        swap_files.STEP.perform(guest)
        assert swap_files.STEP.check(guest) == []
    assert disk.read_bytes().count(CANARY) == 49


def test_wiping_reaches_what_files_never_wrote(disk: Path) -> None:
    wiped = wipe(disk, disk, 0)
    assert wiped >= (255 + 49) * 4096
    assert CANARY not in disk.read_bytes()
    assert b"SWAPSPACE2" in disk.read_bytes()
    assert subprocess.run(["e2fsck", "-fn", disk], check=False).returncode == 0
