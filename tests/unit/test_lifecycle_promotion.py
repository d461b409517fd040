"""Promotion, where something happens before or during the boot test."""

from types import SimpleNamespace

import pytest
from tests.shelf import new_definition, new_gallery, publish

from calotype.engine.boot import boottest
from calotype.engine.gallery import lifecycle
from calotype.errors import Conflict, NotAllowed
from calotype.model import Lifecycle, Stage


@pytest.fixture
def staged(context):
    """A version that nobody has tested."""
    web = new_definition(context, new_gallery(context))
    return publish(context, web, "1.0.0", stage=Stage.STAGED)


def test_what_cannot_be_promoted_is_not_tested(context, staged, monkeypatch):
    monkeypatch.setattr(boottest, "boot_test", lambda *_, **_options: pytest.fail("it was tested"))
    lifecycle.turn(context, staged.reference, Lifecycle.OBSOLETE, reason="32-bit")
    with pytest.raises(NotAllowed) as refused:
        lifecycle.promote(context, staged.reference)
    assert refused.value.message == "'gal/web/1.0.0' is obsolete (32-bit)"
    assert refused.value.hint == (
        "promote a newer one, or first calotype gallery image-version activate gal/web/1.0.0"
    )


def test_what_another_test_made_staged_again_is_not_promoted(context, staged, monkeypatch):
    """The test passed, and before its word was kept another one failed."""
    passed = SimpleNamespace(passed=True, problems=())
    monkeypatch.setattr(boottest, "boot_test", lambda *_, **_options: passed)
    with pytest.raises(Conflict) as refused:
        lifecycle.promote(context, staged.reference)
    assert refused.value.message == "'gal/web/1.0.0' was made staged again by another test"
    assert refused.value.hint == "test it again"
    assert context.catalog.versions.of_image(staged.id) == staged
