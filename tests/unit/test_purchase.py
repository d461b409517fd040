"""Terms and entitlements: what is refused before a file is made, what the refusal says, who inherits it."""

import hashlib
import os
from datetime import UTC, datetime, timedelta
from unittest.mock import Mock

import pytest
from tests.published import a_definition
from tests.unit import market
from tests.unit.web import serving

from calotype import wire
from calotype.engine import machines, references, roles, snapshots, subscriptions
from calotype.engine.capture import CaptureRequest, capture_vm
from calotype.engine.export import export_image
from calotype.engine.gallery import galleries, versions
from calotype.engine.gallery.places import Managed
from calotype.engine.generalize.generalize import generalize_image
from calotype.engine.generalize.steps import DEFAULT
from calotype.engine.launch import VmRequest, create_vm
from calotype.engine.marketplace import offers, purchase
from calotype.engine.roles import Where
from calotype.errors import Forbidden, InvalidInput, NotAllowed, NotFound, PurchaseRefused
from calotype.model import (
    DEFAULT_SUBSCRIPTION,
    Caller,
    Generation,
    OsState,
    OsType,
    PurchasePlan,
    Role,
    Scope,
)

GOLD = 'plan = { name = "gold", terms = "You may. — Acme" }'
MSDN = 'entitlement = "msdn"'
PLAN = PurchasePlan("acme", "os", "gold")


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    return market.make_disk(tmp_path_factory.mktemp("disk"))


@pytest.fixture
def web():
    with serving() as web:
        yield web


@pytest.fixture
def acme(context, web, disk):
    """A publisher of whom one offer has terms, one is for the entitled, and one is both."""
    market.add(context, market.put(web, *parts(web, disk)))
    return web


def parts(web, disk, gold=GOLD):
    return (
        market.offer(web, disk, sku="terms", more=gold),
        market.offer(web, disk, sku="msdn", more=MSDN),
        market.offer(web, disk, sku="both", more=f"{gold}\n{MSDN}"),
        market.offer(web, disk, sku="free"),
    )


@pytest.fixture
def elsewhere(context):
    """The same installation in another subscription."""
    made = subscriptions.create(context, "other")
    other = wire.build(home=context.home, caller=Caller(scope=Scope(made.id)))
    yield other
    other.close()


def vm(context, image="acme:os:terms", name="vm1"):
    return create_vm(context, VmRequest(name=name, image=image, start=False))


def refusal(context, image, *words):
    """The hint of the refusal of an image, of which nothing is left."""
    before = sorted(context.home.prepare().vms.iterdir()), context.catalog.list_disks()
    with pytest.raises(PurchaseRefused) as refused:
        vm(context, image, "refused")
    assert all(word in refused.value.message for word in words), refused.value.message
    after = sorted(context.home.vms.iterdir()), context.catalog.list_disks()
    assert after == before
    return refused.value.hint


# -- terms


def test_terms_come_before_the_first_vm(context, acme):
    hint = refusal(context, "acme:os:terms", "terms of plan 'acme:os:gold' were not accepted")
    assert "calotype marketplace terms show acme:os:gold" in hint
    accepted = purchase.accept(context, "acme:os:terms")
    assert accepted.accepted
    assert vm(context).plan == PLAN


def test_who_accepted_what_and_when_is_recorded(context, acme):
    shown = purchase.terms(context, "acme:os:gold")  # the plan's own name will do
    assert shown.text == "You may. — Acme"
    assert not shown.accepted
    before = datetime.now(UTC)
    purchase.accept(context, "acme:os:terms")
    acceptance = context.catalog.marketplace.acceptance(PLAN)
    assert acceptance is not None
    assert acceptance.text == shown.text
    assert acceptance.digest == hashlib.sha256(shown.text.encode()).hexdigest() == shown.digest
    assert acceptance.principal
    assert before <= acceptance.accepted_at <= datetime.now(UTC)
    entry = context.catalog.audit.list(1)[0]
    assert (entry.action, entry.resource) == ("marketplace.terms.accept", "plan acme:os:gold")
    assert entry.detail == {"subscription": DEFAULT_SUBSCRIPTION, "sha256": shown.digest}
    assert purchase.accept(context, "acme:os:terms").acceptance == acceptance  # not another one
    assert context.catalog.audit.list(1)[0] == entry


