"""The leak table's own sums: what the search finds, and what the report says of it."""

import base64
import os
import subprocess

import pytest
from bench.leaks import report
from bench.leaks.boots import judge
from bench.leaks.canaries import Group, Taken, filled, planted, word
from bench.leaks.picture import picture
from bench.leaks.plan import DEEDS, FILES, NAMES, TAKEN
from bench.leaks.search import forms, search, whereabouts
from bench.leaks.used import extract
from hypothesis import given
from hypothesis import strategies as st

WORD = b"a-canary-of-24-letters-x"


def disk(path, *pieces, size=8 << 20):
    """A sparse file with bytes at offsets."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, content in pieces:
            file.seek(offset)
            file.write(content)
    return path


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4095, (1 << 20) + 5, (8 << 20) - 24])
def test_a_string_is_found_wherever_it_stands(tmp_path, offset):
    (hit,) = search(disk(tmp_path / "d", (offset, WORD)), {"one": [WORD]})
    assert (hit.name, hit.form, hit.offset) == ("one", "plain", offset)


def test_a_string_across_two_parts_of_the_search_is_found(tmp_path):
    at = (16 << 20) - 7
    path = disk(tmp_path / "d", (at - 4096, b"x" * 8192), (at, WORD), size=32 << 20)
    assert [hit.offset for hit in search(path, {"one": [WORD]})] == [at]


@given(
    before=st.binary(max_size=9),
    after=st.binary(max_size=9),
    needle=st.binary(min_size=16, max_size=40),
)
def test_base64_text_around_a_string_holds_one_of_its_forms(before, after, needle):
    text = base64.b64encode(before + needle + after)
    assert any(form in text for form in forms(needle).values())


def test_utf_16_and_many_strings_at_once(tmp_path):
    needles = {str(n): [word(str(n)).encode()] for n in range(300)}
    wide = word("7").encode("utf-16-le")
    pieces = [(4096 * (n + 1), word(str(n)).encode()) for n in range(0, 300, 50)]
    path = disk(tmp_path / "d", *pieces, (5 << 20, wide))
    found = search(path, needles)
    assert [hit.name for hit in found] == ["0", "50", "100", "150", "200", "250", "7"]
    assert found[-1].form == "UTF-16"


def test_what_is_not_there_is_not_found_and_a_short_string_is_refused(tmp_path):
    path = disk(tmp_path / "d", (0, os.urandom(1 << 20)), (1 << 21, WORD[:-1]))
    assert search(path, {"one": [WORD]}) == []
    with pytest.raises(ValueError, match="too short"):
        search(path, {"one": [b"abcdef"]})


def test_a_hit_is_told_by_what_holds_it(tmp_path):
    tree, path = tmp_path / "tree", tmp_path / "fs"
    tree.mkdir()
    (tree / "kept").write_bytes(WORD)
    path.touch()
    make = ["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", tree, path, "8M"]
    subprocess.run(make, check=True)
    with path.open("r+b") as file:
        file.seek(6 << 20)
        file.write(WORD)
    offsets = [hit.offset for hit in search(path, {"one": [WORD]})]
    assert list(whereabouts(path, 0, offsets).values()) == ["/kept", "<free>"]


def test_what_a_guest_made_is_taken_as_bytes():
    machine_id = "0123456789abcdef" * 2
    taken = Taken("machine-id", Group.MACHINE, "/etc/machine-id", rb"[0-9a-f]{32}", "hex")
    found = list(extract(f"{machine_id}\n".encode(), taken))
    assert found == [machine_id.encode(), bytes.fromhex(machine_id)]
    seed = Taken("random seed", Group.MACHINE, "/seed")
    assert list(extract(bytes(range(100)), seed)) == [bytes(range(34, 66))]
    with pytest.raises(SystemExit):
        extract(b"nothing", taken)


def test_the_plan_has_the_canaries_that_it_promises():
    canaries = [*NAMES, *map(planted, FILES), *map(planted, DEEDS)]
    names = [c.name for c in canaries] + [t.path for t in TAKEN]
    needles = [n for c in canaries for n in c.needles]
    assert len(set(names)) == len(names) >= 100
    assert len(set(needles)) == len(needles)
    assert len({c.kind for c in canaries} | {t.kind for t in TAKEN}) >= 40
    assert all(word(item.path) in filled(item) for item in FILES)


CANARIES = [
    {"kind": "journal", "group": "machine", "name": "a", "path": ""},
    {"kind": "journal", "group": "machine", "name": "b", "path": ""},
    {"kind": "homes", "group": "people", "name": "c", "path": ""},
    {"kind": "keys", "group": "site", "name": "d", "path": "/d"},
]


def tool(name, left, reported=()):
    return {
        "name": name,
        "how": name,
        "left": left,
        "reported": list(reported),
        "seconds": 1.0,
        "version": "1",
        "notes": [],
    }


def test_cells_count_canaries_and_the_sites_own_are_told_as_reported():
    theirs, ours = (
        tool("other", {"a": ["<free>"], "c": ["/home"]}),
        tool("ours", {"d": ["/d"]}, ["/d"]),
    )
    lines = report.table(CANARIES, [theirs, ours])
    assert "| journal | 2 | 1 (0) | 0 |" in lines
    assert "| homes | 1 | 1 (1) | 0 |" in lines
    assert "| keys | 1 | 0 | 1 (1 reported) |" in lines
    assert report.leftovers(theirs, CANARIES) == ["- a: `<free>`", "- c: `/home`"]
    assert report.leftovers(ours, CANARIES) == []


def test_the_picture_shows_what_is_left_without_the_sites_own():
    drawn = picture(CANARIES, [tool("a <tool>", {"a": ["<free>"], "c": ["/home"], "d": ["/d"]})])
    assert "of 3 canaries" in drawn
    assert "2 (1 in files)" in drawn
    assert "a &lt;tool&gt;" in drawn


def test_the_report_says_when_a_target_is_missed_and_when_the_machine_was_busy():
    rows = [
        {"what": "ours", "median": 10.0, "all": [10.0]},
        {"what": "vs", "median": 20.0, "all": [20.0]},
    ]
    text = "\n".join(report.times_table({"rows": rows, "load": 3.0, "quiet": False}))
    assert "2.0 times" in text
    assert "missed" in text
    assert "not quiet" in text
    rows[1]["median"] = 60.0
    text = "\n".join(report.times_table({"rows": rows, "load": 0.1, "quiet": True}))
    assert "holds" in text
    assert "not quiet" not in text


def test_a_first_start_is_judged_by_what_the_machine_was_before():
    before = {"machine_id": ["1" * 32], "host_key": ["k1", "k2"]}
    good = {
        "host_name": ["beta-db02"],
        "machine_id": ["2" * 32],
        "host_key": ["k3"],
        "person": ["carol"],
    }
    assert judge(good, before) == {
        "host_name": True,
        "machine_id": True,
        "host_keys": True,
        "strangers": [],
        "failed": [],
    }
    same = {
        **good,
        "machine_id": ["1" * 32],
        "host_key": ["k3", "k1"],
        "person": ["alice", "carol"],
    }
    found = judge(same, before)
    assert (found["machine_id"], found["host_keys"], found["strangers"]) == (
        False,
        False,
        ["alice"],
    )
