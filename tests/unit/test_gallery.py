"""Galleries and image definitions: what can be made, what never changes, with whom they are shared."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calotype import wire
from calotype.catalog import Act
from calotype.engine import images, references, roles, subscriptions
from calotype.engine.gallery import galleries, lifecycle, versions
from calotype.errors import Conflict, Forbidden, InvalidInput, NotAllowed, NotFound
from calotype.model import (
    GIB,
    Architecture,
    Caller,
    Generation,
    Image,
    ImageDisk,
    Lifecycle,
    OsState,
    OsType,
    Provenance,
    PurchasePlan,
    Range,
    Recommended,
    Retention,
    Role,
    Scope,
    Sharing,
    SourceKind,
    Stage,
    Version,
)
from calotype.model.gallery import MAX_NUMBER

OTHER = "11111111-1111-4111-8111-111111111111"


def an_image(name="web", *, stage=Stage.PROMOTED, state=OsState.GENERALIZED, **fields):
    return Image(
        id=str(uuid4()),
        name=name,
        os_type=OsType.LINUX,
        os_state=state,
        os_disk=ImageDisk(index="a" * 64, size=GIB),
        generation=Generation.V2,
        stage=stage,
        provenance=Provenance(kind=SourceKind.IMAGE, source="web.raw"),
        created_at=datetime.now(UTC),
        **fields,
    )


def a_definition(context, gallery="gal", name="web", **properties):
    triple = {"publisher": "contoso", "offer": "server", "sku": name}
    wanted = {"os_type": OsType.LINUX, "os_state": OsState.GENERALIZED, **triple, **properties}
    return galleries.create_definition(context, gallery, name, **wanted)


@pytest.fixture
def gallery(context):
    galleries.create_gallery(context, "gal")
    a_definition(context)
    return context.catalog.galleries.get("gal")


def publish(context, number, definition="gal/web", **options):
    made = an_image(f"image-{number}", stage=options.pop("stage", Stage.PROMOTED))
    context.catalog.add_image(made)
    place = versions.place(context, f"{definition}/{number}", **options)
    return versions.of_image(context, place, made.name)


# -- galleries


@pytest.mark.parametrize(
    "name", ["", "-a", "a-b", "a b", ".a", "a.", "_a", "a/b", "a" * 81, "ä", "Community", "a\n"]
)
def test_what_cannot_name_a_gallery(context, name):
    with pytest.raises(InvalidInput, match="cannot name a gallery"):
        galleries.create_gallery(context, name)


@pytest.mark.parametrize("name", ["a", "A.b_c", "1" * 80])
def test_what_can_name_a_gallery(context, name):
    assert galleries.create_gallery(context, name).name == name


def test_a_gallerys_name_is_unique_in_its_subscription_whatever_its_case(context, gallery):
    with pytest.raises(Conflict, match="resource group 'default'"):
        galleries.create_gallery(context, "GAL")
    group = replace(context, caller=Caller(scope=Scope(group="other")))
    with pytest.raises(Conflict, match="resource group 'default'"):
        galleries.create_gallery(group, "gal")
    other = replace(context, caller=Caller(scope=Scope(OTHER)))
    assert galleries.create_gallery(other, "gal").scope.subscription == OTHER
    group.close()
    other.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"soft_delete_days": -1}, "-1 days"),
        ({"soft_delete_days": 366}, "366 days"),
        ({"description": "x" * 4097}, "4097 characters"),
        ({"tags": {"a/b": "c"}}, "cannot be a key"),
        ({"tags": {"": "c"}}, "cannot be a key"),
        ({"tags": {"a": "c" * 257}}, "too long"),
        ({"tags": {str(n): "" for n in range(51)}}, "51 tags"),
    ],
)
def test_what_a_gallery_cannot_have(context, gallery, options, words):
    for act in (
        lambda: galleries.create_gallery(context, "other", **options),
        lambda: galleries.update_gallery(context, "gal", **options),
    ):
        with pytest.raises(InvalidInput, match=words) as caught:
            act()
        assert caught.value.hint


def test_a_gallery_changes_in_what_is_named(context, gallery):
    changed = galleries.update_gallery(context, "gal", tags={"team": "a"}, soft_delete_days=0)
    assert changed == replace(gallery, tags={"team": "a"}, soft_delete_days=0)
    assert galleries.update_gallery(context, "gal", description="x").tags == {"team": "a"}
    assert context.catalog.galleries.get("gal").description == "x"


def test_a_gallery_goes_when_it_is_empty(context, gallery):
    with pytest.raises(Conflict, match="such as 'web'"):
        galleries.delete_gallery(context, "gal")
    publish(context, "1.0.0")
    with pytest.raises(Conflict, match="there are versions"):
        galleries.delete_definition(context, "gal/web")
    lifecycle.delete(context, "gal/web/1.0.0", force=True, purge=True)
    galleries.delete_definition(context, "gal/web")
    galleries.delete_gallery(context, "gal")
    with pytest.raises(NotFound):
        context.catalog.galleries.get("gal")
    done = [entry.action for entry in context.catalog.audit.list()]
    assert done[:2] == ["gallery.delete", "definition.delete"]


def test_galleries_come_in_pages(context):
    for name in ("b", "C", "a"):
        galleries.create_gallery(context, name)
    page = context.catalog.galleries.list(limit=2)
    assert [gallery.name for gallery in page] == ["a", "b"]
    assert [g.name for g in context.catalog.galleries.list(after=("b",))] == ["C"]


# -- sharing


def test_a_gallery_is_shared_and_reset(context, gallery):
    shared = galleries.share(context, "gal", add=[OTHER.upper()])
    assert (shared.sharing, shared.subscriptions) == (Sharing.GROUPS, (OTHER,))
    wide = galleries.share(context, "gal", remove=[OTHER], everyone=True)
    assert (wide.sharing, wide.subscriptions, wide.everyone) == (Sharing.GROUPS, (), True)
    assert galleries.share(context, "gal", everyone=False).sharing is Sharing.PRIVATE
    galleries.share(context, "gal", add=[OTHER])
    assert galleries.unshare(context, "gal") == gallery
    told = [
        e.detail["sharing"] for e in context.catalog.audit.list() if e.action == "gallery.share"
    ]
    assert told == ["Private", "Groups", "Private", "Groups", "Groups"]


def test_a_subscription_may_be_named(context, gallery):
    made = subscriptions.create(context, "team-b")
    assert galleries.share(context, "gal", add=["team-b"]).subscriptions == (made.id,)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"remove": [OTHER]}, "is not shared with"),
        ({"add": [Scope().subscription]}, "own"),
        ({"add": ["nobody"]}, "no subscription 'nobody'"),
    ],
)
def test_what_cannot_be_shared(context, gallery, options, words):
    with pytest.raises((InvalidInput, NotFound), match=words) as caught:
        galleries.share(context, "gal", **options)
    assert caught.value.hint


def test_a_public_gallery_is_not_shared_besides(context, gallery):
    context.catalog.galleries.update(replace(gallery, sharing=Sharing.COMMUNITY), Act("x", "y"))
    for act in (
        lambda: galleries.share(context, "gal", everyone=True),
        lambda: galleries.unshare(context, "gal"),
    ):
        with pytest.raises(NotAllowed, match="everybody") as caught:
            act()
        assert "community withdraw" in (caught.value.hint or "")


def test_who_it_is_shared_with_finds_it_and_nobody_else(context, gallery):
    version = publish(context, "1.0.0")
    subscription = subscriptions.create(context, "team-b").id
    there = replace(context, caller=Caller(scope=Scope(subscription)))
    roles.assign(there, "bob", Role.READER, roles.Where())
    there.close()
    bob = replace(context, caller=Caller("bob", Scope(subscription)))
    text = f"/SharedGalleries/{references.unique_name(gallery)}/Images/web"
    with pytest.raises(NotFound):
        references.find(bob, text)
    galleries.share(context, "gal", add=["team-b"])
    assert references.find(bob, text) == version.image
    assert [one.name for one in bob.catalog.galleries.list(shared=True)] == ["gal"]
    with pytest.raises(Forbidden, match="Contributor"):
        versions.of_image(bob, versions.place(bob, f"{text}/Versions/2.0.0"), text)
    with pytest.raises(Forbidden, match="Owner"):
        galleries.share(bob, gallery.id, everyone=True)
    bob.close()


# -- definitions


@pytest.mark.parametrize("name", ["", "a" * 81, "-a", "a-", "a b", "a/b", ".", "ä"])
def test_what_cannot_name_a_definition(context, gallery, name):
    with pytest.raises(InvalidInput, match="cannot name an image definition"):
        a_definition(context, name=name)


def test_a_definition_has_what_it_was_given(context, gallery):
    given = {
        "description": "d",
        "eula": "e",
        "privacy_uri": "https://x.example/p",
        "release_notes_uri": "http://x.example/r",
        "vcpus": Range(1, 8),
        "memory": Range(GIB, None),
        "features": {"SecurityType": "TrustedLaunch"},
        "plan": PurchasePlan("contoso", "server", "gold"),
        "end_of_life": datetime(2030, 1, 1, tzinfo=UTC),
        "retention": Retention(keep=3, days=30),
        "recipe": "debian-12",
        "architecture": Architecture.ARM64,
        "generation": Generation.V1,
        "tags": {"team": "a"},
    }
    made = a_definition(context, name="full", **given)
    assert context.catalog.galleries.definition("GAL", "Full") == made
    assert {name: getattr(made, name) for name in given} == given


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"publisher": "a" * 129}, "cannot be a publisher"),
        ({"offer": "a" * 65}, "cannot be an offer"),
        ({"sku": "a."}, "cannot be a SKU"),
        ({"sku": ""}, "cannot be a SKU"),
        ({"publisher": "a:b"}, "cannot be a publisher"),
        ({"plan": PurchasePlan("a", "b", "")}, "name of a plan"),
        ({"privacy_uri": "javascript:alert(1)"}, "no URL"),
        ({"privacy_uri": "http://[x"}, "no URL"),
        ({"release_notes_uri": "https://x/\x1b[2J"}, "no URL"),
        ({"eula": "x" * 4097}, "4097 characters"),
        ({"vcpus": Range(8, 1)}, "the least is 8"),
        ({"vcpus": Range(0, None)}, "0 processors"),
        ({"memory": Range(2 * GIB, GIB)}, "the most 1.0 GiB"),
        ({"retention": Retention(keep=0)}, "0 versions"),
        ({"retention": Retention(days=-1)}, "-1 days"),
        ({"recipe": "nothing"}, "no recipe 'nothing'"),
        ({"features": {"a<b": "c"}}, "cannot be a key of features"),
    ],
)
def test_what_a_definition_cannot_have(context, gallery, properties, words):
    with pytest.raises(InvalidInput, match=words) as caught:
        a_definition(context, name="other", **properties)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "triple", "words"),
    [
        ("WEB", {"sku": "x"}, "exists already"),
        ("x", {"sku": "Web", "publisher": "Contoso"}, "choose another SKU"),
    ],
)
def test_names_and_triples_are_unique_in_a_gallery(context, gallery, name, triple, words):
    with pytest.raises(Conflict) as caught:
        a_definition(context, name=name, **triple)
    assert words in f"{caught.value.message} {caught.value.hint}"
    galleries.create_gallery(context, "other")
    assert a_definition(context, "other", "web").gallery == "other"


CHANGED = {
    "publisher": "x",
    "offer": "x",
    "sku": "x",
    "os_type": OsType.WINDOWS,
    "os_state": OsState.SPECIALIZED,
    "generation": Generation.V1,
    "architecture": Architecture.ARM64,
    "plan": PurchasePlan("a", "b", "c"),
}


def test_all_that_never_changes_is_tried_below():
    assert CHANGED.keys() == galleries.IMMUTABLE.keys()


@pytest.mark.parametrize("field", CHANGED)
def test_what_never_changes_is_refused_with_the_reason_and_the_cure(context, gallery, field):
    before = context.catalog.galleries.definition("gal", "web")
    with pytest.raises(NotAllowed, match="never changes") as caught:
        galleries.update_definition(context, "gal/web", **{field: CHANGED[field]})
    assert galleries.IMMUTABLE[field] in caught.value.message
    assert "image-definition create" in (caught.value.hint or "")
    same = {field: getattr(before, field)}
    assert galleries.update_definition(context, "gal/web", **same) == before


def test_a_definition_changes_in_what_is_named(context, gallery):
    changed = galleries.update_definition(context, "gal/web", tags={"a": "b"}, description="d")
    assert (changed.tags, changed.description) == ({"a": "b"}, "d")
    changed = galleries.update_definition(context, "gal/web", description=None)
    assert (changed.tags, changed.description) == ({"a": "b"}, None)
    assert context.catalog.galleries.definition("gal", "web") == changed


def test_definitions_come_in_pages(context, gallery):
    for name in ("b", "A", "c"):
        a_definition(context, name=name)
    page = context.catalog.galleries.definitions("gal", limit=3)
    assert [one.name for one in page] == ["A", "b", "c"]
    rest = context.catalog.galleries.definitions("gal", after=page[-1].name)
    assert [one.name for one in rest] == ["web"]


# -- versions of images


def test_a_version_of_an_image_is_that_image_again(context, gallery):
    plan = PurchasePlan("contoso", "server", "gold")
    made = an_image(plan=plan, entitlement="msdn", tags={"team": "a"})
    context.catalog.add_image(made)
    version = versions.of_image(context, versions.place(context, "gal/web/1.0.0"), "web")
    assert version.reference == version.image.name == "gal/web/1.0.0"
    assert version.image.disks == made.disks
    assert (version.image.parents, version.image.provenance.image_id) == ((made.id,), made.id)
    assert (version.image.plan, version.image.entitlement) == (plan, "msdn")
    assert version.image.stage is Stage.PROMOTED
    assert references.find(context, "gal/web") == version.image
    assert context.catalog.audit.list()[0].action == "version.create"


def test_a_version_of_a_staged_image_is_staged(context, gallery):
    publish(context, "1.0.0", stage=Stage.STAGED)
    with pytest.raises(NotFound, match="is staged") as caught:
        references.find(context, "gal/web")
    assert "image-version promote gal/web/1.0.0" in (caught.value.hint or "")
    assert references.find(context, "gal/web/1.0.0").stage is Stage.STAGED


def test_a_definition_recommends_a_size_where_the_image_does_not(context, gallery):
    galleries.update_definition(context, "gal/web", vcpus=Range(2, 8), memory=Range(4 * GIB, None))
    assert publish(context, "1.0.0").image.recommended == Recommended(vcpus=2, memory=4 * GIB)
    context.catalog.add_image(an_image("big", recommended=Recommended(vcpus=16)))
    version = versions.of_image(context, versions.place(context, "gal/web/2.0.0"), "big")
    assert version.image.recommended == Recommended(vcpus=16, memory=4 * GIB)


def test_a_definition_gives_its_plan_to_its_versions(context, gallery):
    plan = PurchasePlan("contoso", "server", "gold")
    a_definition(context, name="sold", plan=plan)
    assert publish(context, "1.0.0", "gal/sold").image.plan == plan
    context.catalog.add_image(an_image("other", plan=PurchasePlan("a", "b", "c")))
    with pytest.raises(InvalidInput, match="differs from that of"):
        versions.of_image(context, versions.place(context, "gal/sold/2.0.0"), "other")


def test_a_version_of_a_version_descends_from_it(context, gallery):
    first = publish(context, "1.0.0")
    a_definition(context, name="copy")
    second = versions.of_image(context, versions.place(context, "gal/copy/1.0.0"), "gal/web")
    assert second.image.parents == (first.id,)
    assert second.image.provenance.source == "gal/web/1.0.0"


def test_what_makes_no_vms_makes_no_versions(context, gallery):
    publish(context, "1.0.0")
    lifecycle.turn(context, "gal/web/1.0.0", Lifecycle.REVOKED, reason="a back door")
    with pytest.raises(NotAllowed, match="a back door"):
        versions.of_image(context, versions.place(context, "gal/web/2.0.0"), "gal/web/1.0.0")


@pytest.mark.parametrize(
    ("image", "words", "cure"),
    [
        ({"os_type": OsType.WINDOWS}, "OS type", "--os-type Windows"),
        ({"architecture": Architecture.ARM64}, "architecture", "--architecture Arm64"),
        ({"os_state": OsState.SPECIALIZED}, "OS state", "calotype generalize other --image NAME"),
    ],
)
def test_what_a_definition_does_not_say_is_refused_early(context, gallery, image, words, cure):
    made = replace(an_image("other"), **image)
    context.catalog.add_image(made)
    with pytest.raises(InvalidInput, match=words) as caught:
        versions.of_image(context, versions.place(context, "gal/web/1.0.0"), "other")
    assert cure in (caught.value.hint or "")


def test_a_specialized_definition_takes_no_generalized_image(context, gallery):
    a_definition(context, name="one", os_state=OsState.SPECIALIZED)
    context.catalog.add_image(an_image())
    with pytest.raises(InvalidInput, match="OS state") as caught:
        versions.of_image(context, versions.place(context, "gal/one/1.0.0"), "web")
    assert "--os-state Generalized" in (caught.value.hint or "")


def test_a_number_is_used_once(context, gallery):
    publish(context, "1.0.0")
    with pytest.raises(Conflict, match="exists already"):
        versions.of_image(context, versions.place(context, "gal/web/1.0.0"), "image-1.0.0")
    publish(context, "2.0.0")
    lifecycle.delete(context, "gal/web/1.0.0")
    with pytest.raises(Conflict, match="can still come back"):
        versions.of_image(context, versions.place(context, "gal/web/1.0.0"), "image-1.0.0")


@pytest.mark.parametrize("text", ["gal/web", "gal/web/latest", "gal", "web/1", "gal/web/1.0"])
def test_a_version_to_come_needs_a_number(context, gallery, text):
    with pytest.raises((InvalidInput, NotFound)) as caught:
        versions.place(context, text)
    assert caught.value.hint


def test_a_version_is_changed_in_what_is_named(context, gallery):
    end = datetime(2030, 1, 1, tzinfo=UTC)
    before = publish(context, "1.0.0", end_of_life=end, block_deletion_before_end_of_life=True)
    after = versions.update_version(context, "gal/web", exclude_from_latest=True)
    assert after.exclude_from_latest
    assert after.end_of_life == end
    with pytest.raises(InvalidInput, match="end of life"):
        versions.update_version(context, before.reference, end_of_life=None)
    with pytest.raises(InvalidInput, match="no region 'nowhere'"):
        versions.update_version(context, before.reference, excluded_regions=("nowhere",))
    with pytest.raises(InvalidInput, match="end of life"):
        publish(context, "2.0.0", block_deletion_before_end_of_life=True)
    with pytest.raises(InvalidInput, match="no region"):
        publish(context, "3.0.0", excluded_regions=("nowhere",))


def test_a_version_is_deleted_as_a_version(context, gallery):
    version = publish(context, "1.0.0")
    for text in (version.id, "gal/web/1.0.0", "GAL/web"):
        with pytest.raises(NotAllowed, match="in a gallery") as caught:
            images.delete(context, text, force=True)
        assert caught.value.hint == "calotype gallery image-version delete gal/web/1.0.0"
    assert images.tag(context, "gal/web", {"team": "a"}, ()).tags == {"team": "a"}


def test_versions_come_in_pages(context, gallery):
    made = [publish(context, number) for number in ("1.9.0", "1.10.0", "1.2.0")]
    found = context.catalog.versions
    page = found.list(made[0].definition_id, limit=2)
    assert [str(one.version) for one in page] == ["1.10.0", "1.9.0"]
    rest = found.list(made[0].definition_id, before=page[-1].version)
    assert [str(one.version) for one in rest] == ["1.2.0"]


def together(context, acts):
    """What each act raised (or returned), all of them at once, each by a command of its own."""

    def one(act):
        own = wire.build(home=context.home)
        try:
            return act(own)
        except Conflict as error:
            return error
        finally:
            own.close()

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(one, acts))


def test_one_of_many_gets_the_number(context, gallery):
    context.catalog.add_image(an_image())

    def act(own):
        return versions.of_image(own, versions.place(own, "gal/web/1.0.0"), "web")

    done = together(context, [act] * 6)
    assert sum(not isinstance(one, Conflict) for one in done) == 1
    assert len(context.catalog.every_image()) == 2


def test_changes_at_once_are_all_kept(context, gallery):
    others = [str(uuid4()) for _ in range(6)]
    acts = [lambda own, other=other: galleries.share(own, "gal", add=[other]) for other in others]
    together(context, [*acts, lambda own: galleries.update_gallery(own, "gal", description="x")])
    found = context.catalog.galleries.get("gal")
    assert (set(found.subscriptions), found.description) == (set(others), "x")


NUMBER = st.builds(Version, *[st.sampled_from([0, 1, 9, 10, MAX_NUMBER])] * 3)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25
)
@given(
    st.dictionaries(
        NUMBER, st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=6
    )
)
def test_the_latest_is_the_highest_that_may_be_whatever_the_order(context, numbers):
    name = f"g{uuid4().hex[:12]}"
    galleries.create_gallery(context, name)
    made = a_definition(context, name)
    now = datetime.now(UTC)
    for number, (promoted, excluded, over) in numbers.items():
        place = versions.place(
            context,
            f"{name}/web/{number}",
            exclude_from_latest=excluded,
            end_of_life=now - timedelta(days=1) if over else None,
        )
        place.put(context, an_image(stage=Stage.PROMOTED if promoted else Stage.STAGED), None)
    good = [number for number, facts in numbers.items() if facts == (True, False, False)]
    if good:
        assert context.catalog.versions.latest(made.id).version == max(good)
    else:
        with pytest.raises(NotFound, match="no latest version"):
            context.catalog.versions.latest(made.id)