def test_a_changed_text_is_accepted_anew(context, acme, disk):
    purchase.accept(context, "acme:os:terms")
    vm(context)
    market.put(acme, *parts(acme, disk, GOLD.replace("may", "may not")))
    offers.update(context)
    hint = refusal(context, "acme:os:terms", "terms of plan 'acme:os:gold' were changed since")
    assert "terms show acme:os:gold" in hint
    assert not purchase.terms(context, "acme:os:gold").accepted
    purchase.accept(context, "acme:os:gold")
    vm(context, name="vm2")


def test_an_acceptance_can_be_taken_back(context, acme):
    purchase.accept(context, "acme:os:terms")
    vm(context)
    assert purchase.cancel(context, "acme:os:terms").acceptance is None
    refusal(context, "acme:os:terms", "were not accepted")
    with pytest.raises(NotFound, match="has not accepted"):
        purchase.cancel(context, "acme:os:terms")
    assert [v.name for v in context.catalog.list_vms()] == ["vm1"]


def test_a_version_that_is_here_asks_nobody_about_its_terms(context, acme, caplog):
    purchase.accept(context, "acme:os:terms")
    vm(context)
    for page in context.home.market.glob("*.page"):
        os.utime(page, (0, 0))
    asked = len(acme.hosts)
    vm(context, "acme:os:terms:1.0.0", "vm2")
    assert len(acme.hosts) == asked
    assert not caplog.text


def test_each_subscription_accepts_for_itself(context, acme, elsewhere):
    purchase.accept(context, "acme:os:terms")
    refusal(elsewhere, "acme:os:terms", "were not accepted for this subscription")
    purchase.accept(elsewhere, "acme:os:terms")
    assert vm(elsewhere).plan == PLAN


def test_an_offer_without_terms(context, acme):
    with pytest.raises(NotFound, match="acme:os:free has no terms"):
        purchase.terms(context, "acme:os:free")
    with pytest.raises(NotFound, match="no offer"):
        purchase.terms(context, "acme:os:nothing")
    vm(context, "acme:os:free")


def test_a_role_in_a_part_of_the_subscription_binds_none_of_it(context, acme):
    roles.assign(context, "ann", Role.CONTRIBUTOR, Where(group="default"))
    ann = wire.build(home=context.home, caller=Caller("ann"))
    with pytest.raises(Forbidden, match="'ann' may not accept terms") as refused:
        purchase.accept(ann, "acme:os:terms")
    assert "role assign ann Contributor" in (refused.value.hint or "")
    roles.assign(context, "ann", Role.CONTRIBUTOR, Where())
    accepted = purchase.accept(ann, "acme:os:terms")
    assert accepted.acceptance is not None
    assert accepted.acceptance.principal.startswith("ann through ")
    ann.close()


def test_terms_of_an_image_whose_catalogue_is_gone(context, acme):
    image = references.find(context, "acme:os:terms")
    assert image.eula == "You may. — Acme"
    purchase.accept(context, "acme:os:terms")
    offers.remove(context, "acme")
    assert purchase.terms(context, "acme:os:gold").accepted
    vm(context, "acme:os:terms:1.0.0")


# -- entitlements


def test_an_offer_for_the_entitled(context, acme):
    hint = refusal(context, "acme:os:msdn", "entitled to 'msdn'", "is not")
    assert "calotype subscription entitlement grant msdn --subscription" in hint
    assert acme.sent < 10_000  # nor was it fetched
    purchase.grant(context, "msdn")
    assert vm(context, "acme:os:msdn").entitlement == "msdn"
    purchase.revoke(context, "msdn")
    refusal(context, "acme:os:msdn", "entitled to 'msdn'")
    with pytest.raises(NotFound, match="no entitlement 'msdn'"):
        purchase.revoke(context, "msdn")
    acts = [entry.action for entry in context.catalog.audit.list(3)]
    assert "entitlement.grant" in acts
    assert "entitlement.revoke" in acts


