"""Publishers' images on real guests: from an index on a local server to a VM that runs; interrupted pulls."""

import hashlib
import signal
import subprocess
import time

import pytest
from tests.market_server import incus, put, ubuntu
from tests.openpgp import Signer
from tests.unit.web import serving

pytestmark = pytest.mark.vm

LOOPBACK = ("--allow-address", "127.0.0.0/8")
UBUNTU = "/cloud-images.ubuntu.com/releases/streams/v1/index.sjson"
INCUS = "/images.linuxcontainers.org/streams/v1/index.json"


@pytest.fixture(scope="module")
def qcow2(tiny, tmp_path_factory):
    """The tiny guest as a publisher's qcow2."""
    path = tmp_path_factory.mktemp("publisher") / "disk.qcow2"
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", tiny, path]
    subprocess.run(argv, check=True)
    return path.read_bytes()


@pytest.fixture(scope="module")
def web(cli, qcow2, tmp_path_factory):
    """Two publishers, whose keys the installation's owner has, and whose indexes were added."""
    signer = Signer()
    keyring = tmp_path_factory.mktemp("keys") / "publisher.asc"
    keyring.write_text(signer.armored)
    with serving() as web:
        put(web, ubuntu({"20240101": qcow2, "20240126.1": qcow2}, signer))
        put(web, incus({"20240101_07:42": qcow2}, signer))
        for name, path in {"first": UBUNTU, "second": INCUS}.items():
            added = cli(
                *("marketplace", "catalog", "add", name, web.url(path), *LOOPBACK),
                *("--kind", "simplestreams", "--publisher", name, "--keyring", keyring),
            )
            assert added["publishers"] == [name]
        yield web


@pytest.mark.parametrize(
    ("urn", "version"),
    [
        ("first:ubuntu-24.04:server", "20240126.1.0"),
        ("second:debian-bookworm:cloud", "20240101.742.0"),
    ],
)
def test_an_indexs_image_is_pulled_verified_and_runs(cli, web, urn, version):
    name = urn.partition(":")[0]
    shown = cli("marketplace", "show", urn)
    assert shown["versions"][0]["urn"] == f"{urn}:{version}"
    assert shown["versions"][0]["signedBy"]
    assert not shown["versions"][0]["pulled"]
    cli("vm", "create", name, "--image", urn, "--admin-username", "wilma", "--memory", "256M")
    cli("vm", "wait", name, "--for", "agent")
    assert cli.guest(name, "cd /home/wilma && hostname") == name
    shown = cli("marketplace", "show", urn)
    assert shown["offer"]["pulled"] == [version]
    (image,) = cli("marketplace", "pull", urn)
    assert image["name"] == f"{urn}:{version}"
    assert image["osState"] == "Generalized"
    assert image["provenance"]["kind"] == "marketplace"
    assert any("signed by" in note for note in image["provenance"]["notes"])
    assert not list((cli.home / "cache" / "downloads").iterdir())


def test_an_interrupted_pull_goes_on(cli, web, qcow2):
    """kill -9, Ctrl-C, a connection that breaks: 5 % more than the image at most."""
    path = next(path for path in web.files if "release-20240101/" in path)
    file = web.files[path]
    parts = cli.home / "cache" / "downloads"
    stops = [len(qcow2) // 4, len(qcow2) // 2]
    before = web.sent

    def pace(at):
        if stops and at >= stops[0]:
            while stops and at >= stops[0]:  # until the client is gone
                time.sleep(0.01)
            raise ConnectionResetError

    file.pace = pace
    argv = ("marketplace", "pull", "first:ubuntu-24.04:server:20240101.0.0")
    for sign, status in [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)]:
        with cli.start(*argv) as client:
            _arrived(parts, stops[0], client)
            client.send_signal(sign)
            assert client.wait(120) == status
        stops.pop(0)
        assert sorted(part.suffix for part in parts.iterdir()) == [".json", ".part"]
    file.cut = len(qcow2) // 3
    (image,) = cli(*argv)
    assert image["name"].endswith(":20240101.0.0")
    assert web.sent - before <= 1.05 * len(qcow2), (web.sent - before, len(qcow2))
    assert not list(parts.iterdir())


def _arrived(parts, count, client):
    """Wait until about ``count`` bytes are in the part."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and client.poll() is None:
        if any(part.stat().st_size >= count - (1 << 18) for part in parts.glob("*.part")):
            return
        time.sleep(0.01)
    pytest.fail(f"the client does not write what it receives: {client.communicate()}")


def test_a_plan_is_accepted_before_its_vm(cli, web, qcow2, tmp_path):
    """Terms, on the command line: the refusal names the commands that cure it."""
    path = next(path for path in web.files if "release-20240101/" in path)
    digest = hashlib.sha256(qcow2).hexdigest()
    catalogue = tmp_path / "offers.toml"
    catalogue.write_text(f"""
format = 1
[[offers]]
publisher = "third"
offer = "os"
sku = "gold"
title = "With terms"
os_type = "Linux"
plan = {{ name = "gold", terms = "You may." }}
aliases = ["golden"]
[offers.source]
kind = "url"
format = "qcow2"
files = [{{ version = "1.0.0", url = "{web.url(path)}", sha256 = "{digest}" }}]
""")
    cli("marketplace", "catalog", "add", "third", catalogue, *LOOPBACK)
    create = ("vm", "create", "golden", "--image", "golden", "--no-start")
    refused = cli.run(*create, status=4).stderr.decode()
    assert "ResourcePurchaseValidationFailed" in refused
    assert "calotype marketplace terms show third:os:gold" in refused
    assert cli("marketplace", "terms", "show", "third:os:gold")["text"] == "You may."
    assert cli("marketplace", "terms", "accept", "golden")["accepted"]
    cli(*create)
