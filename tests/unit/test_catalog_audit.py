"""The audit: whatever is changed, put in, taken out or put elsewhere shows."""

import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update
from tests.unit.test_catalog import an_image

from calotype.catalog import Act, Catalog
from calotype.catalog.audit import GENESIS, Head, _digest, current_actor
from calotype.catalog.tables import audit
from calotype.errors import CalotypeError, Conflict, InvalidInput

DETAIL = {"reason": "ünicode \udc80", "list": [1, None, True, {"a": "b"}]}


@pytest.fixture
def catalog(tmp_path):
    catalog = Catalog(tmp_path / "catalog.db")
    yield catalog
    catalog.close()


@pytest.fixture
def filled(catalog):
    for number in range(6):
        catalog.audit.append(Act("image.force", f"image {number}", DETAIL, actor="alice (1000)"))
    return catalog


def sql(catalog, *statements):
    with sqlite3.connect(catalog._database.path) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def test_entries_come_back_newest_first(filled):
    entries = filled.audit.list(4)
    assert [entry.number for entry in entries] == [6, 5, 4, 3]
    assert [entry.number for entry in filled.audit.list(2, before=3)] == [2, 1]
    first = filled.audit.list(1, before=2)[0]
    assert first.previous == GENESIS
    assert first.actor == "alice (1000)"
    assert first.detail == {"reason": "ünicode \\udc80", "list": [1, None, True, {"a": "b"}]}
    assert filled.audit.verify() is None
    assert filled.audit.head() == Head(6, entries[0].digest)


def test_an_empty_audit_is_whole(catalog):
    assert catalog.audit.verify() is None
    assert catalog.audit.head() is None


@pytest.mark.parametrize(
    "change",
    [
        "at = datetime(at, '+1 second')",
        "at = 'yesterday'",
        "actor = 'bob (1001)'",
        "action = 'image.delete'",
        "resource = 'image 9'",
        "detail = '{}'",
        "detail = replace(detail, 'true', '1')",
        "detail = '{'",
        "previous = substr(previous, 2) || 'x'",
        "digest = substr(digest, 2) || 'x'",
    ],
)
@pytest.mark.parametrize("number", [1, 4, 6])
def test_a_changed_row_is_found(filled, change, number):
    sql(filled, f"UPDATE audit SET {change} WHERE number = {number}")
    assert filled.audit.verify().number == number


def test_a_changed_row_with_a_digest_that_fits_it_is_found_by_the_next(filled):
    with filled._read() as db:
        rows = db.execute(select(audit).where(audit.c.number == 3)).mappings().all()
    changed = {**rows[0], "actor": "nobody (65534)"}
    with filled._write() as db:
        fitting = {"actor": changed["actor"], "digest": _digest(changed)}
        db.execute(update(audit).where(audit.c.number == 3).values(**fitting))
    assert filled.audit.verify().number == 4


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_deleted_row_is_found(filled, number):
    sql(filled, f"DELETE FROM audit WHERE number = {number}")
    assert filled.audit.verify().number == number


def test_a_gap_that_is_closed_again_is_found(filled):
    sql(
        filled,
        "DELETE FROM audit WHERE number = 3",
        "UPDATE audit SET number = 3 WHERE number = 4",
        "UPDATE audit SET number = 4 WHERE number = 5",
        "UPDATE audit SET number = 5 WHERE number = 6",
    )
    assert filled.audit.verify().number == 3


def test_rows_that_change_places_are_found(filled):
    sql(
        filled,
        "UPDATE audit SET number = 99 WHERE number = 2",
        "UPDATE audit SET number = 2 WHERE number = 3",
        "UPDATE audit SET number = 3 WHERE number = 99",
    )
    assert filled.audit.verify().number == 2


def test_an_inserted_row_is_found(filled):
    sql(
        filled,
        "INSERT INTO audit SELECT 7, at, actor, action, resource, detail, previous, digest"
        " FROM audit WHERE number = 6",
    )
    assert filled.audit.verify().number == 7
    sql(
        filled, "DELETE FROM audit WHERE number = 7", "UPDATE audit SET number = 0 WHERE number = 1"
    )
    assert filled.audit.verify().number == 1