def test_an_entitlement_that_expired(context, acme, monkeypatch):
    purchase.grant(context, "msdn", datetime.now(UTC) + timedelta(days=1))
    vm(context, "acme:os:msdn")
    later = datetime.now(UTC) + timedelta(days=2)
    monkeypatch.setattr(purchase, "datetime", Mock(now=Mock(return_value=later)))
    hint = refusal(context, "acme:os:msdn:1.0.0", "entitlement of", "expired on")
    assert "entitlement grant msdn" in hint
    assert "--expires YYYY-MM-DD" in hint


@pytest.mark.parametrize("name", ["MSDN", "", "a b", "-x"])
def test_what_cannot_be_granted(context, name):
    with pytest.raises(InvalidInput, match="cannot name an entitlement"):
        purchase.grant(context, name)
    with pytest.raises(InvalidInput, match="is past"):
        purchase.grant(context, "msdn", datetime(2020, 1, 1, tzinfo=UTC))


def test_entitlements_are_the_owners_to_give(context, elsewhere):
    roles.assign(context, "ann", Role.OWNER, Where())
    ann = wire.build(home=context.home, caller=Caller("ann"))
    with pytest.raises(Forbidden, match="installation's owner"):
        purchase.grant(ann, "msdn")
    purchase.grant(context, "msdn")
    purchase.grant(elsewhere, "other")
    with pytest.raises(Forbidden, match="installation's owner"):
        purchase.revoke(ann, "msdn")
    assert [e.name for e in ann.catalog.marketplace.entitlements()] == ["msdn"]
    assert len(context.catalog.marketplace.entitlements()) == 2
    ann.close()
    nobody = wire.build(
        home=context.home, caller=Caller("nobody", Scope(elsewhere.scope.subscription))
    )
    assert nobody.catalog.marketplace.entitlements() == []
    nobody.close()


def test_a_subscription_that_is_none_is_entitled_to_nothing(context):
    nowhere = wire.build(home=context.home, caller=Caller(scope=Scope("nowhere")))
    with pytest.raises(NotFound, match="no subscription 'nowhere'"):
        purchase.grant(nowhere, "msdn")
    nowhere.close()


# -- what descends


def test_both_follow_an_image_to_all_that_descends(context, acme, elsewhere):
    """Captures, generalized copies, versions, versions of snapshots: all are refused elsewhere."""
    purchase.grant(context, "msdn")
    purchase.accept(context, "acme:os:both")
    made = vm(context, "acme:os:both")
    specialized = CaptureRequest(name="captured", os_state=OsState.SPECIALIZED, force=True)
    captured = capture_vm(context, "vm1", specialized).image
    copy = generalize_image(context, "captured", Managed("copied"), DEFAULT).image
    a_definition(context, generation=Generation.V1, os_state=OsState.GENERALIZED)
    version = versions.of_image(context, versions.place(context, "gal/web/1.0.0"), "copied").image
    snapshots.create(context, "snap", made.os_disk.name)
    of_snapshot = versions.of_snapshots(
        context, versions.place(context, "gal/web/2.0.0"), "snap", force=True
    ).image
    for image in (captured, copy, version, of_snapshot):
        assert (image.plan, image.entitlement) == (PLAN, "msdn"), image.name
        refusal(elsewhere, image.id, "entitled to 'msdn'")
    purchase.grant(elsewhere, "msdn")
    for image in (captured, copy, version, of_snapshot):
        refusal(elsewhere, image.id, "terms of plan 'acme:os:gold'", image.name)
    purchase.accept(elsewhere, "acme:os:gold")
    assert vm(elsewhere, copy.id).entitlement == "msdn"


def sold(context, name="sold", eula="Ours.", share=None):
    """A gallery with one version whose plan no catalogue knows."""
    galleries.create_gallery(context, name)
    galleries.create_definition(
        context,
        name,
        "app",
        os_type=OsType.LINUX,
        os_state=OsState.GENERALIZED,
        generation=Generation.V1,
        publisher="contoso",
        offer="app",
        sku="gold",
        plan=OURS,
        eula=eula,
    )
    if share is not None:
        galleries.share(context, name, add=[share])
    made = versions.place(context, f"{name}/app/1.0.0")
    return versions.of_image(context, made, "acme:os:free").image


OURS = PurchasePlan("contoso", "app", "gold")


def test_the_licence_of_a_definition_is_the_text_of_its_plan(context, acme):
    sold(context)
    assert purchase.terms(context, "contoso:app:gold").text == "Ours."


