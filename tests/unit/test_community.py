"""The community: what everybody is shown and what never, names that stay, one view, reports, lineage."""

import sys
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.proofs import CLEAN, MIXED
from tests.published import (
    WANTED,
    a_definition,
    a_subscription,
    a_version,
    an_image,
    caller_in,
    public,
)

from calotype.engine import references
from calotype.engine.capture import CaptureRequest, capture_vm
from calotype.engine.community import community, publishing
from calotype.engine.gallery import lifecycle
from calotype.engine.launch import VmRequest, create_vm
from calotype.engine.proof.evidence import write_evidence
from calotype.errors import Conflict, Forbidden, InvalidInput, NotAllowed, NotFound
from calotype.model import (
    Architecture,
    CommunityInfo,
    Generation,
    Lifecycle,
    OsState,
    OsType,
    PublicGallery,
    PublicImage,
    PublicVersion,
    PurchasePlan,
    ReportCategory,
    Sharing,
    Version,
)

GENERAL = replace(CLEAN, secrets=())


@pytest.fixture
def followed(monkeypatch):
    """Other installations' galleries, as this one knows them."""
    others = SimpleNamespace(found=[], pulled=[])

    def pull(_context, public_name, definition, version):
        others.pulled.append((public_name, definition, version))
        return "pulled"

    module = SimpleNamespace(galleries=lambda _context: list(others.found), pull=pull)
    monkeypatch.setitem(sys.modules, "calotype.engine.community.followed", module)
    monkeypatch.setattr("calotype.engine.community.followed", module, raising=False)
    return others


@pytest.fixture
def here(context, followed):
    """An installation with a gallery and a definition in it."""
    a_definition(context)
    return context


def another(name="Fabrikam-1", origin="fabrikam", numbers=("1.0.0", "1.1.0")):
    """A gallery of a followed installation."""
    versions = tuple(
        PublicVersion(
            reference=f"community/{name}/db/{number}",
            version=Version(*map(int, number.split("."))),
            size=1 << 20,
            published_at=datetime.now(UTC),
        )
        for number in reversed(numbers)
    )
    image = PublicImage(
        reference=f"community/{name}/db",
        name="db",
        publisher="fabrikam",
        offer="database",
        sku="free",
        os_type=OsType.LINUX,
        os_state=OsState.GENERALIZED,
        architecture=Architecture.X64,
        generation=Generation.V2,
        latest=versions[0].version,
        versions=versions,
    )
    info = CommunityInfo(
        publisher_uri="https://fabrikam.example",
        publisher_contact="images@fabrikam.example",
        eula="https://fabrikam.example/eula",
        public_name=name,
    )
    return PublicGallery(info=info, origin=origin, images=(image,))


def proved(context, version, proof):
    """What somebody saw of a version."""
    write_evidence(context, version.image, proof, quick=True)
    return version


def listed(context, *words, **options):
    return [item.version.reference for item in community.listing(context, words, **options)]


def shown(context: Any, reference: str) -> Any:
    """What the community has under that name."""
    return community.show(context, reference)


# -- published


