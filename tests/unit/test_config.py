import pytest

from calotype.config import SETTINGS, Settings
from calotype.errors import InvalidInput


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for setting in SETTINGS:
        monkeypatch.delenv(setting.environment, raising=False)


def written(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_no_file_is_all_defaults(tmp_path):
    settings = Settings.load(tmp_path / "config.toml")
    assert settings.values["store.url"] == ""
    assert settings.values["store.cache"] == 10 << 30
    assert set(settings.values) == {setting.key for setting in SETTINGS}
    assert not settings.stores


def test_the_file_and_the_environment_that_wins(tmp_path, monkeypatch):
    path = written(
        tmp_path,
        '[store]\nurl = "s3://b/p"\ncache = "1G"\n[stores]\ncellar = "/mnt/cellar"\n',
    )
    monkeypatch.setenv("CALOTYPE_STORE_CACHE", "2G")
    settings = Settings.load(path)
    assert settings.values["store.url"] == "s3://b/p"
    assert settings.values["store.cache"] == 2 << 30
    assert settings.store("cellar") == "/mnt/cellar"
    assert settings.store("/elsewhere") == "/elsewhere"


def test_a_number_may_stand_bare(tmp_path):
    path = written(tmp_path, "[store]\ncache = 4096\n")
    assert Settings.load(path).values["store.cache"] == 4096


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[store]\nurll = 'x'\n", "store.urll"),
        ("[stor\n", "not TOML"),
        ("store = 1\n", "'store'"),
        ("[store]\nurl = true\n", "neither"),
        ("[store]\ncache = 'much'\n", "not a size"),
        ("\ufeff\x00", "not TOML"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, said):
    with pytest.raises(InvalidInput, match=said):
        Settings.load(written(tmp_path, text))


def test_the_cure_names_the_nearest_key(tmp_path):
    with pytest.raises(InvalidInput) as caught:
        Settings.load(written(tmp_path, "[store]\ncach = 1\n"))
    assert "store.cache" in (caught.value.hint or "")
