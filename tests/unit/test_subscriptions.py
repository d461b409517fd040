"""Subscriptions and whom a command works for: their names, their quotas; and roles, as commands."""

import inspect
import json
import shlex
from uuid import uuid4

import pytest
from tests.published import an_image

from calotype import cli, wire
from calotype.engine import machines, names, roles, subscriptions
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.launch import VmRequest, create_vm
from calotype.engine.roles import Where
from calotype.engine.sources import Upload
from calotype.errors import Conflict, InvalidInput, NotAllowed, QuotaExceeded
from calotype.model import (
    DEFAULT_SUBSCRIPTION,
    GIB,
    MIB,
    Caller,
    QuotaKind,
    Role,
    Scope,
)


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "-x", "a\nb", "a\x1b[1m", "é", "a" * 129, "x (0)"]
)
def test_what_cannot_be_a_principal(name, context):
    with pytest.raises(InvalidInput, match="cannot be a principal"):
        subscriptions.caller(context, name, None, None)
    with pytest.raises(InvalidInput):
        roles.assign(context, name, Role.READER, Where())


@pytest.mark.parametrize(
    "name", ["alice", "alice@contoso.example", "system:serviceaccount:a:b", "spiffe://a/b", "1-2_3"]
)
def test_what_can_be_a_principal(name):
    assert names.principal(name) == name


@pytest.mark.parametrize("name", ["", "a/b", "a.", "a b", "é", "x" * 91, "a\n"])
def test_what_cannot_be_a_group(name, context):
    with pytest.raises(InvalidInput, match="cannot name a resource group"):
        subscriptions.caller(context, None, None, name)


def test_a_subscription_is_made_once_and_named_as_no_other_thing(context):
    made = subscriptions.create(context, "dev")
    assert subscriptions.show(context, "dev").subscription == made
    with pytest.raises(Conflict, match="exists already"):
        subscriptions.create(context, "dev")
    for name in ("installation", "Installation", str(uuid4()), "a b", ""):
        with pytest.raises(InvalidInput):
            subscriptions.create(context, name)
    with pytest.raises(NotAllowed, match="every installation has"):
        subscriptions.delete(context, "default")
    subscriptions.delete(context, "dev")
    assert [found.name for found in subscriptions.list_all(context)] == ["default"]


def test_a_subscription_is_found_in_any_spelling(context):
    dev = subscriptions.create(context, "Dev")
    for spelling in ("Dev", "dev", "DEV", dev.id, dev.id.upper()):
        assert subscriptions.show(context, spelling).subscription == dev
        assert subscriptions.caller(context, None, spelling, None).scope.subscription == dev.id
    with pytest.raises(Conflict, match="exists already"):
        subscriptions.create(context, "DEV")


def test_names_are_of_their_group_and_their_subscription(context):
    dev = subscriptions.create(context, "dev").id
    places = [Scope(), Scope(DEFAULT_SUBSCRIPTION, "web"), Scope(dev)]
    for scope in places:
        there = wire.build(home=context.home, caller=Caller(None, scope))
        an_image(there, "image")
        create_vm(there, VmRequest(name="vm", image="image", start=False))
        machines.create_disk(there, "disk", MIB)
        assert there.catalog.vm("vm").scope == scope
        assert {d.scope for d in there.catalog.list_disks()} == {scope}
        there.close()
    assert len({vm.ssh_port for vm in context.catalog.every_vm()}) == 3
    assert len({disk.name for disk in context.catalog.every_disk()}) == 2


def test_a_quota_is_said_before_the_work(context, monkeypatch):
    subscriptions.set_quota(context, QuotaKind.IMAGES, 0)
    subscriptions.set_quota(context, QuotaKind.VMS, 0)
    monkeypatch.setattr("calotype.engine.import_._take_in", lambda *_: pytest.fail("worked"))
    with pytest.raises(QuotaExceeded, match="may have 0 images"):
        import_image(context, ImageRequest(name="new"), Upload(location="/dev/null"), {})
    with pytest.raises(QuotaExceeded, match="may have 0 VMs"):
        context.catalog.require_free("VM", "new")


