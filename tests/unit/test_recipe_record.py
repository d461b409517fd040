"""Recipes as records."""

import re

import pytest

from calotype.errors import InvalidInput, NotFound
from calotype.model import Generation
from calotype.recipe import load, recipes, record

TABLE = {
    "description": "d",
    "suite": "bookworm",
    "method": "install",
    "packages": ["a"],
    "layout": {"size_mib": 64, "esp_mib": 4, "label": "root"},
    "boot": {"cmdline": "ro"},
}


def test_the_recipes_that_ship():
    assert {
        "tiny",
        "debian-minimal",
        "debian-12",
        "debian-postgresql",
        "debian-nginx",
        "debian-dev",
    } == {recipe.name for recipe in recipes()}
    for recipe in recipes():
        assert recipe.description
        assert recipe.generations == (Generation.V1, Generation.V2)
        assert all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", package) for package in recipe.packages)
        assert len(set(recipe.packages)) == len(recipe.packages)
        assert re.fullmatch(r"[a-z0-9-]+", recipe.name)
    assert load("debian") is load("debian-12")


def test_an_unknown_recipe():
    with pytest.raises(NotFound) as caught:
        load("windows")
    assert "tiny" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "change",
    [
        {"method": "guess"},
        {"packages": None},
        {"suite": None},
        {"colour": "red"},
        {"method": "unpack"},
        {"layout": {"size_mib": 64}},
    ],
)
def test_bad_records_are_refused(change):
    table = {key: value for key, value in {**TABLE, **change}.items() if value is not None}
    with pytest.raises(InvalidInput, match="recipe x"):
        record.parse("x", table)


def test_extending():
    above = {"packages": ["a", "b"], "layout": {"size_mib": 128}, "description": "e"}
    recipe = record.parse("x", record.merge(TABLE, above))
    assert recipe.packages == ("a", "b")
    assert recipe.layout.size == 128 << 20
    assert recipe.layout.label == "root"
    assert recipe.description == "e"


def test_digest_speaks_of_files_and_code(tmp_path, monkeypatch):
    data = tmp_path / "data"
    (data / "one/files/etc").mkdir(parents=True)
    (data / "one/recipe.toml").write_text("x")
    (tmp_path / "code.py").write_text("pass")
    monkeypatch.setattr(record, "_ROOM", tmp_path)
    monkeypatch.setattr(record, "_DATA", data)
    recipe = record.parse("one", TABLE)
    seen = {recipe.digest()}
    for path in (data / "one/recipe.toml", data / "one/files/etc/new", tmp_path / "code.py"):
        path.write_text("changed")
        seen.add(recipe.digest())
    assert len(seen) == 4
    assert recipe.digest() in seen
