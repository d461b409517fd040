"""What a hostile tenant, a careless operator or a stranger tried against galleries, and how it ends."""

import pytest
from tests.shelf import ACT, new_definition, new_gallery, new_image, publish

from calotype import wire
from calotype.catalog.galleries import Galleries
from calotype.cli import run
from calotype.engine import images, roles
from calotype.engine.gallery import galleries, retention
from calotype.engine.roles import Where
from calotype.errors import InvalidInput, NotAllowed, NotFound
from calotype.model import DEFAULT_SUBSCRIPTION, Caller, Retention, Role

ARM = f"/subscriptions/{DEFAULT_SUBSCRIPTION}/resourceGroups/default/providers/Microsoft.Compute"


def test_a_version_has_the_roles_of_its_gallery_and_no_others(context):
    """One for a version alone would be good for nothing."""
    version = publish(context, new_definition(context, new_gallery(context)), "1.0.0")
    with pytest.raises(NotAllowed, match=r"'gal/web/1\.0\.0' is a version in a gallery") as refused:
        roles.assign(context, "zed", Role.CONTRIBUTOR, Where(resource=version.id))
    assert "--resource GALLERY" in (refused.value.hint or "")
    assert roles.list_all(context) == []


def test_an_image_is_deleted_by_the_id_that_azure_writes(context):
    context.catalog.add_image(new_image("web"))
    stranger = wire.build(home=context.home, caller=Caller("mallory"))
    with pytest.raises(NotFound):
        images.delete(stranger, f"{ARM}/images/web")
    stranger.close()
    assert images.delete(context, f"{ARM}/images/WEB").image.name == "web"
    assert context.catalog.list_images() == []


def test_retention_reaches_every_gallery(context, monkeypatch):
    for pages in (Galleries.list, Galleries.definitions):
        monkeypatch.setitem(pages.__kwdefaults__, "limit", 1)
    for name in ("a", "b", "c"):
        definition = new_definition(
            context, new_gallery(context, name), retention=Retention(keep=1)
        )
        for number in ("1.0.0", "2.0.0"):
            publish(context, definition, number)
    done = retention.retain(context, None)
    assert [one.definition for one in done] == ["a/web", "b/web", "c/web"]
    assert [[d.version.reference for d in one.decisions if d.goes] for one in done] == [
        [f"{name}/web/1.0.0"] for name in ("a", "b", "c")
    ]


def test_limits_that_are_too_high_are_refused_with_the_highest(context):
    new_definition(context, new_gallery(context))
    with pytest.raises(InvalidInput) as refused:
        galleries.update_definition(context, "gal/web", retention=Retention(days=10**9))
    assert refused.value.hint == "1 to 1000000"


def test_a_lun_of_many_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path))
    words = ("image", "create", "x", "--source", "/x", "--data-disk", "9" * 5000 + "=x")
    assert run([*words]) == 2
    assert "is not LUN=NAME" in capsys.readouterr().err


def test_a_resource_that_is_not_there_is_no_kind_of_its_own(context):
    """There is no command that lists all resources, so none is named."""
    with pytest.raises(NotFound) as refused:
        roles.assign(context, "zed", Role.READER, Where(resource="nope"))
    assert "resource list" not in (refused.value.hint or "")
    assert "-o json" in (refused.value.hint or "")


def test_a_definition_that_another_command_deleted_meanwhile(context):
    made = new_definition(context, new_gallery(context))
    context.catalog.galleries.delete_definition(made.id, ACT)
    acts = context.catalog.audit.head()
    for change in (
        lambda: context.catalog.galleries.delete_definition(made.id, ACT),
        lambda: context.catalog.galleries.update_definition(made, ACT),
    ):
        with pytest.raises(NotFound, match="there is no image definition"):
            change()
    assert context.catalog.audit.head() == acts


@pytest.mark.parametrize("tag", [{"k" * 600: "v"}, {"<x>": "v"}, {"k": "v" * 300}])
def test_a_version_is_tagged_with_what_it_could_be_made_with(context, tag):
    publish(context, new_definition(context, new_gallery(context)), "1.0.0")
    with pytest.raises(InvalidInput) as refused:
        images.tag(context, "gal/web/1.0.0", tag, ())
    assert refused.value.hint
