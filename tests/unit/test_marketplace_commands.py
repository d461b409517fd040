"""The commands of the marketplace, as people and programs read them."""

import json

import pytest
from tests.openpgp import Signer
from tests.unit import market
from tests.unit.web import File, serving

from calotype.cli import run

TERMS = 'plan = { name = "gold", terms = "You may.\\u2014 Acme" }\naliases = ["golden"]'
LOOPBACK = ("--allow-address", "127.0.0.0/8")


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    return market.make_disk(tmp_path_factory.mktemp("disk"))


@pytest.fixture
def web():
    with serving() as web:
        yield web


@pytest.fixture
def command(context, monkeypatch, capsys):
    monkeypatch.setenv("CALOTYPE_HOME", str(context.home.prepare().root))

    def call(*words, status=0):
        assert run(["marketplace", *map(str, words)]) == status, capsys.readouterr()
        return capsys.readouterr()

    return call


@pytest.fixture
def acme(command, web, disk):
    url = market.put(
        web,
        market.offer(web, disk, ("1.0.0", "1.1.0")),
        market.offer(web, disk, sku="gold", more=TERMS),
        market.offer(web, disk, sku="msdn", more='entitlement = "msdn"'),
    )
    assert told(command, "catalog", "add", "acme", url, *LOOPBACK) == {
        "name": "acme",
        "offers": 3,
        "publishers": ["acme"],
    }
    return web


def told(command, *words, status=0):
    return json.loads(command(*words, "-o", "json", status=status).out)


def test_list_search_aliases(acme, command):
    rows = told(command, "list", "--publisher", "acme")
    assert [row["urn"] for row in rows] == ["acme:os:gold", "acme:os:msdn", "acme:os:small"]
    assert [row["verified"] for row in rows] == ["by its catalogue"] * 3
    assert [row["catalog"] for row in rows] == ["acme"] * 3
    shown = command("list", "--publisher", "acme").out
    assert "entitlement msdn" in shown
    assert "terms" in shown
    versions = told(command, "list", "--publisher", "acme", "--sku", "small", "--all")
    assert [v["urn"] for v in versions] == ["acme:os:small:1.1.0", "acme:os:small:1.0.0"]
    assert told(command, "search", "SMALL", "os", "gold")[0]["urn"] == "acme:os:gold"
    assert told(command, "search", "no-such-word") == []
    assert {"alias": "golden", "urn": "acme:os:gold:latest"} in told(command, "aliases")


def test_nothing_is_pulled_when_one_of_several_is_unknown(acme, command):
    assert "acme:os:none" in command("pull", "acme:os:small", "acme:os:none", status=3).err
    assert told(command, "show", "acme:os:small")["offer"]["pulled"] == []


def test_pull_and_show(acme, command):
    pulled = told(command, "pull", "acme:os:small:1.0.0", "acme:os:small:1.0.0")
    assert [image["name"] for image in pulled] == ["acme:os:small:1.0.0"] * 2
    found = told(command, "show", "acme:os:small")
    assert [v["pulled"] for v in found["versions"]] == [False, True]
    assert found["offer"]["pulled"] == ["1.0.0"]
    assert found["accepted"] is None
    market.put(acme, market.offer(acme, b"x" * 512, ("1.1.0",)))
    assert told(command, "catalog", "update")[1]["offers"] == 1
    shown = command("show", "acme:os:small").out
    assert "(no longer published)" in shown
    assert "existed" in command("pull", "acme:os:small:1.0.0").out
    assert "nothing to pull" in command("pull", status=2).err


def test_terms(acme, command):
    assert "not accepted yet" in command("show", "golden").out
    assert command("terms", "show", "golden").out.startswith("You may.— Acme\n")
    assert told(command, "terms", "show", "golden")["accepted"] is False
    accepted = told(command, "terms", "accept", "golden")
    assert accepted["plan"] == "acme:os:gold"
    assert accepted["acceptedBy"]
    assert len(accepted["sha256"]) == 64
    assert told(command, "show", "golden")["accepted"] is True
    assert "acceptedAt" in command("terms", "accept", "golden").out
    assert told(command, "terms", "cancel", "golden")["accepted"] is False
    assert "has not accepted" in command("terms", "cancel", "golden", status=3).err


def test_catalogues(acme, command, web, tmp_path):
    keyring = tmp_path / "keys.asc"
    keyring.write_text(Signer().armored)
    refused = command(
        *("catalog", "add", "signed", web.url("/offers.toml"), *LOOPBACK, "--keyring", keyring),
        status=12,
    )
    assert "UntrustedContent" in refused.err
    refused = command("catalog", "add", "inside", web.url("/offers.toml"), status=2)
    assert "--allow-address" in refused.err
    missing = tmp_path / "none.asc"
    refused = command("catalog", "add", "x", "/x.toml", "--keyring", missing, status=3)
    assert "there is no file" in refused.err
    (row,) = told(command, "catalog", "list")
    assert (row["name"], row["kind"], row["allowAddresses"]) == ("acme", "offers", ["127.0.0.0/8"])
    web.files["/offers.toml"] = File(b"?")
    failed = told(command, "catalog", "update", status=1)
    assert "cannot be read" in failed[1]["error"]
    command("catalog", "remove", "acme")
    assert told(command, "catalog", "list") == []
    assert "no catalogue 'acme'" in command("catalog", "remove", "acme", status=3).err


def test_entitlements(acme, command, capsys):
    refused = command("pull", "acme:os:msdn", status=4).err
    assert "ResourcePurchaseValidationFailed" in refused
    assert "calotype subscription entitlement grant msdn" in refused

    def entitlement(*words, status=0):
        assert run(["subscription", "entitlement", *words, "-o", "json"]) == status
        return capsys.readouterr()

    assert entitlement("grant", "msdn", "--expires", "2020-01-01", status=2).err
    granted = json.loads(entitlement("grant", "msdn", "--expires", "2099-01-31").out)
    assert granted["expiresAt"] == "2099-01-31T00:00:00+00:00"
    assert [e["name"] for e in json.loads(entitlement("list").out)] == ["msdn"]
    told(command, "pull", "acme:os:msdn")
    entitlement("revoke", "msdn")
    assert json.loads(entitlement("list").out) == []
