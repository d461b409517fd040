"""Galleries that are shared: who sees them, who makes VMs of them, who cannot change them, and afterwards."""

import json

import pytest
from tests.published import (
    a_definition,
    a_subscription,
    a_version,
    an_image,
    caller_in,
    public,
)

from calotype import cli
from calotype.engine import references
from calotype.engine.capture import CaptureRequest, capture_vm
from calotype.engine.community import publishing
from calotype.engine.gallery import galleries, lifecycle, replication
from calotype.engine.gallery import versions as engine
from calotype.engine.launch import VmRequest, create_vm
from calotype.errors import Conflict, Forbidden, NotAllowed, NotFound
from calotype.model import DEFAULT_SUBSCRIPTION, Lifecycle, OsState, Sharing


@pytest.fixture
def owner(context):
    """The owner of a gallery with a version, in the default subscription."""
    a_definition(context)
    a_version(context)
    return caller_in(context, DEFAULT_SUBSCRIPTION, "olga", "Owner")


@pytest.fixture
def team(owner, context):
    """Another subscription, and a contributor there."""
    return caller_in(context, a_subscription(context, "team"), "tom", "Contributor")


def written(context, gallery="gal", name="web"):
    """How another subscription writes for an image in a gallery."""
    unique = references.unique_name(context.system.galleries.get(gallery))
    return f"/SharedGalleries/{unique}/Images/{name}"


def a_vm(context, name, image):
    return create_vm(context, VmRequest(name=name, image=image, start=False))


def sees(context):
    return [g.name for g in context.catalog.galleries.list(shared=True)]


def nothing_there(context, gallery):
    """Whoever may not see a gallery is told that there is none, by whichever name."""
    version = context.system.versions.latest(
        context.system.galleries.definition(gallery.id, "web").id
    )
    for reference in (written(context), version.id):
        with pytest.raises(NotFound):
            references.find(context, reference)
        with pytest.raises(NotFound):
            a_vm(context, "stolen", reference)
    for act in (
        lambda: context.catalog.galleries.get(gallery.id),
        lambda: galleries.update_gallery(context, gallery.id, description="x"),
        lambda: galleries.share(context, gallery.id, everyone=True),
        lambda: galleries.delete_gallery(context, gallery.id),
        lambda: lifecycle.delete(context, version.id, force=True),
        lambda: replication.status(context, version),
        lambda: replication.replicate(context, version),
        lambda: publishing.withdraw(context, gallery.id),
    ):
        with pytest.raises(NotFound):
            act()


def test_a_private_gallery_is_not_there_for_others(owner, team):
    assert sees(team) == []
    nothing_there(team, owner.catalog.galleries.get("gal"))


@pytest.mark.parametrize("everyone", [False, True])
def test_a_shared_gallery_is_seen_used_and_not_changed(owner, team, everyone):
    subscription = team.scope.subscription
    galleries.share(owner, "gal", **({"everyone": True} if everyone else {"add": [subscription]}))
    assert sees(team) == ["gal"]
    version = references.find_version(team, written(team))
    assert version.reference == "gal/web/1.0.0"
    vm = a_vm(team, "vm1", written(team))
    assert (vm.scope.subscription, vm.image_id) == (subscription, version.id)
    gallery = owner.catalog.galleries.get("gal")
    for act in (
        lambda: galleries.update_gallery(team, gallery.id, description="x"),
        lambda: galleries.share(team, gallery.id, everyone=True),
        lambda: galleries.unshare(team, gallery.id),
        lambda: galleries.delete_gallery(team, gallery.id),
        lambda: galleries.create_definition(
            team,
            gallery.id,
            "mine",
            publisher="a",
            offer="b",
            sku="c",
            os_type="Linux",
            os_state=OsState.GENERALIZED,
        ),
        lambda: galleries.update_definition(team, written(team), description="x"),
        lambda: lifecycle.delete(team, version.id, force=True),
        lambda: lifecycle.turn(team, version.id, Lifecycle.REVOKED),
        lambda: engine.update_version(team, version.id, exclude_from_latest=True),
        lambda: replication.replicate(team, version),
        lambda: replication.withdraw(team, version, [team.region]),
    ):
        with pytest.raises(Forbidden):
            act()
    assert owner.catalog.versions.get(version.definition_id, version.version) == version