def test_a_published_gallery_is_everybodys(here):
    version = a_version(here)
    name = public(here)
    assert name.startswith("Contoso-")
    stranger = caller_in(here, a_subscription(here, "team"), "mallory", "Owner")
    found = references.find(stranger, f"community/{name}/web")
    assert found == version.image
    assert references.find(
        stranger, f"/CommunityGalleries/{name.upper()}/Images/WEB/Versions/1.0.0"
    )
    assert create_vm(stranger, VmRequest(name="vm1", image=f"community/{name}/web", start=False))
    entry = next(e for e in here.catalog.audit.list() if e.action == "gallery.publish")
    assert entry.detail["publicName"] == name
    assert entry.detail["eula"] == WANTED.eula


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("publisher_uri", "http://contoso.example"),
        ("publisher_uri", "https://"),
        ("publisher_uri", "https://user@contoso.example"),
        ("publisher_uri", "https://contoso.example/\x1b[2J"),
        ("publisher_uri", "https://contoso.example:x/"),
        ("publisher_uri", "https://contoso.example/" + "a" * 3000),
        ("publisher_contact", ""),
        ("publisher_contact", "somebody"),
        ("publisher_contact", "a b@contoso.example"),
        ("publisher_contact", "<a>@contoso.example"),
        ("publisher_contact", "http://contoso.example"),
        ("eula", "be nice"),
        ("eula", ""),
        ("prefix", "four"),
        ("prefix", "seventeen12345678"),
        ("prefix", "with-hyphen"),
        ("prefix", "évry1"),
    ],
)
def test_what_must_be_said_is_checked(here, field, wrong):
    with pytest.raises(InvalidInput) as caught:
        publishing.publish(here, "gal", replace(WANTED, **{field: wrong}))
    assert caught.value.hint
    assert here.catalog.galleries.get("gal").sharing is Sharing.PRIVATE


def test_a_contact_may_be_a_page(here):
    wanted = replace(WANTED, publisher_contact="https://contoso.example/contact")
    info = publishing.publish(here, "gal", wanted).gallery.community
    assert info is not None
    assert info.publisher_contact == wanted.publisher_contact


@given(st.text(alphabet="abcXYZ019", min_size=5, max_size=16))
def test_a_prefix_never_looks_like_a_whole_name(prefix):
    assert publishing._PREFIX.fullmatch(prefix)
    assert not publishing._PREFIX.fullmatch(f"{prefix}-1")


def test_a_public_name_stays_its_own_for_ever(here):
    a_version(here)
    name = public(here)
    taken = publishing.withdraw(here, "gal")
    assert (taken.sharing, community.public_name(taken)) == (Sharing.PRIVATE, name)
    with pytest.raises(NotFound, match="no gallery"):
        references.find(here, f"community/{name}/web")
    with pytest.raises(InvalidInput, match=f"as {name}, and names never change"):
        publishing.publish(here, "gal", replace(WANTED, prefix="Fabrikam"))
    a_definition(here, "gal2")
    assert public(here, "gal2") != name
    assert public(here) == name
    assert references.find(here, f"community/{name}/web")
    assert [e.action for e in here.catalog.audit.list() if e.action.startswith("gallery.with")]


def test_a_withdrawn_name_is_nobody_elses(here, followed):
    a_version(here)
    name = public(here)
    publishing.withdraw(here, "gal")
    followed.found.append(another(name))
    with pytest.raises(NotFound, match="no gallery"):
        community.find(here, name, "db")
    assert followed.pulled == []


def test_a_withdrawn_gallery_is_shared_as_it_was(here):
    from calotype.engine.gallery import galleries  # noqa: PLC0415 (one test)

    galleries.share(here, "gal", everyone=True)
    public(here)
    assert publishing.withdraw(here, "gal").sharing is Sharing.GROUPS
    with pytest.raises(Conflict, match="is not public"):
        publishing.withdraw(here, "gal")


@pytest.mark.parametrize(("role", "refusal"), [("Reader", Forbidden), ("Contributor", Forbidden)])
def test_only_owners_publish_and_withdraw(here, role, refusal):
    bob = caller_in(here, here.scope.subscription, "bob", role)
    with pytest.raises(refusal, match="the role Owner"):
        publishing.publish(bob, "gal", WANTED)
    public(here)
    with pytest.raises(refusal, match="the role Owner"):
        publishing.withdraw(bob, "gal")
    alice = caller_in(here, here.scope.subscription, "alice", "Owner")
    assert publishing.withdraw(alice, "gal")
    assert publishing.publish(alice, "gal", WANTED)


