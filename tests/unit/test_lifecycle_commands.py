"""The commands of the life of image versions, as people and programs read them."""

import json

import pytest
from tests.shelf import DAY, NOW, new_definition, new_gallery, new_image, new_vm, publish

from calotype.cli import run
from calotype.engine.gallery import lifecycle
from calotype.model import Retention, Stage


@pytest.fixture
def web(context, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(context.home.root))
    gallery = new_gallery(context)
    web = new_definition(context, gallery, retention=Retention(keep=1))
    publish(context, web, "1.9.0")
    publish(context, web, "1.10.0")
    return web


@pytest.fixture
def command(capsys):
    def call(*words, status=0):
        assert run(["gallery", "image-version", *words]) == status
        return capsys.readouterr()

    return call


def told(command, *words):
    return json.loads(command(*words, "-o", "json").out)


def test_promote_and_rollback(context, web, command):
    publish(context, web, "2.0.0", stage=Stage.STAGED)
    assert told(command, "list", "gal/web")[1]["latest"] is True
    done = told(command, "promote", "gal/web/2.0.0", "--untested")
    assert (done["version"], done["latest"], done["report"]) == ("2.0.0", True, None)
    shown = command("rollback", "gal/web")
    assert "gal/web/1.10.0" in shown.out
    assert shown.err == "note: excluded from latest: gal/web/2.0.0\n"
    assert told(command, "rollback", "gal/web", "--to", "1.9.0")["excluded"] == ["gal/web/1.10.0"]
    refused = command("rollback", "gal/web", status=4).err
    assert "no other version could be the latest" in refused
    assert "image-version list gal/web" in refused


def test_states(context, web, command):
    heir = new_image("heir", parent=lifecycle.named(context, "gal/web/1.9.0").id)
    context.catalog.add_image(heir)
    words = ("--replacement", "gal/web/1.10.0", "--reason", "old\u202e")
    assert "a reason is a line" in command("deprecate", "gal/web/1.9.0", *words, status=2).err
    done = told(command, "deprecate", "gal/web/1.9.0", *words[:2], "--reason", "old")
    assert (done["state"], done["replacement"], done["warnings"]) == (
        "Deprecated",
        "gal/web/1.10.0",
        [],
    )
    assert told(command, "obsolete", "gal/web/1.9.0")["state"] == "Obsolete"
    assert "note: 1 image or VM descends" in command("revoke", "gal/web/1.9.0").err
    assert told(command, "activate", "gal/web/1.9.0")["state"] == "Active"
    refused = command("deprecate", "gal/web", status=2)
    assert "number" in refused.err


def test_delete_and_undelete(context, web, command):
    new_vm(context, "vm", lifecycle.named(context, "gal/web/1.9.0").id)
    assert (
        "VMs were made of 'gal/web/1.9.0': vm" in command("delete", "gal/web/1.9.0", status=4).err
    )
    shown = command("delete", "gal/web/1.9.0", "--force")
    assert shown.err == "note: VMs that were made of it go on: vm\n"
    assert "calotype gallery image-version undelete gal/web/1.9.0" in shown.out
    assert [one["version"] for one in told(command, "list", "gal/web", "--deleted")] == ["1.9.0"]
    assert told(command, "undelete", "gal/web/1.9.0")["deletedAt"] is None
    done = told(command, "delete", "gal/web/1.9.0", "--force", "--purge")
    assert (done["gone"], done["vms"]) == (True, ["vm"])
    assert (
        command("delete", "gal/web/1.10.0", "--force", "--purge").out == "gal/web/1.10.0 is gone\n"
    )


def test_descendants(context, web, command):
    version = lifecycle.named(context, "gal/web/1.9.0")
    new_vm(context, "vm\x1b[2J", version.id)
    shown = command("descendants", "gal/web/1.9.0").out
    assert "\x1b" not in shown
    assert "VM" in shown
    assert told(command, "descendants", version.id)["hidden"] == 0


def test_retain(context, web, command):
    ends = {"end_of_life": NOW + DAY, "block_deletion_before_end_of_life": True}
    publish(context, web, "1.8.0", **ends)
    dry = command("retain", "gal/web", "--dry-run").out
    assert [line.split(maxsplit=2)[:2] for line in dry.splitlines()[1:]] == [
        ["gal/web/1.10.0", "stays"],
        ["gal/web/1.9.0", "would"],
        ["gal/web/1.8.0", "stays"],
    ]
    assert "the last good one" in dry
    (done,) = told(command, "retain", "--all")
    assert [one["goes"] for one in done["decisions"]] == [False, True, False]
    assert [one["version"] for one in told(command, "list", "gal/web")] == ["1.10.0", "1.8.0"]
    assert "which image definition?" in command("retain", status=2).err
