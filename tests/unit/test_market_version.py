"""Publishers' versions become three numbers, and no two become one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype.market.version import Scheme, scheme_of
from calotype.model import Version

READ = {
    (Scheme.DATE, "20240101"): (20240101, 0, 0),
    (Scheme.DATE, "20240101.1"): (20240101, 1, 0),
    (Scheme.DATE_TIME, "20240101_07:42"): (20240101, 742, 0),
    (Scheme.DATE_TIME, "20240101_00:05"): (20240101, 5, 0),
    (Scheme.DATE_BUILD, "20231210-1591"): (20231210, 1591, 0),
    (Scheme.RELEASE_DATE, "9.5-20241120"): (9, 5, 20241120),
    (Scheme.RELEASE_DATE_RESPIN, "9.5-20241118.0"): (9, 5, 202411180),
    (Scheme.RELEASE_COMPOSE, "41-1.4"): (41, 1, 4),
    (Scheme.RELEASE_REVISION, "3.21.2-r0"): (3, 21, 200),
    (Scheme.RELEASE_REVISION, "3.21.10-r1"): (3, 21, 1001),
    (Scheme.TWO_NUMBERS, "14.2"): (14, 2, 0),
    (Scheme.THREE_NUMBERS, "1.2.3"): (1, 2, 3),
}

REFUSED = [
    (Scheme.DATE, "20240101.0"),  # would be 20240101
    (Scheme.DATE, "20240101.01"),
    (Scheme.DATE, "2024010"),
    (Scheme.DATE, "99999999"),
    (Scheme.DATE_BUILD, "20231210-01591"),
    (Scheme.DATE_BUILD, "20231210"),
    (Scheme.DATE_TIME, "20240101_7:42"),
    (Scheme.RELEASE_DATE, "9.5-20241120.0"),
    (Scheme.RELEASE_DATE_RESPIN, "9.5-20241118.10"),
    (Scheme.RELEASE_DATE_RESPIN, "9.5-20241118"),
    (Scheme.RELEASE_REVISION, "3.21.2-r100"),
    (Scheme.RELEASE_REVISION, "3.21.2"),
    (Scheme.TWO_NUMBERS, "14.02"),
    (Scheme.TWO_NUMBERS, "14.2.0"),
    (Scheme.THREE_NUMBERS, "1.2.3\n"),
    (Scheme.THREE_NUMBERS, "\u0661.2.3"),
]


@pytest.mark.parametrize(("given", "numbers"), READ.items())
def test_known_versions(given, numbers):
    scheme, text = given
    assert scheme.read(text) == numbers


@pytest.mark.parametrize(("scheme", "text"), REFUSED)
def test_other_shapes_are_no_versions(scheme, text):
    assert scheme.read(text) is None


@pytest.mark.parametrize("scheme", Scheme)
def test_every_scheme_reads_its_own_example(scheme):
    text, _rule = scheme.example
    assert scheme.read(text) is not None
    assert scheme_of(text) is scheme


def spelled(scheme):
    whole = scheme.pattern if scheme.revision is None else f"{scheme.pattern}-{scheme.revision}"
    return st.from_regex(whole, fullmatch=True)


@given(st.sampled_from(Scheme).flatmap(lambda s: st.tuples(st.just(s), spelled(s), spelled(s))))
def test_two_versions_never_become_one(drawn):
    scheme, one, other = drawn
    first, second = scheme.read(one), scheme.read(other)
    assert first is not None
    assert second is not None
    assert Version.parse(str(first)) == first  # within 32 bits
    assert (first == second) == (one == other)


@pytest.mark.parametrize(
    ("scheme", "rising"),
    [
        (Scheme.DATE, ["20231231.9", "20240101", "20240101.1", "20240101.10", "20240102"]),
        (Scheme.DATE_TIME, ["20240101_07:42", "20240101_13:00", "20240102_00:00"]),
        (Scheme.DATE_BUILD, ["20231210-999", "20231210-1591", "20240102-4"]),
        (Scheme.RELEASE_DATE, ["9.5-20241120", "9.5-20250101", "9.10-20240101"]),
        (Scheme.RELEASE_DATE_RESPIN, ["9.5-20241118.0", "9.5-20241118.2", "9.6-20240101.0"]),
        (Scheme.RELEASE_REVISION, ["3.21.2-r0", "3.21.2-r12", "3.21.3-r0", "3.21.10-r0"]),
        (Scheme.RELEASE_COMPOSE, ["41-1.4", "41-1.10", "42-1.1"]),
    ],
)
def test_later_versions_are_larger(scheme, rising):
    numbers = [scheme.read(text) for text in rising]
    assert numbers == sorted(numbers)


@given(st.text(max_size=40))
def test_any_text_is_read_or_not(text):
    for scheme in Scheme:
        scheme.read(text)
    scheme_of(text)
