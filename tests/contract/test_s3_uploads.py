"""Uploads to S3 that nobody finished: found when they are old, and aborted."""

import datetime as dt
import os
from dataclasses import replace

import obstore
import pytest
from tests.servers.run import fresh

from calotype.errors import InvalidInput, StoreUnavailable
from calotype.store.location import parse
from calotype.store.remote import RemoteStore, Timeouts
from calotype.store.s3 import AbandonedUploads, connect

NONE = dt.timedelta(0)


@pytest.fixture
def connection(s3_server):
    return connect(parse(s3_server.url(fresh())), Timeouts())


@pytest.fixture
def uploads(connection):
    """Those of the store, and the same that call every upload old."""
    kept = connection.uploads
    assert isinstance(kept, AbandonedUploads)
    return kept, replace(kept, age=dt.timedelta(days=-1))


def begin(connection, key):
    """Start an upload of several parts as a process does that is killed then."""
    writer = obstore.open_writer(connection.parts, key, buffer_size=5 << 20, max_concurrency=1)
    writer.write(os.urandom(11 << 20))
    writer.flush()
    return writer


def test_old_uploads_are_left_over_and_swept(connection, uploads):
    young, old = uploads
    store = RemoteStore(connection)
    swept = RemoteStore(replace(connection, uploads=old))
    held = [begin(connection, f"packs/{n}") for n in range(2)]
    assert list(store.leftovers()) == list(store.sweep()) == []
    left = list(swept.leftovers())
    assert [name.partition(" (upload ")[0] for name in left] == ["packs/0", "packs/1"]
    assert list(swept.sweep()) == left
    assert list(swept.leftovers()) == []
    assert list(store.list()) == []
    assert list(young.find()) == []
    del held


def test_other_places_of_the_bucket_are_not_touched(connection, uploads, s3_server):
    elsewhere = connect(parse(s3_server.url(fresh())), Timeouts())
    held = begin(elsewhere, "packs/a")
    _, old = uploads
    assert list(old.find()) == list(old.remove()) == []
    assert isinstance(elsewhere.uploads, AbandonedUploads)
    assert len(replace(elsewhere.uploads, age=dt.timedelta(days=-1)).remove()) == 1
    del held


def test_errors_are_our_own(uploads):
    _, old = uploads
    wrong = replace(old, credentials=replace(old.credentials, secret_key="wrong"))
    with pytest.raises(InvalidInput, match="refuses to list"):
        wrong.find()
    with pytest.raises(StoreUnavailable):
        replace(old, server="http://127.0.0.1:1").find()


@pytest.mark.parametrize(
    "listing",
    [
        "",
        "<Upload><Key>x</Key></Upload>",
        "<Upload><Key>{prefix}packs/a</Key><Initiated>never</Initiated></Upload>",
        "<Upload><Key>elsewhere</Key><Initiated>2020-01-01T00:00:00Z</Initiated></Upload>",
        "<IsTruncated>true</IsTruncated>",
        "<!DOCTYPE a [<!ENTITY b 'c'>]><Upload>",
    ],
)
def test_a_listing_that_makes_no_sense_names_no_upload(uploads, monkeypatch, listing):
    young, _ = uploads
    text = listing.replace("{prefix}", young.prefix)
    monkeypatch.setattr(AbandonedUploads, "_ask", lambda *_: text)
    assert list(young.find()) == []
