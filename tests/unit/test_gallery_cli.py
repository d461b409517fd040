"""``calotype gallery`` as people and programs use it."""

import json

import pytest
from tests.unit.test_gallery import OTHER, an_image

from calotype import wire
from calotype.cli import run
from calotype.config import Home
from calotype.model import DEFAULT_SUBSCRIPTION, Stage


@pytest.fixture
def calotype(tmp_path, monkeypatch, capsys):
    """Run a command: its status and what it printed; with ``-o json`` the values."""
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))

    def call(*words, status=0):
        assert run([str(word) for word in words]) == status, capsys.readouterr().err
        printed = capsys.readouterr()
        if status:
            return printed.err
        return json.loads(printed.out) if "json" in words else printed.out

    return call


@pytest.fixture
def gallery(calotype):
    calotype("gallery", "create", "gal", "--tags", "team=a")
    triple = ("--publisher", "contoso", "--offer", "server", "--sku", "web")
    calotype("gallery", "image-definition", "create", "gal/web", *triple, "--os-type", "Linux")


@pytest.fixture
def image(tmp_path, gallery):
    context = wire.build(home=Home(tmp_path / "home"))
    context.catalog.add_image(an_image())
    context.catalog.add_image(an_image("staged", stage=Stage.STAGED))
    context.close()


def version(number):
    return ("gallery", "image-version", "create", f"gal/web/{number}")


def test_galleries(calotype, gallery):
    shown = calotype("gallery", "show", "gal", "-o", "json")
    assert shown["uniqueName"] == f"{DEFAULT_SUBSCRIPTION}-GAL"
    assert shown["tags"] == {"team": "a"}
    calotype("gallery", "create", "other", "--soft-delete-days", "0", "--description", "x")
    listed = calotype("gallery", "list", "--top", "1", "-o", "json")
    assert [one["name"] for one in listed] == ["gal"]
    assert "other" in calotype("gallery", "list", "--after", "gal")
    changed = calotype("gallery", "update", "other", "--description", "", "-o", "json")
    assert changed["description"] is None
    calotype("gallery", "update", "other", "--tags", "a=b")
    assert calotype("gallery", "update", "other", "--tags", "", "-o", "json")["tags"] == {}
    calotype("gallery", "delete", "other")
    assert "nothing to change" in calotype("gallery", "update", "gal", status=2)
    assert "--top 0" in calotype("gallery", "list", "--top", "0", status=2)
    assert "two lists" in calotype("gallery", "list", "--shared", "--community", status=2)


def test_sharing(calotype, gallery):
    shared = calotype("gallery", "share", "gal", "--add", OTHER, "-o", "json")
    assert (shared["sharing"], shared["subscriptions"]) == ("Groups", [OTHER])
    assert "1 subscriptions" in calotype("gallery", "list")
    assert calotype("gallery", "share", "gal", "--everyone", "-o", "json")["everyone"]
    assert "everyone" in calotype("gallery", "list")
    assert calotype("gallery", "share", "gal", "--reset", "-o", "json")["sharing"] == "Private"
    assert "say with whom" in calotype("gallery", "share", "gal", status=2)
    assert "say with whom" in calotype("gallery", "share", "gal", "--reset", "--everyone", status=2)
    assert calotype("gallery", "list", "--shared", "-o", "json") == []
    assert "unique name" in calotype("gallery", "list", "--shared", "--after", "x", status=2)


def test_definitions(calotype, gallery):
    update = ("gallery", "image-definition", "update", "gal/web")
    words = (
        *("--description", "d", "--minimum-memory", "1G", "--maximum-cpu-core", "8"),
        *("--features", "SecurityType=TrustedLaunch", "--end-of-life-date", "2030-01-02"),
        *("--retain-versions", "3", "--tags", "a=b", "c=d"),
    )
    shown = calotype(*update, *words, "-o", "json")
    assert shown["memory"] == {"min": 1 << 30, "max": None}
    assert shown["vcpus"] == {"min": None, "max": 8}
    assert shown["features"] == {"SecurityType": "TrustedLaunch"}
    assert shown["endOfLife"] == "2030-01-02T00:00:00+00:00"
    assert shown["retention"] == {"keep": 3, "days": None}
    assert shown["tags"] == {"a": "b", "c": "d"}
    back = ("--description", "", "--minimum-cpu-core", "2", "--end-of-life-date", "none")
    shown = calotype(*update, *back, "--retain-versions", "0", "--tags", "", "-o", "json")
    assert shown["vcpus"] == {"min": 2, "max": 8}
    assert (shown["description"], shown["endOfLife"], shown["retention"]) == (None, None, None)
    assert shown["tags"] == {}
    assert "never changes" in calotype(*update, "--os-state", "Specialized", status=4)
    assert "nothing to change" in calotype(*update, status=2)
    assert "not a date" in calotype(*update, "--end-of-life-date", "soon", status=2)
    assert "contoso" in calotype("gallery", "image-definition", "list", "gal")
    calotype("gallery", "image-definition", "delete", "gal/web")
    assert "no image definition" in calotype(
        "gallery", "image-definition", "show", "gal/web", status=3
    )
    create = ("gallery", "image-definition", "create")
    triple = ("--publisher", "a", "--offer", "b", "--sku", "c", "--os-type", "Linux")
    assert "not GALLERY/NAME" in calotype(*create, "web", *triple, status=2)
    half = ("--plan-publisher", "a", "--plan-name", "b")
    assert "--plan-product" in calotype(*create, "gal/x", *triple, *half, status=2)


