"""Retention: the laws of its plan, and the run."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.shelf import ACT, DAY, NOW, new_definition, new_gallery, new_version, new_vm, publish

from calotype.catalog.versions import Change, Versions
from calotype.engine.gallery import lifecycle, retention
from calotype.engine.gallery import versions as publishing
from calotype.engine.gallery.galleries import delete_definition
from calotype.engine.gallery.retention import plan
from calotype.errors import InvalidInput, NotFound
from calotype.model import ImageDefinition, Lifecycle, OsState, OsType, Retention, Stage, Version

_REGIONS = ("here", "there")
_definition = ImageDefinition(
    id="d",
    gallery_id="g",
    gallery="gal",
    name="web",
    publisher="p",
    offer="o",
    sku="s",
    os_type=OsType.LINUX,
    os_state=OsState.GENERALIZED,
    created_at=NOW,
)


@st.composite
def a_version(draw, number):
    stage = draw(st.sampled_from(Stage))
    state = draw(st.sampled_from([*Lifecycle, Lifecycle.ACTIVE, Lifecycle.ACTIVE]))
    excluded = draw(st.booleans())
    ends = draw(st.sampled_from([None, None, NOW - DAY, NOW + DAY]))
    version = new_version(
        _definition,
        number,
        stage=stage,
        state=state,
        exclude_from_latest=excluded,
        end_of_life=ends,
        block_deletion_before_end_of_life=draw(st.booleans()) and ends is not None,
        excluded_regions=tuple(draw(st.sets(st.sampled_from(_REGIONS)))),
        eligible=stage is Stage.PROMOTED and state is Lifecycle.ACTIVE and not excluded,
    )
    age = timedelta(days=draw(st.integers(0, 40)))
    return replace(version, image=replace(version.image, id=str(number), created_at=NOW - age))


@st.composite
def some_versions(draw):
    part = st.integers(0, 3)
    numbers = draw(st.sets(st.builds(Version, part, part, part), max_size=10))
    versions = [draw(a_version(number)) for number in numbers]
    used = draw(st.sets(st.sampled_from([v.id for v in versions] or ["-"])))
    return versions, dict.fromkeys(used, ("vm",))


limits = st.none() | st.integers(1, 6)
policies = st.builds(Retention, keep=limits, days=st.none() | st.integers(1, 45))


def going(versions, policy, in_use):
    return {d.version.id for d in plan(versions, policy, NOW, in_use) if d.goes}


def latest(versions, region):
    good = [
        v
        for v in versions
        if v.eligible
        and region not in v.excluded_regions
        and (v.end_of_life is None or v.end_of_life > NOW)
    ]
    return max(good, key=lambda v: v.version, default=None)


@given(some_versions(), policies)
def test_everybody_still_gets_the_latest_that_they_got(given_, policy):
    versions, in_use = given_
    gone = going(versions, policy, in_use)
    left = [v for v in versions if v.id not in gone]
    for region in (None, *_REGIONS):
        assert latest(left, region) == latest(versions, region)
    assert any(v.eligible for v in left) == any(v.eligible for v in versions)


@given(some_versions(), policies)
def test_a_second_run_has_nothing_to_do(given_, policy):
    versions, in_use = given_
    gone = going(versions, policy, in_use)
    assert going([v for v in versions if v.id not in gone], policy, in_use) == set()


@given(some_versions(), policies, st.integers(1, 6), st.integers(1, 45))
def test_a_shorter_limit_deletes_no_less(given_, policy, keep, days):
    versions, in_use = given_
    gone = going(versions, policy, in_use)
    if policy.keep is not None and keep <= policy.keep:
        assert going(versions, replace(policy, keep=keep), in_use) >= gone
    if policy.days is not None and days <= policy.days:
        assert going(versions, replace(policy, days=days), in_use) >= gone


@given(some_versions(), policies)
def test_what_is_used_protected_or_new_stays(given_, policy):
    versions, in_use = given_
    gone = going(versions, policy, in_use)
    good = sorted((v.version for v in versions if v.eligible), reverse=True)
    for version in versions:
        if version.id in in_use or lifecycle.protected_until(version, NOW):
            assert version.id not in gone
        if policy.keep is not None and version.version in good[: policy.keep]:
            assert version.id not in gone
        if policy.days is not None and NOW - version.image.created_at < policy.days * DAY:
            assert version.id not in gone
    if policy.keep is None and policy.days is None:
        assert not gone


@given(some_versions(), policies)
def test_every_decision_has_a_reason_and_a_place(given_, policy):
    versions, in_use = given_
    decisions = plan(versions, policy, NOW, in_use)
    numbers = [d.version.version for d in decisions]
    assert numbers == sorted((v.version for v in versions), reverse=True)
    assert all(d.why for d in decisions)


def test_staged_ones_go_by_age_alone():
    old = new_version(_definition, "2.0.0", stage=Stage.STAGED)
    old = replace(old, image=replace(old.image, created_at=NOW - 10 * DAY))
    good = new_version(_definition, "1.0.0", eligible=True)
    assert going([old, good], Retention(keep=5, days=7), {}) == {old.id}
    assert going([old, good], Retention(keep=5), {}) == set()
    assert going([old, good], Retention(keep=5, days=30), {}) == set()


# -- the run


@pytest.fixture
def gallery(context):
    return new_gallery(context)


@pytest.fixture
def web(context, gallery):
    """Keeps two of six: one of those that would go is used, one protected, one revoked."""
    web = new_definition(context, gallery, retention=Retention(keep=2))
    made = [publish(context, web, f"1.{minor}.0") for minor in range(6)]
    new_vm(context, "vm", made[0].id)
    protection = {"end_of_life": NOW + 9 * DAY, "block_deletion_before_end_of_life": True}
    publishing.update_version(context, made[1].reference, **protection)
    lifecycle.turn(context, made[2].reference, Lifecycle.REVOKED)
    return web


def numbers(context, definition, *, deleted=False):
    found = context.catalog.versions.list(definition.id, deleted=deleted)
    return [str(version.version) for version in found]


WHY = {
    "1.5.0": (False, "the last good one"),
    "1.4.0": (False, "one of the newest 2"),
    "1.3.0": (True, "not one of the newest 2"),
    "1.2.0": (True, "not one of the newest 2"),
    "1.1.0": (False, f"protected until its end of life, {(NOW + 9 * DAY).date()}"),
    "1.0.0": (False, "VMs use it: vm"),
}


def told(retained):
    return {str(d.version.version): (d.goes, d.why) for d in retained.decisions}


def test_a_dry_run_says_what_would_go_and_why_the_others_stay(context, web):
    before = context.catalog.audit.head()
    (retained,) = retention.retain(context, "gal/web", dry_run=True)
    assert told(retained) == WHY
    assert len(numbers(context, web)) == 6
    assert context.catalog.audit.head() == before


def test_a_run(context, web):
    (retained,) = retention.retain(context, "gal/web")
    assert retained.definition == "gal/web"
    assert told(retained) == WHY
    assert numbers(context, web) == ["1.5.0", "1.4.0", "1.1.0", "1.0.0"]
    assert numbers(context, web, deleted=True) == ["1.3.0", "1.2.0"]
    assert [entry.action for entry in context.catalog.audit.list()][:2] == ["version.retain"] * 2
    (again,) = retention.retain(context, "gal/web")
    assert not any(decision.goes for decision in again.decisions)
    lifecycle.undelete(context, "gal/web/1.3.0")  # a mistake in the policy is undone


def overdue(context, reference):
    """Let the time in which a deleted version can come back be over."""
    version = lifecycle.named(context, reference, deleted=True)
    past = datetime.now(UTC) - DAY

    def decide(standing):
        return Change(replace(standing.version, purge_at=past), ACT)

    context.catalog.versions.change(version.id, decide)


def test_a_run_purges_what_is_overdue(context, web):
    for number in ("1.3.0", "1.2.0"):
        lifecycle.delete(context, f"gal/web/{number}")
    overdue(context, "gal/web/1.3.0")
    (dry,) = retention.retain(context, "gal/web", dry_run=True)
    assert dry.purged == ("gal/web/1.3.0",)
    (retained,) = retention.retain(context, None)
    assert retained.purged == ("gal/web/1.3.0",)
    assert numbers(context, web, deleted=True) == ["1.2.0"]
    assert "version.purge" in [entry.action for entry in context.catalog.audit.list()]
    with pytest.raises(NotFound):
        lifecycle.undelete(context, "gal/web/1.3.0")


def test_what_became_good_or_used_meanwhile_stays(context, web, monkeypatch):
    planned = retention.plan

    def plan_and_change(*arguments):
        decisions = planned(*arguments)
        lifecycle.roll_back(context, "gal/web", "1.3.0")
        new_vm(context, "late", next(d.version.id for d in decisions if d.why.startswith("the l")))
        return decisions

    monkeypatch.setattr(retention, "plan", plan_and_change)
    (retained,) = retention.retain(context, "gal/web")
    goes, why = told(retained)["1.3.0"]
    assert not goes
    assert "last good version" in why
    assert numbers(context, web, deleted=True) == ["1.2.0"]


def test_what_is_deleted_or_purged_meanwhile_does_not_end_the_run(context, web, monkeypatch):
    planned = retention.plan

    def plan_and_delete(*arguments):
        decisions = planned(*arguments)
        lifecycle.delete(context, "gal/web/1.3.0")
        lifecycle.delete(context, "gal/web/1.2.0", purge=True)
        return decisions

    monkeypatch.setattr(retention, "plan", plan_and_delete)
    (retained,) = retention.retain(context, "gal/web")
    for number in ("1.3.0", "1.2.0"):
        assert told(retained)[number] == (False, "it was deleted meanwhile")


def test_what_is_purged_twice_at_once_is_told_by_one(context, web, monkeypatch):
    for number in ("1.3.0", "1.2.0"):
        lifecycle.delete(context, f"gal/web/{number}")
        overdue(context, f"gal/web/{number}")
    to_purge = Versions.to_purge

    def to_purge_and_purge(*arguments):
        found = to_purge(*arguments)
        lifecycle.delete(context, "gal/web/1.3.0", purge=True)
        return found

    monkeypatch.setattr(Versions, "to_purge", to_purge_and_purge)
    (retained,) = retention.retain(context, None)
    assert retained.purged == ("gal/web/1.2.0",)


def test_a_definition_that_is_deleted_meanwhile_has_nothing_to_retain(
    context, gallery, web, monkeypatch
):
    new_definition(context, gallery, "gone")
    listed = [*retention.every_definition(context)]
    delete_definition(context, "gal/gone")
    monkeypatch.setattr(retention, "every_definition", lambda _context: listed)
    assert [one.definition for one in retention.retain(context, None)] == ["gal/web"]


def test_a_version_below_a_revoked_ancestor_is_not_good(context, gallery):
    db = new_definition(context, gallery, "db", retention=Retention(keep=1))
    root = publish(context, db, "0.1.0")
    publish(context, db, "1.0.0")
    publish(context, db, "1.1.0", parent=root.id)
    lifecycle.turn(context, root.reference, Lifecycle.REVOKED)
    (retained,) = retention.retain(context, "gal/db")
    assert numbers(context, db) == ["1.1.0", "1.0.0"]  # nothing good is above 1.1.0
    assert told(retained)["1.0.0"] == (False, "the last good one")


def test_all_definitions_and_those_that_say_nothing(context, gallery, web):
    mute = new_definition(context, gallery, "mute")
    publish(context, mute, "1.0.0")
    assert [one.definition for one in retention.retain(context, None)] == ["gal/mute", "gal/web"]
    assert numbers(context, mute) == ["1.0.0"]
    with pytest.raises(InvalidInput, match="'gal/mute' does not say") as caught:
        retention.retain(context, "gal/mute")
    assert "image-definition update gal/mute" in str(caught.value.hint)
