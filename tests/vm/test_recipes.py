"""A definition that names its recipe is rebuilt from Debian's packages: real builds, real boot tests."""

import os

import pytest

pytestmark = pytest.mark.vm


@pytest.fixture
def own_cache(cli, tiny, tmp_path):
    """A cache of recipes that no other test reads, with the packages that are there already."""
    packages = tmp_path / "recipes" / "packages"
    packages.mkdir(parents=True)
    for deb in (tiny.parent / "packages").glob("*.deb"):
        os.link(deb, packages / deb.name)
    cli.env["CALOTYPE_RECIPE_CACHE"] = str(tmp_path)


def test_rebuilt_and_published_once(cli, own_cache):
    cli("gallery", "create", "gal")
    triple = ("--publisher", "debian", "--offer", "debian-12", "--sku", "tiny")
    system = ("--os-type", "Linux", "--os-state", "Generalized", "--generation", "V1")
    cli("gallery", "image-definition", "create", "gal/tiny", *triple, *system, "--recipe", "tiny")
    (told,) = cli("recipe", "rebuild", "gal/tiny")
    assert (told["outcome"], told["version"]) == ("published", "gal/tiny/1.0.0")
    version = cli("gallery", "image-version", "show", "gal/tiny/latest")
    assert (version["image"]["stage"], version["image"]["verdict"]) == ("Promoted", "Generalized")
    assert cli("image", "report", "gal/tiny")["predicate"]
    # Built anew from the same packages: what differs is the day, and that is no change.
    (told,) = cli("recipe", "rebuild", "--all")
    assert (told["outcome"], told["before"]) == ("unchanged", "gal/tiny/1.0.0")
    assert len(cli("gallery", "image-version", "list", "gal/tiny")) == 1
