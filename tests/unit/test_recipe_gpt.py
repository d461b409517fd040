"""GUID partition tables."""

import io
import shutil
import struct
import subprocess
import uuid
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calotype.model import MIB
from calotype.recipe import gpt

DISK = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
SIZE = 16 * MIB


def part(number, start, length, kind=gpt.LINUX_ROOT):
    guid = uuid.uuid5(uuid.NAMESPACE_OID, str(number))
    return gpt.Partition(number=number, start=start, length=length, kind=kind, guid=guid)


def parse(disk, lba):
    """An independent reading of the header at ``lba`` and of its table."""
    header = disk[lba * 512 : lba * 512 + 92]
    assert header[:8] == b"EFI PART"
    crc = struct.unpack_from("<I", header, 16)[0]
    assert crc == zlib.crc32(header[:16] + bytes(4) + header[20:])
    here, other, first, last = struct.unpack_from("<QQQQ", header, 24)
    at, count, size, table_crc = struct.unpack_from("<QIII", header, 72)
    assert here == lba
    table = disk[at * 512 : at * 512 + count * size]
    assert table_crc == zlib.crc32(table)
    rows = {}
    for number in range(count):
        entry = table[number * size : (number + 1) * size]
        if any(entry[:16]):
            begin, end = struct.unpack_from("<QQ", entry, 32)
            kind = uuid.UUID(bytes_le=bytes(entry[:16]))
            rows[number + 1] = (kind, begin, end)
            assert first <= begin <= end <= last
    return other, rows


def written(parts, size=SIZE):
    file = io.BytesIO(bytes(size))
    gpt.write(file, size, DISK, parts)
    return file.getvalue()


def test_both_copies_tell_the_same():
    parts = [part(14, MIB, 3 * MIB, gpt.BIOS_BOOT), part(1, 4 * MIB, 11 * MIB)]
    disk = written(parts)
    other, rows = parse(disk, 1)
    assert other == SIZE // 512 - 1
    assert parse(disk, other) == (1, rows)
    assert rows == {
        1: (gpt.LINUX_ROOT, 8192, 30719),
        14: (gpt.BIOS_BOOT, 2048, 8191),
    }
    assert disk[510:512] == b"\x55\xaa"
    assert disk[450] == 0xEE


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_any_layout_reads_back(data):
    edges = data.draw(
        st.lists(st.integers(34, SIZE // 512 - 33), min_size=2, max_size=12, unique=True)
    )
    edges.sort()
    pairs = list(zip(edges[::2], edges[1::2], strict=False))
    parts = [part(n + 1, a * 512, (b - a) * 512) for n, (a, b) in enumerate(pairs)]
    _, rows = parse(written(parts), 1)
    assert [(begin, end + 1) for _, begin, end in rows.values()] == pairs


@pytest.mark.parametrize(
    "parts",
    [
        [part(1, MIB, 2 * MIB), part(2, 2 * MIB, MIB)],
        [part(1, MIB, SIZE)],
        [part(1, 0, MIB)],
        [part(1, MIB, 100)],
        [part(1, MIB, 0)],
        [part(129, MIB, MIB)],
        [part(1, MIB, MIB), part(1, 2 * MIB, MIB)],
    ],
)
def test_impossible_layouts_are_refused(parts):
    with pytest.raises(ValueError, match="partition"):
        gpt.tables(SIZE, DISK, parts)


@pytest.mark.skipif(shutil.which("sgdisk", path="/usr/sbin:/sbin") is None, reason="needs sgdisk")
def test_sgdisk_finds_no_fault(tmp_path):
    path = tmp_path / "disk.raw"
    path.write_bytes(
        written([part(14, MIB, MIB, gpt.BIOS_BOOT), part(15, 2 * MIB, MIB, gpt.EFI_SYSTEM)])
    )
    done = subprocess.run(
        ["/usr/sbin/sgdisk", "-v", path], capture_output=True, text=True, check=False
    )
    assert "No problems found" in done.stdout, done.stdout + done.stderr
