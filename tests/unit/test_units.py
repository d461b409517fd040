from datetime import timedelta

import pytest

from calotype import units
from calotype.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90s", 90), ("15m", 900), (" 36H ", 129600), ("7d", 604800), ("2w", 1209600)],
)
def test_durations(text, seconds):
    assert units.duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "-1h", "1.5h", "h", "9999999w", "\uff11h", "1 y"])
def test_what_is_no_duration(text):
    with pytest.raises(InvalidInput):
        units.duration(text)


@pytest.mark.parametrize(("text", "part"), [("10%", 0.1), ("0.5 %", 0.005), ("100%", 1.0)])
def test_shares(text, part):
    assert units.share(text) == pytest.approx(part)


@pytest.mark.parametrize("text", ["", "0%", "101%", "10", "-5%", "nan%"])
def test_what_is_no_share(text):
    with pytest.raises(InvalidInput):
        units.share(text)