# -- commands


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command; its status, what it printed, and what it complained of."""
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))

    def call(*words):
        capsys.readouterr()
        status = cli.run(list(words))
        told = capsys.readouterr()
        return status, told.out, told.err

    return call


def succeeds(result):
    status, out, err = result
    assert status == 0, err
    return out


def test_the_cure_that_a_refusal_names_cures(run):
    """From an empty installation, by commands alone."""
    there = ("--subscription", "dev", "-g", "web")
    succeeds(run("subscription", "create", "dev"))
    succeeds(run("role", "assign", "bob", "Reader", *there))
    create = ("disk", "create", "d", "--size", "1M", *there, "--as", "bob")
    status, _, err = run(*create)
    assert status == 11
    assert "ERROR (AuthorizationFailed): 'bob' has not the role Contributor for disk 'd'" in err
    succeeds(run(*shlex.split(err.split("calotype ")[1])))
    succeeds(run(*create))
    assert json.loads(succeeds(run("disk", "list", *there, "--as", "bob", "-o", "json")))
    assert json.loads(succeeds(run("disk", "list", "-o", "json"))) == []
    assert run("disk", "show", "d", *there, "--as", "eve")[0] == 3
    assert run("disk", "show", "d", *there, "--as", "")[0] == 2
    listed = json.loads(
        succeeds(run("role", "list", "--subscription", "dev", "--as", "bob", "-o", "json"))
    )
    assert [(found["principal"], found["role"], found["group"]) for found in listed] == [
        ("bob", "Reader", "web"),
        ("bob", "Contributor", "web"),
    ]
    for found in listed:
        succeeds(run("role", "delete", found["id"], "--subscription", "dev"))
    assert run("disk", "show", "d", *there, "--as", "bob")[0] == 3


def test_quotas_as_commands(run):
    succeeds(run("subscription", "create", "dev"))
    for kind, limit in (("bytes", "2G"), ("vms", "3"), ("vms", "none"), ("images", "0")):
        succeeds(run("subscription", "quota", "set", kind, limit, "--subscription", "dev"))
    out = succeeds(run("subscription", "quota", "list", "--subscription", "dev", "-o", "json"))
    assert {q["kind"]: q["most"] for q in json.loads(out)} == {
        "images": 0,
        "versions": None,
        "galleries": None,
        "bytes": 2 * GIB,
        "vms": None,
    }
    assert "2.0 GiB" in succeeds(run("subscription", "quota", "list", "--subscription", "dev"))
    shown = json.loads(succeeds(run("subscription", "show", "dev", "-o", "json")))
    assert shown["quotas"]["bytes"] == {"used": 0, "limit": 2 * GIB}
    for wrong in ("-1", "x", "1.5", "9" * 30):
        assert run("subscription", "quota", "set", "vms", wrong)[0] != 0
    succeeds(run("subscription", "delete", "dev"))
    assert run("subscription", "show", "dev")[0] == 3


def test_where_a_command_works_comes_from_the_environment_too(run, monkeypatch):
    succeeds(run("subscription", "create", "dev"))
    monkeypatch.setenv("CALOTYPE_SUBSCRIPTION", "dev")
    monkeypatch.setenv("CALOTYPE_RESOURCE_GROUP", "web")
    made = json.loads(succeeds(run("disk", "create", "d", "--size", "1M", "-o", "json")))
    assert made["scope"]["group"] == "web"
    monkeypatch.setenv("CALOTYPE_AS", "eve")
    assert run("disk", "list")[0] == 3  # there is no such subscription for her
    monkeypatch.delenv("CALOTYPE_SUBSCRIPTION")
    assert succeeds(run("disk", "list", "-o", "json")) == "[]\n"


@pytest.mark.parametrize(
    "words",
    [
        ("keys", "show"),
        ("keys", "list"),
        ("keys", "rotate"),
        ("keys", "forget", "x"),
        ("audit", "list"),
        ("audit", "verify"),
        ("store", "stats"),
        ("store", "check"),
        ("store", "prune"),
        ("store", "repair"),
        ("store", "copy", "/nowhere"),
        ("store", "adopt"),
        ("subscription", "create", "x"),
        ("subscription", "delete", "default"),
        ("subscription", "quota", "set", "vms", "1"),
    ],
)
def test_commands_for_the_installations_owner(run, words):
    succeeds(run("role", "assign", "oscar", "Owner"))
    status, out, err = run(*words, "--as", "oscar")
    assert (status, out) == (11, ""), err
    assert "for the installation's owner" in err


def commands(app, path=()):
    """All commands, by their words."""
    for name in app:
        if name.startswith("-"):
            continue
        inner = app[name]
        if inner.default_command is not None:
            yield " ".join((*path, name)), inner.default_command
        yield from commands(inner, (*path, name))


def test_every_command_takes_as():
    """It is one of the options that all commands share."""
    without = {
        words
        for words, command in commands(cli.app)
        if "common" not in inspect.signature(command).parameters
    }
    assert without == {"completion"}  # which works with nothing that belongs to anybody
