"""Some cells of the campaign of faults (tests/campaigns/faults.py), and proof that its cells can fail."""

import pytest
from tests.campaigns import faults
from tests.campaigns.faults import OPERATIONS, TIMEOUTS, Campaign, Cell
from tests.servers.proxy import Kind, Plan, Proxy, planned
from tests.servers.run import fresh

from calotype.errors import InvalidInput, NotFound, StoreUnavailable
from calotype.store.location import parse
from calotype.store.remote import RemoteStore, Timeouts
from calotype.store.retry import Patience
from calotype.store.server import connect


@pytest.fixture(scope="module")
def campaign(s3_server, tmp_path_factory):
    return Campaign(s3_server, tmp_path_factory.mktemp("faults"))


def passes(result):
    assert result.outcome in {"success", "error", "said"}, result
    assert result.met, result


@pytest.mark.parametrize("number", range(len(Kind)))
def test_each_kind_of_fault_in_some_operation(campaign, number):
    """The position wanders with the kind, so that reads, writes and listings all meet some."""
    kind = list(Kind)[number]
    names = list(OPERATIONS)
    for step in range(len(names)):
        operation = names[(5 * number + step) % len(names)]
        matching = sum(map(kind.applies, campaign.requests(operation, cached=False)))
        if matching:
            break
    passes(campaign.run(Cell(operation, kind, 7 * number % matching, 1, cached=bool(number % 2))))


@pytest.mark.parametrize("operation", ["create", "ingest changes", "delete", "prune"])
def test_lost_answers_of_writes(campaign, operation):
    asked = campaign.requests(operation, cached=False)
    writes = [n for n, r in enumerate(asked) if r.method in {"PUT", "DELETE"}]
    passes(campaign.run(Cell(operation, Kind.LOST, writes[0], 1, cached=False)))


def test_a_server_that_stays_away_ends_in_words(campaign):
    result = campaign.run(Cell("ingest changes", Kind.BUSY, 2, faults.FOREVER, cached=False))
    passes(result)
    assert result.outcome == "error"
    assert "answered 503 SlowDown (5 attempts" in result.detail


def test_without_patience_the_campaign_fails(campaign, monkeypatch):
    monkeypatch.setattr(faults, "PATIENCE", Patience(attempts=1))
    result = campaign.run(Cell("ingest changes", Kind.REFUSED, 3, 1, cached=False))
    assert result.outcome == "FAILED"
    assert "one fault was too much" in result.detail


def test_a_store_that_forgets_what_it_acknowledged_fails_the_campaign(campaign, monkeypatch):
    real = RemoteStore.upload

    def forgets(self, key, file):
        if self._part != faults.PART:
            real(self, key, file)

    monkeypatch.setattr(RemoteStore, "upload", forgets)
    result = campaign.run(Cell("ingest changes", Kind.SLOW, 0, 1, cached=False))
    assert result.outcome == "FAILED"


@pytest.fixture
def proxied(s3_server, tmp_path):
    """A bare store behind a proxy, and the store itself."""
    prefix = fresh()
    with Proxy(s3_server.port, stall=2) as proxy:
        store, direct = (
            RemoteStore(connect(parse(url), TIMEOUTS), spool=tmp_path)
            for url in (s3_server.url(prefix, proxy.port), s3_server.url(prefix))
        )
        yield store, proxy, direct


@pytest.mark.parametrize(
    "kind",
    [
        *(Kind.BUSY, Kind.BROKEN, Kind.REFUSED, Kind.LOST, Kind.LOST_RESET, Kind.CUT),
        *(Kind.SHORT, Kind.STALLED),
    ],
)
def test_a_bare_store_says_that_an_attempt_failed(proxied, kind):
    store, proxy, _ = proxied
    store.put("packs/a", b"0123456789" * 100)
    with planned(proxy, Plan(kind, 0)), pytest.raises(StoreUnavailable) as caught:
        store.get_range("packs/a", 100, 500)
    assert "127.0.0.1" not in caught.value.message
    assert store.get_range("packs/a", 100, 500) == b"0123456789" * 50


@pytest.mark.parametrize("kind", [Kind.SHORT, Kind.FLIPPED])
def test_a_small_object_that_arrives_damaged_is_asked_for_again(proxied, kind):
    store, proxy, _ = proxied
    store.put("config", b"0123456789")
    with planned(proxy, Plan(kind, 0)):
        assert store.get("config") == b"0123456789"


def test_a_server_that_ignores_ranges_is_named(proxied, monkeypatch):
    store, proxy, _ = proxied
    store.put("packs/a", b"0123456789")
    real = proxy.fault

    def without_range(request):
        del request.headers["Range"]
        return real(request)

    monkeypatch.setattr(proxy, "fault", without_range)
    with pytest.raises((InvalidInput, StoreUnavailable)):
        store.get_range("packs/a", 2, 3)


def test_an_upload_whose_parts_fail_is_committed_again(proxied):
    store, proxy, direct = proxied
    data = bytes(range(256)) * (20 << 12)
    writer = store.writer()
    writer.write([data])
    with planned(proxy, Plan(Kind.REFUSED, 0, 1 << 30)), pytest.raises(StoreUnavailable):
        writer.commit("packs/a")
    with pytest.raises(NotFound):
        direct.size("packs/a")
    writer.commit("packs/a")
    assert direct.get("packs/a") == data


def test_a_wrong_key_and_a_missing_bucket_are_named(s3_server, monkeypatch):
    url = s3_server.url(fresh())
    missing = RemoteStore(connect(parse(url.replace("images", "elsewhere", 1)), Timeouts()))
    with pytest.raises(InvalidInput, match="no such bucket"):
        missing.get("config")
    with pytest.raises(InvalidInput, match="no such bucket"):
        list(missing.list())
    secret = "x" * 20 + "canary"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    refused = RemoteStore(connect(parse(url), Timeouts()))
    with pytest.raises(InvalidInput, match="refuses these credentials") as caught:
        refused.get("config")
    assert "AWS_ACCESS_KEY_ID" in (caught.value.hint or "")
    assert secret not in repr(caught.value)
