"""What mmdebstrap is asked for."""

import tarfile

import pytest

from calotype.recipe import apt, load
from calotype.recipe.install import arguments


@pytest.fixture
def no_host(monkeypatch):
    monkeypatch.setattr(apt, "fetch_options", lambda: ['Acquire::Retries "3";'])
    monkeypatch.setattr(apt, "host_sources", list)


@pytest.mark.parametrize("root", [True, False])
def test_arguments(tmp_path, no_host, root):
    recipe, target, debs = load("debian"), tmp_path / "target", tmp_path / "debs"
    argv = arguments(recipe, target, debs, tmp_path, root=root)
    assert argv[0] == "mmdebstrap"
    assert f"--format={'directory' if root else 'tar'}" in argv
    assert f"--include={','.join(recipe.packages)}" in argv
    assert '--aptopt=Acquire::Retries "3";' in argv
    assert argv[argv.index("bookworm") + 1] == str(target)
    assert all(line.startswith("deb [signed-by=") for line in argv[argv.index("bookworm") + 2 :])
    # Special hooks reach files of the builder that a subordinate user cannot.
    assert any(arg.startswith("--setup-hook=sync-in") for arg in argv) is not root
    # The host's settings for APT and dpkg do not stay in the image.
    for name in ("apt/apt.conf.d", "dpkg/dpkg.cfg.d"):
        assert f'--customize-hook=rm -f "$1"/etc/{name}/99mmdebstrap' in argv
    script = next(n for n, arg in enumerate(argv) if "sh -eu /tmp/setup0" in arg)
    assert "upload" in argv[script - 1]


def test_the_recipes_files_come_along(tmp_path, no_host):
    arguments(load("debian"), tmp_path / "t", tmp_path / "d", tmp_path, root=True)
    with tarfile.open(tmp_path / "overlay.tar") as tar:
        names = tar.getnames()
    assert "./etc/cloud/cloud.cfg.d/95_datasources.cfg" in names
    assert names.index("./etc") < names.index("./etc/cloud")