def test_strangers_are_told_that_there_is_no_gallery(here):
    gallery = here.catalog.galleries.get("gal")
    stranger = caller_in(here, a_subscription(here, "team"), "mallory", "Owner")
    for name in ("gal", gallery.id):
        with pytest.raises(NotFound):
            publishing.publish(stranger, name, WANTED)
        with pytest.raises(NotFound):
            publishing.withdraw(stranger, name)


# -- what is not for everybody


def test_a_specialized_image_is_one_machine(here):
    a_definition(here, "gal", "machine", os_state=OsState.SPECIALIZED)
    a_version(here, owner="gal/machine", state=OsState.SPECIALIZED)
    with pytest.raises(NotAllowed, match=r"gal/machine/1\.0\.0 is specialized") as caught:
        publishing.publish(here, "gal", WANTED, force=True)
    assert "calotype generalize" in str(caught.value.hint)


def test_entitled_offers_stay_with_the_entitled(here, monkeypatch):
    source = an_image(here, "msdn")
    with here.catalog._write() as db:
        db.exec_driver_sql("UPDATE images SET entitlement = 'msdn' WHERE id = ?", (source.id,))
    a_version(here, source="msdn")
    with pytest.raises(NotAllowed, match="entitlement 'msdn'"):
        publishing.publish(here, "gal", WANTED, force=True)


def test_a_plan_is_shown_by_whoever_accepted_it(here, monkeypatch):
    plan = PurchasePlan("contoso", "server", "gold")
    a_definition(here, "gal", "gold", plan=plan)
    monkeypatch.setattr("calotype.engine.marketplace.purchase.require", lambda *_: None)
    a_version(here, owner="gal/gold")
    monkeypatch.undo()
    with pytest.raises(NotAllowed, match="has a plan"):
        publishing.publish(here, "gal", WANTED, force=True)
    monkeypatch.setattr("calotype.engine.marketplace.purchase.require", lambda *_: None)
    done = publishing.publish(here, "gal", WANTED)
    assert any("accept the terms of contoso:server:gold" in w for w in done.warnings)


SECRET = CLEAN  # it has the key of a web server
HALF = replace(MIXED, secrets=(), reasons=("ssh-host-keys: /etc/ssh/ssh_host_rsa_key",))


@pytest.mark.parametrize(
    ("proof", "told"), [(SECRET, "/etc/ssl/private/x.key"), (HALF, "/etc/ssh/ssh_host_rsa_key")]
)
def test_secrets_are_shown_only_if_that_is_said(here, proof, told):
    version = proved(here, a_version(here), proof)
    with pytest.raises(NotAllowed, match=told) as caught:
        publishing.publish(here, "gal", WANTED)
    assert "--force" in str(caught.value.hint)
    done = publishing.publish(here, "gal", WANTED, force=True)
    assert any(told in warning for warning in done.warnings)
    name = community.public_name(done.gallery)
    assert community.find(here, name, "web").id == version.id
    actions = {e.action: e for e in here.catalog.audit.list()}
    assert told in actions["gallery.publish"].detail["overruled"][0]
    assert actions["community.overrule"].detail["image"] == version.id
    assert public(here) == name  # it need not be said again


def test_what_came_into_a_public_gallery_later_is_looked_at_too(here):
    a_version(here, "1.0.0")
    name = public(here)
    proved(here, a_version(here, "2.0.0"), SECRET)
    assert listed(here) == []  # no older one passes for the latest
    assert listed(here, all_versions=True) == [f"community/{name}/web/1.0.0"]
    for number in (None, Version(2, 0, 0)):
        with pytest.raises(NotFound, match="the community has no image"):
            community.find(here, name, "web", number)
    public(here, force=True)
    assert listed(here) == [f"community/{name}/web/2.0.0"]


def test_what_nobody_looked_into_is_looked_into(here, monkeypatch):
    version = a_version(here)
    shown = publishing.publish(here, "gal", WANTED)
    assert any("nobody could see" in warning for warning in shown.warnings)
    evidence = here.home.evidence / version.id / "report.json"
    assert evidence.exists()
    evidence.unlink()
    monkeypatch.setattr("calotype.engine.proof.look.prove_index", lambda *_: SECRET)
    assert listed(here) == []