def test_it_is_shared_with_those_who_are_named_and_no_others(owner, team, context):
    galleries.share(owner, "gal", add=[team.scope.subscription])
    other = caller_in(context, a_subscription(context, "other"), "mallory", "Owner")
    assert sees(other) == []
    nothing_there(other, owner.catalog.galleries.get("gal"))
    # Who only says that he works in that subscription has nothing of it.
    pretender = caller_in(context, team.scope.subscription, "mallory")
    assert sees(pretender) == []
    nothing_there(pretender, owner.catalog.galleries.get("gal"))


def test_after_a_withdrawn_share_old_vms_work_and_new_ones_are_refused(owner, team):
    galleries.share(owner, "gal", add=[team.scope.subscription])
    a_vm(team, "old", written(team))
    galleries.share(owner, "gal", remove=[team.scope.subscription])
    assert owner.catalog.galleries.get("gal").sharing is Sharing.PRIVATE
    nothing_there(team, owner.catalog.galleries.get("gal"))
    taken = capture_vm(team, "old", CaptureRequest(name="mine", os_state=OsState.GENERALIZED))
    a_vm(team, "new", taken.image.name)
    assert team.catalog.vm("old").disks


def test_whoever_shares_a_version_is_told_of_vms_of_others_and_not_their_names(
    owner, team, context
):
    galleries.share(owner, "gal", add=[team.scope.subscription])
    version = references.find(team, written(owner))
    a_vm(team, "secret", written(owner))
    a_vm(owner, "own", "gal/web")
    a_version(context, "2.0.0")
    with pytest.raises(Conflict, match=r"VMs were made of 'gal/web/1\.0\.0': own, \(of others\)$"):
        lifecycle.delete(owner, "gal/web/1.0.0")
    seen = owner.catalog.versions.users(owner.catalog.versions.of_image(version.id).definition_id)
    assert seen == {version.id: ("own", "(of others)")}


def test_after_a_reset_it_is_shared_with_nobody(owner, team):
    galleries.share(owner, "gal", add=[team.scope.subscription], everyone=True)
    galleries.unshare(owner, "gal")
    assert sees(team) == []
    nothing_there(team, owner.catalog.galleries.get("gal"))


def test_who_may_only_read_at_home_makes_no_vm_of_what_is_shared(owner, team, context):
    galleries.share(owner, "gal", add=[team.scope.subscription])
    reader = caller_in(context, team.scope.subscription, "rita", "Reader")
    assert sees(reader) == ["gal"]
    with pytest.raises(Forbidden):
        a_vm(reader, "vm1", written(reader))


@pytest.mark.parametrize("role", ["Contributor", "Reader"])
def test_only_owners_share(owner, context, role):
    bob = caller_in(context, DEFAULT_SUBSCRIPTION, "bob", role)
    with pytest.raises(Forbidden, match="the role Owner"):
        galleries.share(bob, "gal", everyone=True)


def test_a_reader_at_home_uses_and_does_not_publish(owner, context):
    rita = caller_in(context, DEFAULT_SUBSCRIPTION, "rita", "Reader")
    an_image(context, "plain")
    assert references.find(rita, "gal/web").name == "gal/web/1.0.0"
    with pytest.raises(Forbidden):
        engine.of_image(rita, engine.place(rita, "gal/web/2.0.0"), "plain")


def test_a_revoked_version_stops_those_with_whom_it_is_shared_too(owner, team):
    galleries.share(owner, "gal", everyone=True)
    a_vm(team, "vm1", written(team))
    taken = capture_vm(team, "vm1", CaptureRequest(name="mine", os_state=OsState.GENERALIZED))
    lifecycle.turn(owner, "gal/web/1.0.0", Lifecycle.REVOKED, reason="a hole")
    for image in (f"{written(team)}/Versions/1.0.0", taken.image.name):
        with pytest.raises(NotAllowed, match="a hole"):
            a_vm(team, "vm2", image)