def test_what_is_cut_off_shows_against_a_noted_head(filled):
    noted = filled.audit.head()
    sql(filled, "DELETE FROM audit WHERE number > 4")
    assert filled.audit.verify() is None  # nobody could tell
    broken = filled.audit.verify(against=noted)
    assert broken.number == 5
    assert "gone" in broken.problem


def test_a_new_chain_shows_against_a_noted_head(filled):
    noted = filled.audit.head()
    sql(filled, "DELETE FROM audit")
    for _ in range(8):
        filled.audit.append(Act("image.force", "image x"))
    assert filled.audit.verify() is None
    assert filled.audit.verify(against=noted).number == 6
    assert filled.audit.verify(against=filled.audit.head()) is None


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    number=st.integers(1, 6),
    column=st.sampled_from(["at", "actor", "action", "resource", "detail", "previous", "digest"]),
    place=st.integers(0, 10_000),
    character=st.sampled_from('0aZ "é'),
)
def test_any_other_character_anywhere_is_found(filled, number, column, place, character):
    with sqlite3.connect(filled._database.path) as db:
        (before,) = db.execute(f"SELECT {column} FROM audit WHERE number = {number}").fetchone()
        place %= len(before)
        after = before[:place] + character + before[place + 1 :]
        where = f"WHERE number = {number}"
        db.execute(f"UPDATE audit SET {column} = ? {where}", (after,))
        db.commit()
        broken = filled.audit.verify()
        db.execute(f"UPDATE audit SET {column} = ? {where}", (before,))
    db.close()
    if after == before:
        assert broken is None
    elif (column, place) != ("at", 10):  # between day and time any character means the same
        assert broken is not None
        assert broken.number == number


def test_two_processes_append(tmp_path, catalog):
    program = (
        "import sys; from pathlib import Path; from calotype.catalog import Act, Catalog\n"
        "c = Catalog(Path(sys.argv[1]))\n"
        "for n in range(40): c.audit.append(Act('a', f'{sys.argv[2]} {n}'))\n"
        "c.close()\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", program, tmp_path / "catalog.db", name])
        for name in ("one", "two")
    ]
    assert [child.wait(60) for child in children] == [0, 0]
    assert catalog.audit.verify() is None
    assert catalog.audit.head().number == 80


def test_an_entry_is_there_with_what_it_records_or_not_at_all(catalog):
    image = an_image()
    catalog.add_image(image, act=Act("image.force", f"image {image.name}", {"why": "x"}))
    with pytest.raises(Conflict):
        catalog.add_image(replace(an_image(), id="other"), act=Act("image.force", "twice"))
    assert [entry.resource for entry in catalog.audit.list()] == ["image web"]
    catalog.delete_image(image.id, act=Act("image.delete", "image web"))
    assert [entry.action for entry in catalog.audit.list()] == ["image.delete", "image.force"]
    with pytest.raises(InvalidInput):
        catalog.add_image(an_image(), act=Act("image.force", "x", {"seconds": 1.5}))
    assert catalog.find_image("web") is None


def test_what_cannot_come_back_as_it_was_is_refused(catalog):
    details: list[Any] = [{"x": 1.0}, {"x": b""}, {1: "x"}, {"x": timedelta(1)}]
    for detail in details:
        with pytest.raises(InvalidInput):
            catalog.audit.append(Act("a", "b", detail))
    with pytest.raises(InvalidInput):
        catalog.audit.append(Act("", "b"))
    assert catalog.audit.head() is None


def test_a_damaged_entry_is_said_so_when_listed(filled):
    sql(filled, "UPDATE audit SET detail = '{' WHERE number = 2")
    with pytest.raises(CalotypeError, match="cannot be read"):
        filled.audit.list()


def test_who_it_was(monkeypatch):
    monkeypatch.setenv("SUDO_USER", "alice")
    monkeypatch.setenv("SUDO_UID", "1000")
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert current_actor() == "root (0), by sudo from alice (1000)"
    monkeypatch.setattr(os, "getuid", lambda: 65_000)
    assert current_actor().endswith("(65000)")
    assert "alice" not in current_actor()  # the variable is anybody's to set
