"""The reference page says what the records say."""

from pathlib import Path

from calotype.guest.reference import list_steps, reference_markdown
from calotype.guest.steps import STEPS

PAGE = Path(__file__).parents[2] / "docs/reference/generalize-steps.md"


def test_the_page_is_made_from_the_records() -> None:
    assert PAGE.read_text() == reference_markdown(), "write the page anew with reference_markdown()"


def test_every_step_is_listed_in_order() -> None:
    rows = list_steps()
    assert [row.name for row in rows] == [step.name for step in STEPS]
    assert {row.name for row in rows if not row.default} == {
        "application-secrets",
        "rhsm-unregister",
    }
    assert [row.order for row in rows] == sorted(row.order for row in rows)


def test_headings_read_well() -> None:
    for row in list_steps():
        assert row.heading[0].isupper() or row.heading.startswith(("cloud-init", "systemd"))
        assert not row.heading.endswith(".")
        assert len(row.heading) <= 100
        assert "_" not in row.name