def test_a_public_gallery_is_used_without_a_role_and_changed_by_nobody_else(owner, team, context):
    name = public(owner)
    version = references.find(team, f"community/{name}/web")
    a_vm(team, "vm1", f"community/{name}/web")
    gallery = owner.catalog.galleries.get("gal")
    for act in (
        lambda: galleries.update_gallery(team, gallery.id, description="x"),
        lambda: publishing.withdraw(team, gallery.id),
        lambda: lifecycle.delete(team, version.id, force=True),
        lambda: replication.replicate(team, context.system.versions.of_image(version.id)),
    ):
        with pytest.raises((Forbidden, NotFound)):
            act()
    publishing.withdraw(owner, "gal")
    nothing_there(team, gallery)
    with pytest.raises(NotFound):
        a_vm(team, "vm2", f"community/{name}/web")
    assert team.catalog.vm("vm1")


def test_a_staged_version_of_a_public_gallery_is_not_found_by_its_id(owner, team, context):
    public(owner)
    staged = a_version(context, "2.0.0", promoted=False)
    with pytest.raises(NotFound):
        references.find(team, staged.id)
    with pytest.raises(NotFound):
        a_vm(team, "vm1", f"{written(team)}/Versions/2.0.0")


def test_who_shared_in_a_gallery_before_it_was_public_still_does(owner, team, context):
    galleries.share(owner, "gal", add=[team.scope.subscription])
    public(owner)
    a_version(context, "2.0.0", promoted=False)
    assert references.find(team, f"{written(team)}/Versions/2.0.0")
    publishing.withdraw(owner, "gal")
    assert references.find(team, written(team))


# -- as commands


@pytest.fixture
def run(context, monkeypatch, capsys):
    """Run a command; what it prints as JSON."""
    monkeypatch.setenv("CALOTYPE_HOME", str(context.home.root))

    def go(*arguments, status=0):
        assert cli.run([*arguments, "-o", "json"]) == status
        printed = capsys.readouterr()
        return json.loads(printed.out) if printed.out else printed.err

    return go


def test_the_community_as_commands(context, owner, run):
    run(
        *("community", "publish", "gal", "--publisher-uri", "https://contoso.example"),
        *("--publisher-contact", "a@contoso.example", "--eula", "https://contoso.example/eula"),
        *("--public-name-prefix", "Contoso"),
    )
    (found,) = run("community", "list")
    name = found["publicName"]
    assert found["reference"] == f"community/{name}/web/1.0.0"
    assert found["origin"] is None
    assert run("community", "search", "contoso", "linux") == [found]
    assert run("community", "search", "nothing") == []
    assert run("community", "show", f"{name}/web")["latest"] == found["version"] == "1.0.0"
    assert run("community", "show", name)["info"]["eula"] == "https://contoso.example/eula"
    run("vm", "create", "--name", "vm1", "--image", f"community/{name}/web", "--no-start")
    run("vm", "capture", "vm1", "--image", "mine", "--os-state", "Generalized")
    assert run("image", "show", "mine")["lineage"][0] == f"community/{name}/web/1.0.0"
    told = ("community", "report", f"{name}/web", "--reason", "old", "--category", "Broken")
    assert run(*told)["report"]["category"] == "Broken"
    assert len(run("community", "reports")) == 1
    assert run("community", "withdraw", "gal")["sharing"] == "Private"
    assert run("community", "list") == []
    assert "names never change" in run(
        *("community", "publish", "gal", "--publisher-uri", "https://contoso.example"),
        *("--publisher-contact", "a@contoso.example", "--eula", "https://contoso.example/eula"),
        *("--public-name-prefix", "Fabrikam"),
        status=2,
    )


def test_regions_as_commands(context, owner, run, tmp_path):
    context.home.config.write_text(f'[stores]\nnorth = "{tmp_path}/north"\nsouth = "/dev/null/x"\n')
    version = ("gallery", "image-version")
    made = run(
        *version, "replicate", "gal/web/1.0.0", "--target-regions", "north", "south", status=9
    )
    assert made["aggregatedState"] == "Failed"
    assert {r["region"]: r["state"] for r in made["summary"]} == {
        "north": "Completed",
        "south": "Failed",
    }
    left = run(*version, "replicate", "gal/web/1.0.0", "--remove-regions", "south")
    assert [r["region"] for r in left["summary"]] == ["north"]
    assert run(*version, "replication-status", "gal/web/1.0.0") == left
    assert "no region 'west'" in run(
        *version, "replicate", "gal/web/1.0.0", "--target-regions", "west", status=2
    )
