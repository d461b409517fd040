"""Galleries with a real guest: published, promoted, started by the definition's name, captured into it."""

import pytest

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def web(cli, tiny):
    """A VM of the latest version of an image definition."""
    image = cli("image", "create", "tiny", "--source", tiny, "--os-state", "Generalized")
    cli("gallery", "create", "gal")
    for name, state in {"tiny": "Generalized", "machine": "Specialized"}.items():
        triple = ("--publisher", "calotype", "--offer", "tiny", "--sku", name)
        kind = ("--os-type", "Linux", "--os-state", state, "--generation", image["generation"])
        cli("gallery", "image-definition", "create", f"gal/{name}", *triple, *kind)
    version = cli("gallery", "image-version", "create", "gal/tiny/1.0.0", "--image", "tiny")
    refused = cli.run("vm", "create", "web", "--image", "gal/tiny", status=3)
    assert b"is staged" in refused.stderr
    cli("gallery", "image-version", "promote", "gal/tiny/1.0.0", "--untested")
    made = cli("vm", "create", "web", "--image", "gal/tiny", "--admin-username", "wilma")
    assert made["imageId"] == version["id"]
    cli.run("vm", "wait", "web")
    cli.guest("web", "echo canary > /root/canary; sync")
    yield "web"
    cli.run("vm", "delete", "web")


def test_a_running_vm_becomes_a_version_and_starts_as_itself(cli, web):
    create = ("gallery", "image-version", "create")
    refused = cli.run(*create, "gal/tiny/2.0.0", "--vm", web, status=2)
    assert b"--generalize" in refused.stderr
    version = cli(*create, "gal/machine/1.0.0", "--vm", web)
    assert (version["image"]["osState"], version["latest"]) == ("Specialized", False)
    cli("vm", "create", "again", "--image", "gal/machine/1.0.0")
    cli.run("vm", "wait", "again")
    assert cli.guest("again", "cat /root/canary") == "canary"
    cli.run("vm", "delete", "again")


def test_the_disk_of_a_running_vm_becomes_a_version(cli, web):
    version = cli(
        "gallery", "image-version", "create", "gal/machine/2.0.0", "--disk", f"{web}-os", "--force"
    )
    assert version["image"]["provenance"]["kind"] == "disk"
    assert cli("snapshot", "list") == []
