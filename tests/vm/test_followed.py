"""A guest of another installation's image: pulled, started, captured, generalized, restored, published on."""

import subprocess

import pytest
from tests.vm.conftest import Cli

pytestmark = pytest.mark.vm

COMMUNITY = ("--allow-address", "127.0.0.0/8")


def publish(cli, version, tree, *source):
    """A promoted version of a public gallery's image, exported; what the export says."""
    cli("gallery", "image-version", "create", f"gal/tiny/{version}", *source)
    cli("gallery", "image-version", "promote", f"gal/tiny/{version}", "--untested")
    return cli("community", "export", tree)


def gallery(cli):
    cli("gallery", "create", "gal")
    triple = ("--publisher", "contoso", "--offer", "tiny", "--sku", "one")
    cli("gallery", "image-definition", "create", "gal/tiny", *triple, "--os-type", "Linux")


def public_name(cli, prefix):
    told = ("--publisher-uri", "https://contoso.example", "--eula", "https://contoso.example/eula")
    mail = ("--publisher-contact", "images@contoso.example")
    cli("community", "publish", "gal", *told, *mail, "--public-name-prefix", prefix, "--force")
    return cli("gallery", "show", "gal")["community"]["publicName"]


@pytest.fixture(scope="module")
def published(tiny, tmp_path_factory):
    """A publisher's installation, its tree, the gallery's public name and the root's fingerprint."""
    room = tmp_path_factory.mktemp("publisher")
    cli = Cli(room / "home")
    gallery(cli)
    name = public_name(cli, "Contoso")
    cli("image", "create", "tiny", "--source", tiny, "--os-state", "Generalized")
    done = publish(cli, "1.0.0", room / "tree", "--image", "tiny")
    assert (done["galleries"], done["versions"]) == (1, 1)
    return cli, room / "tree", name, done["fingerprint"]


@pytest.fixture(scope="module")
def served(cli, published):
    """The tree, behind calotype community serve."""
    publisher, tree, _name, _fingerprint = published
    argv = publisher.argv("community", "serve", tree, "--port", "0")
    with subprocess.Popen(
        argv, env=publisher.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
        server.terminate()


@pytest.fixture(scope="module")
def guest(cli, published, served):
    """A running VM of the publisher's image, in another installation; somebody has used it."""
    _publisher, _tree, name, fingerprint = published
    cli("community", "add", served, "--name", "contoso", "--fingerprint", fingerprint, *COMMUNITY)
    (listed,) = cli("community", "list")
    assert listed["reference"] == f"community/{name}/tiny/1.0.0"
    cli(
        *("vm", "create", "web", "--image", f"community/{name}/tiny"),
        *("--admin-username", "wilma", "--memory", "256M"),
    )
    cli("vm", "wait", "web", "--for", "agent")
    cli.guest("web", "echo remix > /etc/remix; sync")
    return "web"


@pytest.fixture(scope="module")
def general(cli, guest):
    """What was captured of the running guest, generalized."""
    cli("vm", "capture", guest, "--image", "general", "--generalize")
    return "general"


def test_a_vm_starts_and_its_image_keeps_where_it_came_from(cli, published, guest):
    _publisher, _tree, name, _fingerprint = published
    assert cli.guest(guest, "hostname; cat /etc/remix").split() == ["web", "remix"]
    again = cli("community", "pull", f"community/{name}/tiny")
    assert again["existed"]
    assert again["image"]["provenance"]["kind"] == "community"


def test_captures_over_it(cli, guest, general):
    """Running, stopped and generalized: each is a change of what was pulled, and starts."""
    cli("vm", "capture", guest, "--image", "running")
    cli("vm", "stop", guest)
    cli("vm", "capture", guest, "--image", "stopped")
    cli("generalize", "stopped", "--image", "copied")
    cli(
        *("vm", "create", "clone", "--image", general),
        *("--admin-username", "fred", "--memory", "256M"),
    )
    cli("vm", "wait", "clone", "--for", "agent")
    assert cli.guest("clone", "cat /etc/remix") == "remix"
    cli("vm", "delete", "clone")
    cli("vm", "start", guest)
    cli("vm", "wait", guest, "--for", "agent")
    check = cli("store", "check")
    assert check["ok"]


def test_restore_points_over_it(cli, guest):
    cli("vm", "restore-point", "create", guest)
    cli.guest(guest, "echo other > /etc/remix; sync")
    cli("vm", "stop", guest)
    cli("vm", "restore", guest, "--yes")
    cli("vm", "start", guest)
    cli("vm", "wait", guest, "--for", "agent")
    assert cli.guest(guest, "cat /etc/remix") == "remix"


def test_a_remix_is_published_on_and_keeps_its_lineage(cli, published, general, tmp_path):
    """What is captured from a community image goes on to a third installation, with only its difference."""
    _publisher, _tree, name, _fingerprint = published
    gallery(cli)
    remix = public_name(cli, "Fabrikam")
    done = publish(cli, "1.0.0", tmp_path / "tree", "--image", general)
    assert done["read"] == 0  # its chunks have the community's names already
    shown = cli("community", "show", f"{remix}/tiny")
    assert f"community/{name}/tiny/1.0.0" in shown["versions"][0]["descendsFrom"]
