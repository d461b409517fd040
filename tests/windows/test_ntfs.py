"""The reader of NTFS: ntfscat is the oracle; what it must refuse, and volumes that were not left clean."""

import stat
import struct
import subprocess

import pytest
from tests.disks import BytesDisk
from tests.windows import build
from tests.windows.build import COMPLETE, GENERAL

from calotype.errors import GuestError
from calotype.guest.guest import Tree, is_dir, walk
from calotype.guest.ntfs_tree import NtfsTree
from calotype.guest.proof import prove_disk
from calotype.model import OsType, Verdict


def tree_of(content: bytes | bytearray) -> NtfsTree:
    return NtfsTree.on_disk(BytesDisk(bytes(content)), 0, len(content))


@pytest.fixture(scope="module")
def hard() -> NtfsTree:
    return tree_of(build.volume())


def test_every_file_is_what_ntfscat_says(hard):
    with build.scratch() as directory:
        image = directory / "volume"
        image.write_bytes(build.volume())
        compared = 0
        for path, found in walk(hard, "/"):
            if not found.is_file or path.startswith("/hard/many") or path in UNREADABLE:
                continue
            said = subprocess.run(["ntfscat", "-f", image, path], check=True, capture_output=True)
            assert hard.read(path) == said.stdout, path
            assert found.size == len(said.stdout)
            compared += 1
    assert compared >= 8


UNREADABLE = {
    "/hard/compressed/file": "compressed",
    "/hard/wof": "reparse point",
}


@pytest.mark.parametrize("path", UNREADABLE)
def test_what_is_kept_in_another_form_is_refused(hard, path):
    assert hard.stat(path).is_file
    with pytest.raises(GuestError, match=UNREADABLE[path]):
        hard.read(path)


def test_a_file_in_hundreds_of_pieces(hard):
    record = hard.fs.record(hard._entries(hard._find("/hard")[1])["pieces"])
    assert len([a for a in record.attributes if a.kind == 0x80]) > 1  # an attribute list
    content = hard.open("/hard/pieces")
    assert content is not None
    whole = content.read(0, content.size)
    for offset, length in ((0, 10), (511, 2), (100_000, 5000), (content.size - 3, 100)):
        assert content.read(offset, length) == whole[offset : offset + length]
    assert content.read(content.size, 10) == b""


def test_an_index_of_many_blocks(hard):
    names = hard.list("/hard/many")
    expected = [
        f"A name that is long enough to fill the index {n:04d}" for n in range(1500) if n % 3
    ]
    assert names == expected


def test_names_are_found_whatever_their_case(hard):
    as_tree: Tree = hard
    assert as_tree.real("/windows") == "/Windows"
    assert hard.real("/WINDOWS/system32/CONFIG") == "/Windows/System32/config"
    assert hard.read("/hard/GRÖSSE ✓ 名前") is None  # one character becomes two: not the same
    assert hard.read("/hard/gRÖßE ✓ 名前") == b"a name in another script\n"
    assert (hard.read("/hard/Case"), hard.read("/hard/case")) == (b"upper\n", b"lower\n")
    assert hard.read("/hard/CASE") == b"upper\n"
    for path in ("/nothing", "/Windows/nothing/more", "/Windows/../Windows", "/hard/resident/x"):
        assert hard.stat(path) is None
        assert hard.list(path) == []
        assert hard.read(path) is None
        assert hard.real(path) is None
    assert hard.read("/Windows") is None
    assert "$MFT" not in hard.list("/")


def test_a_junction_leads_nowhere(hard):
    assert stat.S_ISLNK(hard.stat("/hard/junction").mode)
    assert hard.list("/hard/junction") == []
    assert hard.stat("/hard/junction/System32") is None


def test_blank_content(hard):
    assert hard.is_blank("/hard/longer", 5000)
    assert not hard.is_blank("/hard/longer", 4999)
    assert not hard.is_blank("/hard/sparse", 5)


@pytest.mark.parametrize(
    ("sector", "cluster"), [(512, 512), (512, 4096), (512, 65536), (4096, 4096)]
)
def test_other_geometries(sector, cluster):
    data = bytes(range(256)) * 100
    with build.scratch() as directory:
        image, content = directory / "fs", directory / "content"
        with image.open("wb") as file:
            file.truncate(16 << 20)
        content.write_bytes(data)
        options = ["-s", str(sector), "-c", str(cluster)]
        subprocess.run(["mkntfs", "-q", "-F", *options, image], check=True, capture_output=True)
        for name in ("one", "two"):
            subprocess.run(["ntfscp", "-f", image, content, name], check=True, capture_output=True)
        tree = tree_of(image.read_bytes())
    assert {"one", "two"} <= {*tree.list("/")}
    assert tree.read("/TWO") == data
    assert tree.unclean() == ""