def test_a_capture_does_not_change_the_terms(context, acme):
    image = sold(context)
    purchase.accept(context, "contoso:app:gold")
    vm(context, image.id)
    specialized = CaptureRequest(name="captured", os_state=OsState.SPECIALIZED, force=True)
    assert capture_vm(context, "vm1", specialized).image.plan == OURS
    assert purchase.terms(context, "contoso:app:gold").accepted
    vm(context, image.id, "vm2")


def test_whoever_names_the_plan_of_others_does_not_change_their_terms(context, acme, elsewhere):
    image = sold(context)
    purchase.accept(context, "contoso:app:gold")
    sold(elsewhere, "hostile", "You owe us all.", share=DEFAULT_SUBSCRIPTION)
    assert purchase.terms(context, "contoso:app:gold").text == "Ours."
    vm(context, image.id)


def test_those_with_whom_a_gallery_is_shared_are_shown_its_terms(context, acme, elsewhere):
    image = sold(context)
    reader = wire.build(home=context.home, caller=Caller("bob", elsewhere.scope))
    roles.assign(elsewhere, "bob", Role.OWNER, Where())
    with pytest.raises(NotFound):
        purchase.terms(reader, "contoso:app:gold")
    galleries.share(context, "sold", add=[elsewhere.scope.subscription])
    assert purchase.accept(reader, "contoso:app:gold").text == "Ours."
    vm(reader, image.id, "vm3")
    specialized = CaptureRequest(name="captured", os_state=OsState.SPECIALIZED, force=True)
    capture_vm(reader, "vm3", specialized)
    galleries.unshare(context, "sold")
    vm(reader, "captured", "vm4")  # whose terms were accepted, although nobody shows them any more
    reader.close()


def test_neither_is_left_behind_on_data_disks(context, acme, elsewhere):
    """A system that was put on a data disk, captured with another one, and taken off again."""
    purchase.grant(context, "msdn")
    purchase.accept(context, "acme:os:both")
    made = vm(context, "acme:os:both", "entitled")
    snapshots.create(context, "snap", made.os_disk.name)
    machines.create_disk(context, "data", source="snap")
    free = vm(context, "acme:os:free", "carrier")
    machines.attach(context, "carrier", "data", lun=0)
    specialized = CaptureRequest(name="captured", os_state=OsState.SPECIALIZED, force=True)
    captured = capture_vm(context, "carrier", specialized).image
    snapshots.create(context, "free", free.os_disk.name)
    a_definition(context, generation=Generation.V1, os_state=OsState.SPECIALIZED)
    where = versions.place(context, "gal/web/1.0.0")
    version = versions.of_snapshots(context, where, "free", {0: "snap"}, force=True).image
    for image in (captured, version):
        assert (image.plan, image.entitlement) == (PLAN, "msdn"), image.name
        refusal(elsewhere, image.id, "entitled to 'msdn'")


def test_disks_of_two_plans_make_no_image(context, acme):
    image = sold(context)
    for name in ("acme:os:terms", "contoso:app:gold"):
        purchase.accept(context, name)
    made = vm(context, "acme:os:terms")
    snapshots.create(context, "snap", made.os_disk.name)
    machines.create_disk(context, "data", source="snap")
    vm(context, image.id, "vm2")
    machines.attach(context, "vm2", "data", lun=0)
    with pytest.raises(NotAllowed, match="two plans: acme:os:gold and contoso:app:gold") as refused:
        capture_vm(context, "vm2", CaptureRequest(name="both"))
    assert "detach" in (refused.value.hint or "")


@pytest.mark.parametrize("sku", ["msdn", "terms"])
def test_what_may_not_be_used_is_not_exported(context, acme, elsewhere, tmp_path, sku):
    """Else it would come back, uploaded, without its plan."""
    purchase.grant(context, "msdn")
    purchase.accept(context, "acme:os:terms")
    vm(context, f"acme:os:{sku}")
    target = tmp_path / "disk.raw"
    with pytest.raises(PurchaseRefused):
        export_image(elsewhere, f"acme:os:{sku}:1.0.0", target)
    assert not target.exists()
    export_image(context, f"acme:os:{sku}:1.0.0", target)
