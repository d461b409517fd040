"""JSON from strangers: one meaning, bounded; and nothing deep reaches a parser."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype.errors import InvalidInput
from calotype.market.catalogue import parse_catalogue
from calotype.strict import canonical, read_json, require_shallow


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a":1,"a":1}', "twice"),
        ('{"a":{"b":1,"\\u0062":2}}', "twice"),
        ("1.5", "whole"),
        ("1e9", "whole"),
        ("NaN", "whole"),
        ("-Infinity", "whole"),
        ("1" * 5000, "too long"),
        ("[" * 100_000, "nested"),
        ("[" * 40 + "]" * 40, "nested"),
        ('"\\ud800"', "not JSON"),
        ('{"\\udc00":1}', "not JSON"),
        ("\ufeff{}", "not JSON"),
        ("{} {}", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_json_with_two_meanings_is_refused(text, why):
    with pytest.raises(InvalidInput, match=why):
        read_json(text.encode(), limit=1 << 20, what="it")


def test_what_is_deep_never_reaches_a_parser(monkeypatch):
    """At the depth of a RecursionError finalizers fail too, whosever they are."""
    monkeypatch.setattr("calotype.strict.json.loads", pytest.fail)
    monkeypatch.setattr("calotype.market.catalogue.tomllib.loads", pytest.fail)
    with pytest.raises(InvalidInput, match="nested"):
        read_json(b'{"a":[' * 1000, limit=1 << 20, what="it")
    with pytest.raises(InvalidInput, match="nested"):
        parse_catalogue("a = " + "[" * 5000)


@pytest.mark.parametrize(
    "text",
    [
        r'["[[[[", "\\"]',
        r'{"\\\"{": "]\""}',
        '"a text without an end [[[[',
        '"\\',
    ],
)
def test_brackets_in_texts_of_json_nest_nothing(text):
    require_shallow(text.encode(), "it")


@pytest.mark.parametrize(
    "text",
    [
        'a = "[["',
        r'a = "\"[["',
        "a = '[\\'",
        'a = """[\n"" [ \\""" [""""\nb = []',
        "a = '''[\n'' [''''\nb = []",
        "# it's [[[[\n[a.b]\nc = [] # ]",
        "[[offers]]\na = {b = [[]]}",
    ],
)
def test_brackets_in_texts_of_toml_nest_nothing(text):
    tomllib.loads(text)
    require_shallow(text.encode(), "it", toml=True)


def test_json_is_bounded_and_utf8():
    with pytest.raises(InvalidInput, match="larger"):
        read_json(b" " * 101, limit=100, what="it")
    with pytest.raises(InvalidInput, match="UTF-8"):
        read_json(b'"\xff"', limit=100, what="it")


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 60), 1 << 60) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(value=plain)
def test_the_one_spelling_says_the_same(value):
    assert read_json(canonical(value), limit=1 << 20, what="it") == value
