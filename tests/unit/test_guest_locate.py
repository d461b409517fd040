"""Partitions, file systems by their first bytes, and where the operating system is."""

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype import run
from calotype.disk.base import Disk, Extent
from calotype.errors import GuestError
from calotype.guest import inspect
from calotype.guest.locate import BIOS_BOOT, ESP, Filesystem, find_root, recognise, survey
from calotype.model import Generation, OsType

MIB = 1 << 20


class Memory:
    """A disk in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size(self) -> int:
        return len(self.data)

    def extents(self) -> Iterator[Extent]:
        yield Extent(0, self.size, zero=False)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        assert offset >= 0
        assert offset + len(buffer) <= self.size
        buffer[:] = self.data[offset : offset + len(buffer)]

    def close(self) -> None:
        pass


def table(tmp_path: Path, *arguments: str) -> bytearray:
    path = tmp_path / "disk"
    path.write_bytes(bytes(16 * MIB))
    run.run(["sgdisk", *arguments, str(path)])
    return bytearray(path.read_bytes())


def small_root(tmp_path: Path) -> bytes:
    (tmp_path / "tree/etc").mkdir(parents=True)
    (tmp_path / "tree/usr").mkdir()
    (tmp_path / "tree/etc/os-release").write_bytes(b"ID=debian\n")
    path = tmp_path / "root"
    run.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tmp_path / "tree"), str(path), "4M"])
    return path.read_bytes()


def test_gpt(tmp_path: Path) -> None:
    data = table(
        tmp_path, "-n14:2048:4095", "-t14:EF02", "-n15:4096:8191", "-t15:EF00", "-n1:8192:16383"
    )
    root = small_root(tmp_path)
    data[4 * MIB : 4 * MIB + len(root)] = root
    disk = Memory(bytes(data))
    assert isinstance(disk, Disk)
    found = survey(disk)
    assert found.table == "gpt"
    assert [(p.number, p.offset, p.size) for p in found.partitions] == [
        (1, 4 * MIB, 4 * MIB),
        (14, MIB, MIB),
        (15, 2 * MIB, 2 * MIB),
    ]
    assert {BIOS_BOOT, ESP} <= found.kinds()
    partition, guest = find_root(disk, found)
    assert partition.number == 1
    assert guest.read("/etc/os-release") == b"ID=debian\n"
    assert inspect(disk).generations == (Generation.V1, Generation.V2)


def record(*entries: tuple[int, int, int]) -> bytes:
    """A boot record of (type, first sector, sectors)."""
    rows = b"".join(struct.pack("<B3xB3xII", 0, kind, at, count) for kind, at, count in entries)
    return bytes(446) + rows.ljust(64, b"\0") + b"\x55\xaa"


def test_mbr_with_logical_partitions() -> None:
    data = bytearray(16 * MIB)
    data[:512] = record((0x83, 2048, 2048), (5, 4096, 20000), (0x82, 26000, 1000))
    data[4096 * 512 : 4097 * 512] = record((0x83, 63, 1000), (5, 2000, 3000))
    data[6096 * 512 : 6097 * 512] = record((0x8E, 1, 500))
    found = survey(Memory(bytes(data)))
    assert found.table == "mbr"
    assert [(p.number, p.offset // 512, p.size // 512, p.kind) for p in found.partitions] == [
        (1, 2048, 2048, "83"),
        (5, 4096 + 63, 1000, "83"),
        (6, 6096 + 1, 500, "8e"),
        (3, 26000, 1000, "82"),
    ]


def test_a_whole_disk_without_a_table(tmp_path: Path) -> None:
    disk = Memory(small_root(tmp_path))
    found = survey(disk)
    assert found.table is None
    assert [p.filesystem for p in found.partitions] == [Filesystem.EXT]
    assert find_root(disk, found)[0].number == 0


SIGNS = {
    Filesystem.XFS: (0, b"XFSB"),
    Filesystem.BTRFS: (0x10040, b"_BHRfS_M"),
    Filesystem.NTFS: (3, b"NTFS    "),
    Filesystem.BITLOCKER: (3, b"-FVE-FS-"),
    Filesystem.LVM: (512, b"LABELONE"),
    Filesystem.LUKS: (0, b"LUKS\xba\xbe"),
    Filesystem.SWAP: (4086, b"SWAPSPACE2"),
    Filesystem.FAT: (82, b"FAT32   "),
}


@pytest.mark.parametrize("kind", SIGNS)
def test_what_cannot_be_looked_into_is_named(kind: Filesystem) -> None:
    data = bytearray(2 * MIB)
    at, sign = SIGNS[kind]
    data[at : at + len(sign)] = sign
    disk = Memory(bytes(data))
    assert recognise(disk, 0, disk.size) is kind
    with pytest.raises(GuestError) as caught:
        find_root(disk, survey(disk))
    found = inspect(disk)
    if kind in (Filesystem.NTFS, Filesystem.BITLOCKER):
        assert "Windows" in caught.value.message
        assert found.os_type is OsType.WINDOWS
        assert kind.value.casefold() in found.notes[0].casefold()  # the Windows reader's own reason
        return
    if kind in (Filesystem.SWAP, Filesystem.FAT):
        assert "no operating system" in caught.value.message
    else:
        assert kind.value in caught.value.message
        assert caught.value.hint
    assert found.notes == (caught.value.message,)


def test_two_systems_are_one_too_many(tmp_path: Path) -> None:
    data = table(tmp_path, "-n1:2048:10239", "-n2:10240:18431")
    root = small_root(tmp_path)
    data[MIB : MIB + len(root)] = root
    data[5 * MIB : 5 * MIB + len(root)] = root
    disk = Memory(bytes(data))
    with pytest.raises(GuestError, match=r"several partitions .*\(1, 2\)"):
        find_root(disk, survey(disk))


def test_a_loop_of_logical_partitions_ends() -> None:
    data = bytearray(MIB)
    data[:512] = record((5, 64, 1000))
    data[64 * 512 : 65 * 512] = record((0x83, 1, 1), (5, 0, 1000))
    assert len(survey(Memory(bytes(data))).partitions) == 1


@given(st.binary(min_size=512, max_size=4096), st.booleans())
def test_no_first_sectors_are_too_strange(head: bytes, signed: bool) -> None:
    data = bytearray(head.ljust(65536, b"\0"))
    if signed:
        data[510:512] = b"\x55\xaa"
    disk = Memory(bytes(data))
    for partition in survey(disk).partitions:
        assert 0 <= partition.offset < partition.offset + partition.size <= disk.size
    inspect(disk)


def test_a_damaged_system_is_never_an_error(tmp_path: Path) -> None:
    whole = small_root(tmp_path)
    used = [at for at in range(1024, len(whole), 256) if any(whole[at : at + 256])]
    for seed in range(150):
        dice = random.Random(seed)
        data = bytearray(whole)
        for _ in range(dice.randint(1, 30)):
            data[dice.choice(used) + dice.randrange(256)] = dice.choice(
                (0, 1, 255, dice.randrange(256))
            )
        found = inspect(Memory(bytes(data)))
        assert found.notes or found.os_type is OsType.LINUX
