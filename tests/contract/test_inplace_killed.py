"""Some points of the campaign ``vm generalize`` killed anywhere (tests/campaigns/inplace.py)."""

import pytest
from tests.campaigns.inplace import CASES, kill, spread

#: How many points of each command; the campaign runs all.
POINTS = {"generalize": 24, "restore": 20, "restore-point create": 6, "delete": 6}


@pytest.mark.parametrize("name", POINTS)
def test_killed_anywhere(name):
    results = kill(name, POINTS[name])
    assert [result for result in results if result.wrong] == []
    assert len(results) == POINTS[name]
    found = {result.found for result in results}
    assert {"as before", "done"} <= found, "killed only before, or only after, its commit"


def test_the_points_are_spread_evenly_and_reach_both_ends():
    assert spread(100, 4) == [1, 34, 67, 100]
    assert spread(3, 10) == [1, 2, 3]
    assert set(POINTS) <= set(CASES)
