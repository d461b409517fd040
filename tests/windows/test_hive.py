"""Hives and their transaction logs; hivex is the oracle, and the registry editor's format its language."""

import subprocess
from itertools import pairwise

import pytest
from tests.windows import build
from tests.windows.build import COMPLETE, CONFIG, GENERAL
from tests.windows.registry import PAGE, change, entry, hive, log

from calotype.errors import GuestError
from calotype.guest.hive import Hive
from calotype.guest.hive_log import marvin32
from calotype.guest.proof import prove_disk
from calotype.model import Verdict


def opened(raw: bytes, *logs: bytes) -> Hive:
    return Hive(lambda at, length: raw[at : at + length], len(raw), logs)


def names(found: Hive, path: str) -> list[str]:
    key = found.key(path)
    return [] if key is None else key.names()


def test_values_of_every_kind():
    raw = hive({r"A\B": {"n": 7, "t": "text", "m": ["one", "two"], "b": b"\1\2\3\4\5", "": "own"}})
    found = opened(raw)
    key = found.key(r"a\b")
    assert key is not None
    assert {v.name: (v.number, v.text, v.texts) for v in key.values()} == {
        "n": (7, "", ()),
        "t": (None, "text", ("text",)),
        "m": (None, "", ("one", "two")),
        "b": (None, "", ()),
        "": (None, "own", ("own",)),
    }
    assert found.get(r"A\B", "B") is not None
    assert found.number(r"A\B", "N") == 7
    assert found.text(r"A\B", "") == "own"
    assert found.text(r"A\nothing", "x") == ""
    assert found.number(r"A\B", "t") is None
    assert found.root.names() == ["A"]


def test_a_value_in_segments_and_a_list_of_lists():
    big = bytes(range(256)) * 200  # more than three cells
    many = {rf"Many\Key {n:04d}": {"n": n} for n in range(1200)}
    found = opened(hive({"Big": {"data": big}, **many}))
    value = found.get("Big", "data")
    assert value is not None
    assert value.data == big
    assert len(names(found, "Many")) == 1200
    assert found.number(r"many\KEY 0777", "n") == 777


def test_hivex_writes_and_reads_the_same(tmp_path):
    """Both ways: hivex reads what our tests write, and we read what hivex writes."""
    path = tmp_path / "hive"
    path.write_bytes(hive({r"Setup\Status": {"State": 7}, r"Other": {"Name": "x"}}))
    prefix = ["--prefix", r"HKEY_LOCAL_MACHINE\SYSTEM"]
    word = "häßlich ✓\0".encode("utf-16-le")
    text = (
        "Windows Registry Editor Version 5.00\n\n"
        "[HKEY_LOCAL_MACHINE\\SYSTEM\\Setup\\Status]\n"
        f'"Text"=hex(1):{word.hex(",")}\n"State"=dword:00000009\n"Raw"=hex:01,02,03\n\n'
        + "".join(f"[HKEY_LOCAL_MACHINE\\SYSTEM\\Setup\\k{n}]\n\n" for n in range(60))
    )
    merged = ["hivexregedit", "--merge", *prefix, path]
    subprocess.run(merged, input=text.encode(), check=True)
    found = opened(path.read_bytes())
    assert found.stale == ""
    assert found.text(r"Setup\Status", "Text") == "häßlich ✓"
    assert found.number(r"Setup\Status", "State") == 9
    raw = found.get(r"Setup\Status", "Raw")
    assert raw is not None
    assert raw.data == b"\1\2\3"
    assert len(names(found, "Setup")) == 61
    assert found.text("Other", "Name") == "x"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0x30ED35C100CD3C7D),
        (b"\xaf", 0x48E73FC77D75DDC1),
        (b"\xe7\x0f", 0xB5F6E1FC485DBFF8),
        (b"\x37\xf4\x95", 0xF0B07C789B8CF7E8),
        (b"\x86\x42\xdc\x59", 0x7008F2E87E9CF556),
        (b"\x15\x3f\xb7\x98\x26", 0xE6C08C6DA2AFA997),
        (b"\x09\x32\xe6\x24\x6c\x47", 0x6F04BF1A5EA24060),
        (b"\xab\x42\x7e\xa8\xd1\x0f\xc7", 0xE11847E4F0678C41),
    ],
)
def test_the_hash_of_logs(data, expected):
    """The published test vectors of Marvin32."""
    assert marvin32(data, 0x004FB61A001BDBCC) == expected


