"""References to images: every form, in any case, with the caller's rights; and whatever is none."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.test_gallery import OTHER, a_definition, an_image, publish

from calotype import wire
from calotype.engine import references
from calotype.engine.community import community
from calotype.engine.gallery import galleries
from calotype.engine.marketplace import marketplace
from calotype.errors import CalotypeError, InvalidInput, NotFound
from calotype.model import Caller, Scope, Shelf, Version
from calotype.model.gallery import MAX_NUMBER

NUMBERS = st.integers(0, MAX_NUMBER)
VERSIONS = st.builds(Version, NUMBERS, NUMBERS, NUMBERS)
SUBSCRIPTION = Scope().subscription


@given(VERSIONS)
def test_a_version_is_what_it_spells(version):
    assert Version.parse(str(version)) == version
    assert references.version(str(version)) == version


@given(VERSIONS, VERSIONS)
def test_versions_compare_as_numbers(one, other):
    def as_number(version):
        return (version.major << 62) + (version.minor << 31) + version.patch

    assert (one < other) == (as_number(one) < as_number(other))
    assert (one == other) == (str(one) == str(other))


@pytest.mark.parametrize(
    "text",
    [
        *("1", "1.0", "1.0.0.0", "1.0.x", "-1.0.0", "1.0.0 ", "v1.0.0", "1..0", "01.0.0", "1.0.00"),
        *("2147483648.0.0", "99999999999.0.0", "1.0.0\n", "\u0661.0.0", "1.0.0/../x", ""),
    ],
)
def test_what_is_no_version_is_refused(text):
    with pytest.raises(InvalidInput, match="not a version"):
        references.version(text)


@pytest.fixture
def published(context):
    """Two versions in a gallery, and the images that they were made of."""
    galleries.create_gallery(context, "Gal.One")
    a_definition(context, "Gal.One", "Web-Server")
    return [publish(context, number, "Gal.One/Web-Server") for number in ("1.9.0", "1.10.0")]


GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/default/providers/Microsoft.Compute"
LATEST = [
    "Gal.One/Web-Server",
    "gal.one/WEB-SERVER/Latest",
    f"{GROUP}/galleries/Gal.One/images/Web-Server",
    f"{GROUP}/galleries/gal.one/images/web-server/versions/latest/",
    f"{GROUP}/galleries/Gal.One/images/Web-Server/versions/1.10.0".upper(),
    f"/SharedGalleries/{SUBSCRIPTION}-GAL.ONE/Images/Web-Server/Versions/latest",
    f"/sharedgalleries/{SUBSCRIPTION.upper()}-gal.one/images/web-server",
]


@pytest.mark.parametrize("text", LATEST)
def test_every_form_leads_to_the_version(context, published, text):
    assert references.find(context, text) == published[1].image
    assert references.find_version(context, text) == published[1]


@pytest.mark.parametrize("text", LATEST[:4])
def test_a_definition_has_the_same_forms(context, published, text):
    if "atest" in text:
        with pytest.raises(InvalidInput, match="names a version"):
            references.find_definition(context, text)
    else:
        assert references.find_definition(context, text).id == published[0].definition_id


@pytest.mark.parametrize(
    "text",
    [
        "gal.one",
        f"{GROUP}/galleries/GAL.ONE/",
        f"/SharedGalleries/{SUBSCRIPTION}-gal.one",
        f"{SUBSCRIPTION}-GAL.ONE",
    ],
)
def test_a_gallery_has_a_name_a_unique_name_and_an_id(context, published, text):
    found = references.find_gallery(context, text)
    assert found.name == "Gal.One"
    assert references.unique_name(found) == f"{SUBSCRIPTION}-GAL.ONE"


def test_a_version_is_found_by_its_id_until_it_is_deleted(context, published):
    version = published[0]
    assert references.find(context, version.id) == version.image
    from calotype.engine.gallery import lifecycle  # noqa: PLC0415

    lifecycle.delete(context, version.reference)
    for text in (version.id, version.reference):
        with pytest.raises(NotFound, match="was deleted"):
            references.find(context, text)
    assert references.find_version(context, version.reference, deleted=True).id == version.id
    assert references.find_version(context, version.id, deleted=True).id == version.id


def test_a_managed_image_has_a_name_and_an_id(context):
    image = an_image("web")
    context.catalog.add_image(image)
    for text in ("web", "WEB", image.id, f"{GROUP}/images/Web", f"{GROUP}/images/web/".upper()):
        assert references.find(context, text) == image


def test_azures_id_looks_in_its_own_scope_and_nowhere_else(context):
    here, there = an_image("web"), replace(an_image("web"), scope=Scope(OTHER, "Prod"))
    context.catalog.add_image(here)
    context.catalog.add_image(there)
    theirs = f"/subscriptions/{OTHER}/resourceGroups/{{}}/providers/Microsoft.Compute/images/{{}}"
    assert references.find(context, theirs.format("Prod", "web")) == there
    assert references.find(context, theirs.format("PROD", "WEB")) == there
    for group, name in (("default", "web"), ("Prod", here.id), ("Prod", "other")):
        with pytest.raises(NotFound, match="there is no image"):
            references.find(context, theirs.format(group, name))


def test_azures_id_is_followed_with_the_callers_rights(context, published):
    stranger = wire.build(home=context.home, caller=Caller("bob", Scope(OTHER)))
    try:
        for text in (*LATEST, published[0].id):
            with pytest.raises(NotFound):
                references.find(stranger, text)
    finally:
        stranger.close()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("community/pub-abc/web", ("pub-abc", "web", None)),
        ("Community/pub-abc/web/latest", ("pub-abc", "web", None)),
        ("community/pub-abc/web/1.2.3", ("pub-abc", "web", Version(1, 2, 3))),
        ("/CommunityGalleries/pub-abc/Images/web", ("pub-abc", "web", None)),
        (
            "/communitygalleries/pub-abc/images/web/versions/1.2.3",
            ("pub-abc", "web", Version(1, 2, 3)),
        ),
    ],
)
def test_the_communitys_forms_lead_there(context, monkeypatch, text, wanted):
    image = an_image(shelf=Shelf.COMMUNITY)
    found = {wanted: image}
    monkeypatch.setattr(community, "find", lambda _context, *asked: found[asked])
    assert references.find(context, text) == image
    with pytest.raises(InvalidInput):
        references.find_version(context, text)


def test_a_whole_gallery_of_the_community_is_no_image():
    assert references.public("pub-abc") == references.public("Community/pub-abc")
    with pytest.raises(InvalidInput, match="no image") as caught:
        references.public_image("pub-abc")
    assert "community/pub-abc/DEFINITION[/VERSION]" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["a:b:c", "debian:debian-12:cloud:latest", "debian12"])
def test_the_marketplaces_forms_lead_there(context, monkeypatch, text):
    image = an_image(shelf=Shelf.MARKETPLACE)
    monkeypatch.setattr(marketplace, "find", lambda _context, _text: image)
    assert references.find(context, text) == image


def test_an_image_of_ones_own_goes_before_an_alias(context, monkeypatch):
    own = an_image("debian12")
    context.catalog.add_image(own)
    monkeypatch.setattr(marketplace, "find", lambda *_: pytest.fail("the marketplace was asked"))
    assert references.find(context, "debian12") == own


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " \n",
            "a\x1b[2Jb/c",
            "x" * 1025,
            "/",
            "//",
            "a//b",
            "/a",
            "a/",
            "a/b/",
            "a/b/1.0.0/x",
        ),
        *("a/b/c", "community", "community/", "community/a", "community/a/b/1.0.0/x"),
        *("../../etc/passwd", "/etc/passwd", "a/../b", "\u202egal/web", "\udcff/web"),
        *("/subscriptions/x", f"{GROUP}/galleries/g", f"{GROUP}/galleries/g/images/"),
        *(
            f"{GROUP}/images/a/b",
            "/SharedGalleries/nodash/Images/web",
            "/SharedGalleries//Images/a",
        ),
        *(
            f"/SharedGalleries/{SUBSCRIPTION}-/Images/web",
            "/CommunityGalleries/p/Images/d/Versions",
        ),
        *(
            "'; DROP TABLE images; --",
            "%/_",
            "gal/web/999999999999.0.0",
            "::::",
            ":",
            "a:b",
            "a:b:c:d:e",
        ),
    ],
)
def test_what_is_no_reference_is_refused_in_words(context, text):
    for find in (references.find, references.find_version, references.find_definition):
        with pytest.raises((InvalidInput, NotFound)) as caught:
            find(context, text)
        assert caught.value.hint
        assert len(caught.value.message) < 600


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.text(max_size=80)
    | st.lists(
        st.sampled_from(
            [
                *("/", "images", "galleries", "versions", "latest", "1.0.0", "..", "-", ":", "\0"),
                *("subscriptions", "SharedGalleries", "CommunityGalleries", "community", GROUP),
            ]
        ),
        max_size=12,
    ).map("".join)
)
def test_no_text_breaks_it(context, text):
    with pytest.raises(CalotypeError):
        references.find(context, text)