def test_a_damaged_image_hides_itself_and_no_other(here):
    lost = a_version(here, "2.0.0")
    public(here)
    (here.home.evidence / lost.id / "report.json").unlink()
    for pack in (here.home.store / "packs").iterdir():
        pack.unlink()
    here.repository.packs.refresh()
    a_definition(here, "gal", "db")
    assert isinstance(listed(here), list)


def test_staged_deleted_and_obsolete_versions_are_not_shown(here):
    a_version(here, "1.0.0")
    a_version(here, "1.1.0")
    obsolete = a_version(here, "1.2.0")
    deleted = a_version(here, "1.3.0")
    a_version(here, "1.4.0", promoted=False)
    done = publishing.publish(here, "gal", WANTED)
    name = community.public_name(done.gallery)
    assert any("1.4.0 is staged" in warning for warning in done.warnings)
    lifecycle.turn(here, obsolete.reference, Lifecycle.OBSOLETE)
    lifecycle.delete(here, deleted.reference, force=True)
    assert listed(here) == [f"community/{name}/web/1.1.0"]
    shown = [f"community/{name}/web/{number}" for number in ("1.1.0", "1.0.0")]
    assert listed(here, all_versions=True) == shown
    for number in ("1.3.0", "1.4.0"):
        with pytest.raises(NotFound):
            references.find(here, f"community/{name}/web/{number}")
    with pytest.raises(NotAllowed, match="obsolete"):
        create_vm(here, VmRequest(name="vm", image=f"community/{name}/web/1.2.0", start=False))


# -- one view


def test_own_and_followed_galleries_are_in_one_view(here, followed):
    a_version(here)
    name = public(here)
    followed.found.append(another())
    found = community.galleries(here)
    assert [(g.info.public_name, g.origin) for g in found] == [
        (name, None),
        ("Fabrikam-1", "fabrikam"),
    ]
    own = f"community/{name}/web/1.0.0"
    assert listed(here) == [own, "community/Fabrikam-1/db/1.1.0"]
    assert len(listed(here, all_versions=True)) == 3
    assert listed(here, "DATABASE", "fabri") == ["community/Fabrikam-1/db/1.1.0"]
    assert listed(here, "database", "contoso") == []
    assert listed(here, "linux") == listed(here)


def test_show_tells_of_a_gallery_an_image_a_version(here, followed):
    followed.found.append(another())
    gallery = shown(here, "fabrikam-1")
    assert gallery.info.publisher_contact == "images@fabrikam.example"
    assert shown(here, "community/Fabrikam-1/DB") == gallery.images[0]
    assert shown(here, "Fabrikam-1/db/latest").version == Version(1, 1, 0)
    assert shown(here, "Fabrikam-1/db/1.0.0") == gallery.images[0].versions[1]
    azures = "/CommunityGalleries/Fabrikam-1/Images/db/Versions/1.0.0"
    assert shown(here, azures) == gallery.images[0].versions[1]
    for missing in ("Fabrikam-2", "Fabrikam-1/x", "Fabrikam-1/db/9.0.0", "Fabrikam-1/db/x"):
        with pytest.raises(NotFound):
            shown(here, missing)
    for wrong in ("", "community", "community/", "a//b", "a/b/1.0.0/c"):
        with pytest.raises(InvalidInput):
            shown(here, wrong)


def test_what_is_followed_is_pulled(here, followed):
    followed.found.append(another())
    references.find(here, "community/Fabrikam-1/db/1.0.0")
    assert followed.pulled == [("Fabrikam-1", "db", Version(1, 0, 0))]
    with pytest.raises(NotFound, match="no gallery 'Nobody-1'"):
        references.find(here, "community/Nobody-1/db")