def test_versions(calotype, image):
    calotype(*version("1.9.0"), "--image", "web")
    calotype(*version("1.10.0"), "--image", "web", "--tags", "a=b")
    assert "no: staged" in calotype(*version("2.0.0"), "--image", "staged")
    rows = calotype("gallery", "image-version", "list", "gal/web", "-o", "json")
    assert [(row["version"], row["latest"]) for row in rows] == [
        ("2.0.0", False),
        ("1.10.0", True),
        ("1.9.0", False),
    ]
    assert rows[1]["image"]["tags"] == {"a": "b"}
    page = ("gallery", "image-version", "list", "gal/web", "--top", "1", "--after", "1.10.0")
    assert [row["version"] for row in calotype(*page, "-o", "json")] == ["1.9.0"]
    shown = calotype("gallery", "image-version", "show", "gal/web", "-o", "json")
    assert (shown["reference"], shown["version"]) == ("gal/web/1.10.0", "1.10.0")
    table = calotype("gallery", "image-version", "list", "gal/web")
    assert table.splitlines()[2].split()[:3] == ["1.10.0", "latest", "Active"]
    assert "gal/web/1.10.0" in calotype("image", "show", "gal/web/1.10.0")
    assert calotype("image", "list", "-o", "json", "--query", "[].name") == ["staged", "web"]
    assert "image-version delete" in calotype("image", "delete", "gal/web", status=4)


def test_a_version_is_changed(calotype, image):
    calotype(*version("1.0.0"), "--image", "web", "--exclude-from-latest")
    update = ("gallery", "image-version", "update", "gal/web/1.0.0")
    shown = calotype(
        *update, "--no-exclude-from-latest", "--end-of-life-date", "2030-01-01", "-o", "json"
    )
    assert (shown["excludeFromLatest"], shown["latest"]) == (False, True)
    assert shown["endOfLife"][:10] == "2030-01-01"
    calotype(*update, "--block-deletion-before-end-of-life")
    assert "not before its end of life" in calotype(
        "gallery", "image-version", "show", "gal/web/1.0.0"
    )
    assert "end of life" in calotype(*update, "--end-of-life-date", "none", status=2)
    shown = calotype(*update, "--excluded-regions", "local", "-o", "json")
    assert (shown["excludedRegions"], shown["latest"]) == (["local"], False)
    assert calotype(*update, "--excluded-regions", "", "-o", "json")["excludedRegions"] == []
    assert "nothing to change" in calotype(*update, status=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say what the version is made of"),
        (("--image", "web", "--vm", "x"), "one of --image"),
        (("--image", "web", "--generalize"), "--generalize says nothing of --image"),
        (("--image", "web", "--force"), "--force says nothing of --image"),
        (("--vm", "x", "--data-disk", "0=a"), "--data-disk says nothing of --vm"),
        (("--disk", "x", "--checksum", "0" * 64), "--checksum says nothing of --disk"),
        (("--vm", "x", "--enable", "swap"), "are for --generalize"),
        (("--disk", "x", "--data-disk", "0=a", "0=b"), "two data disks have LUN 0"),
        (("--disk", "x", "--data-disk", "64=a"), "LUN=NAME"),
        (("--vhd", "x", "--checksum", "1"), "not a SHA-256"),
        (("--image", "web", "--target-regions", "nowhere"), "no region 'nowhere'"),
        (("--image", "web", "--excluded-regions", "nowhere"), "no region 'nowhere'"),
        (("--image", "web", "--block-deletion-before-end-of-life"), "end of life"),
    ],
)
def test_what_a_version_is_not_made_of(calotype, image, words, said):
    assert said in calotype(*version("1.0.0"), *words, status=2)
    assert calotype("gallery", "image-version", "list", "gal/web", "-o", "json") == []
