"""The reference page says what the records say."""

from pathlib import Path

from calotype.market.offer import Offer
from calotype.market.reference import reference_markdown

PAGE = Path(__file__).parents[2] / "docs/reference/marketplace.md"


def test_the_page_is_made_from_the_records() -> None:
    assert PAGE.read_text() == reference_markdown(), "write the page anew with reference_markdown()"


def test_every_key_of_the_format_is_described() -> None:
    page = reference_markdown()
    assert all(f"| `{name}` |" in page for name in Offer.__struct_fields__ if name != "keys")