def test_a_name_that_two_installations_claim_is_nobodys(here, followed):
    followed.found += [another(), another(origin="mallory")]
    for act in (community.find, lambda c, n, d: shown(c, f"{n}/{d}")):
        with pytest.raises(Conflict, match="'fabrikam' and 'mallory' both claim") as caught:
            act(here, "Fabrikam-1", "db")
        assert "community remove" in str(caught.value.hint)
    assert followed.pulled == []


def test_nobody_takes_a_name_of_this_installation(here, followed):
    version = a_version(here)
    name = public(here)
    followed.found.append(another(name))
    assert community.find(here, name, "web").id == version.id
    assert shown(here, name).origin is None


# -- reports


def test_a_report_reaches_who_owns_the_gallery_and_the_installation(here):
    a_version(here)
    name = public(here)
    team = a_subscription(here, "team")
    stranger = caller_in(here, team, "bob", "Reader")
    done = community.report(stranger, f"{name}/web/1.0.0", "it mines", ReportCategory.MALWARE)
    assert done.report.reference == f"community/{name}/web/1.0.0"
    assert (done.report.reporter, done.origin) == ("bob", None)
    assert stranger.catalog.community.reports() == []
    alice = caller_in(here, here.scope.subscription, "alice", "Owner")
    for reader in (here, alice):
        assert reader.catalog.community.reports() == [done.report]
    reader = caller_in(here, here.scope.subscription, "carol", "Contributor")
    assert reader.catalog.community.reports() == []
    publishing.withdraw(here, "gal")
    assert alice.catalog.community.reports() == [done.report]
    entry = next(e for e in here.catalog.audit.list() if e.action == "community.report")
    assert (entry.resource, entry.detail["reason"]) == (done.report.reference, "it mines")


def test_a_report_of_a_followed_gallery_is_kept_and_says_whom_to_tell(here, followed):
    followed.found.append(another())
    done = community.report(here, "Fabrikam-1", "not theirs", ReportCategory.IMPERSONATION)
    assert (done.publisher_contact, done.origin) == ("images@fabrikam.example", "fabrikam")
    assert here.catalog.community.reports() == [done.report]


def test_a_report_is_of_something_and_has_a_reason(here, followed):
    followed.found.append(another())
    with pytest.raises(NotFound):
        community.report(here, "Nobody-1", "x")
    for reason in ("", "  \n", "x" * 5000):
        with pytest.raises(InvalidInput, match="reason"):
            community.report(here, "Fabrikam-1", reason)


# -- remixes


def test_a_remix_says_what_it_comes_from(here):
    a_version(here)
    name = public(here)
    team = a_subscription(here, "team")
    maker = caller_in(here, team, "bob", "Owner")
    create_vm(maker, VmRequest(name="vm1", image=f"community/{name}/web", start=False))
    taken = capture_vm(maker, "vm1", CaptureRequest(name="mine", os_state=OsState.GENERALIZED))
    here.catalog.promote_image(taken.image.id)
    assert community.lineage(maker, taken.image)[0] == f"community/{name}/web/1.0.0"
    a_definition(maker, "remixes", "mine")
    a_version(maker, owner="remixes/mine", source="mine")
    theirs = public(maker, "remixes")
    (version,) = shown(here, f"{theirs}/mine").versions
    assert version.descends_from == (f"community/{name}/web/1.0.0",)  # and nothing private


def test_lineage_outlives_what_it_names(here):
    version = a_version(here)
    name = public(here)
    create_vm(here, VmRequest(name="vm1", image=f"community/{name}/web", start=False))
    taken = capture_vm(here, "vm1", CaptureRequest(name="mine", os_state=OsState.GENERALIZED)).image
    lifecycle.delete(here, version.reference, force=True, purge=True)
    assert community.lineage(here, taken)[0] == version.reference
    assert community.public_lineage(here, taken) == ()