# Transaction logs


def states(*values: str) -> list[bytes]:
    """Hives of one size that differ in one value."""
    return [hive({"Setup": {"ImageState": value}}, first=8, second=5) for value in values]


def entries(hives: list[bytes], first: int) -> list[bytes]:
    bins = len(hives[0]) - PAGE
    pairs = pairwise(hives)
    return [entry(first + n, bins, change(a, b)) for n, (a, b) in enumerate(pairs)]


def test_logs_are_applied_in_order():
    hives = states("AAA", "BBB", "CCC", "DDD")
    changes = entries(hives, 5)
    size = len(hives[0]) - PAGE
    first, second = log(5, changes[:1], 32, size), log(6, changes[1:], 32, size)
    for logs in ((first, second), (second, first)):
        found = opened(hives[0], *logs)
        assert found.text("Setup", "ImageState") == "DDD"
        assert (found.recovered, found.stale) == (3, "")


def test_a_gap_ends_the_recovery():
    hives = states("AAA", "BBB", "CCC", "DDD")
    changes = entries(hives, 5)
    size = len(hives[0]) - PAGE
    found = opened(hives[0], log(5, [changes[0], changes[2]], 32, size))
    assert (found.text("Setup", "ImageState"), found.recovered) == ("BBB", 1)


def test_a_torn_entry_ends_the_recovery():
    hives = states("AAA", "BBB", "CCC")
    changes = entries(hives, 5)
    torn = bytearray(changes[1])
    torn[-1] ^= 1
    found = opened(hives[0], log(5, [changes[0], bytes(torn)], 32, len(hives[0]) - PAGE))
    assert (found.text("Setup", "ImageState"), found.recovered) == ("BBB", 1)


def test_old_entries_are_not_applied():
    hives = states("AAA", "OLD")
    found = opened(hives[0], log(3, entries(hives, 3), 32, len(hives[0]) - PAGE))
    assert (found.text("Setup", "ImageState"), found.recovered) == ("AAA", 0)
    assert "transaction log" in found.stale


def test_a_clean_hive_needs_no_logs():
    old, new = hive({"Setup": {"ImageState": "AAA"}}), hive({"Setup": {"ImageState": "BBB"}})
    found = opened(old, log(1, [entry(1, len(old) - PAGE, change(old, new))], 32, len(old) - PAGE))
    assert (found.text("Setup", "ImageState"), found.recovered) == ("AAA", 0)


@pytest.mark.parametrize("with_log", [True, False])
def test_a_state_that_only_the_log_knows(with_log):
    """The hive on the disk still says that the machine is set up; its log, that it was generalized."""
    before = hive(build.software(COMPLETE), first=3, second=2)
    after = hive(build.software(GENERAL), first=3, second=2)
    size = max(len(before), len(after))
    assert len(before) == len(after) == size
    files = build.installation(GENERAL)
    files[f"{CONFIG}/SOFTWARE"] = before
    if with_log:
        bins = size - PAGE
        files[f"{CONFIG}/SOFTWARE.LOG1"] = log(2, [entry(2, bins, change(before, after))], 32, bins)
    found = prove_disk(build.disk(files))
    assert found.verdict is (Verdict.GENERALIZED if with_log else Verdict.UNKNOWN)
    assert any("transaction log" in text for text in (*found.notes, *found.reasons))


# What is none


@pytest.mark.parametrize("raw", [b"", b"regf", bytes(8192), b"MZ" + bytes(8192)])
def test_no_hive(raw):
    with pytest.raises(GuestError):
        opened(raw)


def test_a_missing_hive_is_told_of():
    files = build.installation(GENERAL)
    del files[f"{CONFIG}/SYSTEM"]
    found = prove_disk(build.disk(files))
    assert found.verdict is Verdict.UNKNOWN
    assert "SYSTEM is missing" in found.reasons[0]


def test_a_hive_that_bites_its_tail():
    """A list of keys that contains itself ends in an error and not in a loop."""
    raw = bytearray(hive({rf"Many\Key {n:04d}": {} for n in range(1200)}))
    at = raw.index(b"ri")
    own = at - 4 - PAGE
    raw[at + 4 : at + 8] = own.to_bytes(4, "little")
    with pytest.raises(GuestError):
        opened(bytes(raw)).key(r"Many\nothing")