# Volumes that were not left clean


def dirty(content: bytearray) -> None:
    """Set the flag in $Volume."""
    at = build.record_offset(content, 3)
    where = content.index(struct.pack("<I", 0x70), at + 56, at + 1024)
    (value,) = struct.unpack_from("<H", content, where + 20)
    content[where + value + 10] |= 1


def open_journal(content: bytearray) -> None:
    """A journal as NTFS leaves it when the power goes: a client has it open."""
    tree = tree_of(content)
    log = tree.fs.data(tree.fs.record(2))
    at = log._runs[0].physical * tree.fs.cluster
    page = bytearray(4096)
    struct.pack_into("<4sHHQIIHHH", page, 0, b"RSTR", 30, 9, 0, 4096, 4096, 48, 1, 1)
    struct.pack_into("<QHHHH", page, 48, 1234, 1, 0xFFFF, 0, 0)
    struct.pack_into("<H", page, 30, 7)
    for stride in range(1, 9):
        page[stride * 512 - 2 : stride * 512] = struct.pack("<H", 7)
    content[at : at + 4096] = page


def close_journal(content: bytearray) -> None:
    """The same, closed."""
    open_journal(content)
    tree = tree_of(content)
    at = tree.fs.data(tree.fs.record(2))._runs[0].physical * tree.fs.cluster
    struct.pack_into("<H", content, at + 48 + 12, 0xFFFF)


@pytest.mark.parametrize(("spoil", "words"), [(dirty, "dirty"), (open_journal, "journal")])
@pytest.mark.parametrize("state", [GENERAL, COMPLETE])
def test_a_volume_that_was_not_left_clean(spoil, words, state):
    content = build.partition(build.installation(state))
    spoil(content)
    found = prove_disk(build.disk_of(content))
    # Generalizing ends with a clean shutdown, so a machine that is set up is one in any case.
    wanted = Verdict.UNKNOWN if state == GENERAL else Verdict.SPECIALIZED
    assert found.verdict is wanted
    assert any(words in reason for reason in found.reasons)
    assert found.seen.stale


def test_a_journal_that_was_closed():
    content = build.partition(build.installation(GENERAL))
    close_journal(content)
    assert prove_disk(build.disk_of(content)).verdict is Verdict.GENERALIZED


@pytest.mark.parametrize(
    ("head", "verdict"),
    [(b"hibr", Verdict.UNKNOWN), (b"HIBR", Verdict.UNKNOWN), (bytes(4), Verdict.GENERALIZED)],
)
def test_hibernated_or_shut_down_for_a_fast_start(head, verdict):
    # The last, for ntfscp keeps its hands off a volume that sleeps.
    files = {"/pagefile.sys": b"\1" * 4096, "/hiberfil.sys": head + b"\1" * 8192}
    found = prove_disk(build.disk(build.installation(GENERAL, files=files)))
    assert found.verdict is verdict
    if verdict is Verdict.UNKNOWN:
        assert "hibernated" in found.reasons[0]
        assert "shutdown /s" in found.reasons[0]


# Disks that are none, or cannot be looked into


def test_bitlocker():
    content = bytearray(build.volume())
    content[3:11] = b"-FVE-FS-"
    found = prove_disk(build.disk_of(content))
    assert found.verdict is Verdict.UNKNOWN
    assert "BitLocker" in found.reasons[0]
    assert "manage-bde" in found.reasons[0]
    assert found.seen.os_type is OsType.WINDOWS


def test_a_disk_of_data_is_no_windows():
    content = bytearray(build.volume())
    tree = tree_of(content)
    assert is_dir(tree, "/Windows/System32/config")
    # Without hives there is nothing to say; without the directory there is no Windows.
    assert prove_disk(build.disk_of(content)).verdict is Verdict.UNKNOWN
    with build.scratch() as directory:
        image = directory / "fs"
        with image.open("wb") as file:
            file.truncate(16 << 20)
        subprocess.run(["mkntfs", "-q", "-F", image], check=True, capture_output=True)
        found = prove_disk(build.disk_of(image.read_bytes()))
    assert found.verdict is Verdict.UNKNOWN
    assert found.seen.os_type is None


def test_a_broken_file_system_is_told_of():
    content = bytearray(build.partition(build.installation(GENERAL)))
    at = build.record_offset(content, 5)
    content[at + 510] ^= 1  # torn: the root directory
    found = prove_disk(build.disk_of(content))
    assert found.verdict is Verdict.UNKNOWN
    assert "in part only" in found.reasons[0]
