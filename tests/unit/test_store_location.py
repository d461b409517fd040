"""Where a store may be: URLs, endpoints, credentials, and what is never said."""

import logging

import pytest

from calotype.errors import InvalidInput, StoreUnavailable
from calotype.store import DirectoryStore, MemoryStore
from calotype.store.azure import connect as azure_connect
from calotype.store.location import endpoint, open_store, parse
from calotype.store.remote import Timeouts
from calotype.store.s3 import Credentials, find_credentials
from calotype.store.s3 import connect as s3_connect

SECRET = "hunter2hunter2"


def test_paths_and_memory(tmp_path):
    for url, name in ((str(tmp_path / "a"), "a"), (f"file://{tmp_path}/b%20c", "b c")):
        store = open_store(url)
        assert isinstance(store, DirectoryStore)
        assert store.path == tmp_path / name
    assert isinstance(open_store(f"file://localhost{tmp_path}/d"), DirectoryStore)
    assert isinstance(open_store("memory:"), MemoryStore)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/x",
        "s3:",
        "s3://",
        "s3:///prefix",
        "s3://bucket/../x",
        "s3://bucket/a//b",
        "s3://bucket/a b",
        "s3://bucket/.calotype",
        "s3://bucket?nothing=1",
        "s3://bucket?allow_http=perhaps",
        "s3://bucket#part",
        "s3://bucket?endpoint",
        "s3://[::1",
        "az://account",
        "az://account/",
        "az://account/c?region=x",
        "memory:x",
        "file://elsewhere/x",
        "file:relative",
        "file:///x?y=z",
        "file:///x%00y",
    ],
)
def test_what_is_no_store_is_refused_in_words(url):
    with pytest.raises(InvalidInput) as caught:
        open_store(url)
    assert caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        f"s3://key:{SECRET}@bucket/x",
        f"s3://bucket/x?secret={SECRET}",
        f"s3://bucket/x?{SECRET}=1",
        f"az://account/c?sig={SECRET}",
        f"az://account/c?endpoint=https://user:{SECRET}@host",
        f"s3://bucket/x?endpoint=https://host?token={SECRET}",
        f"s3://bucket/x?endpoint={SECRET}",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(InvalidInput) as caught:
        open_store(url)
    assert SECRET not in f"{caught.value} {caught.value.hint} {caplog.text}"


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://127.0.0.1:9000", True),
        ("http://[::1]:9000", True),
        ("http://localhost:9000", True),
        ("http://localhost.example.com", False),
        ("http://10.0.0.1", False),
        ("http://127.0.0.1.example.com", False),
        ("https://s3.example.com", True),
    ],
)
def test_plain_http_stays_on_this_machine(url, allowed):
    location = parse("s3://bucket")
    if allowed:
        assert endpoint(location, url) == url
    else:
        with pytest.raises(InvalidInput, match="plain HTTP"):
            endpoint(location, url)
        assert endpoint(parse("s3://bucket?allow_http=true"), url) == url


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "https://h:0", "https://h:99999", "//h", "h"]
)
def test_an_endpoint_is_a_plain_url(url):
    with pytest.raises(InvalidInput):
        endpoint(parse("s3://bucket?allow_http=true"), url)


@pytest.fixture
def environment(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
    return monkeypatch


def test_credentials_come_from_the_environment_then_the_file(environment, tmp_path):
    assert find_credentials() is None
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = A\naws_secret_access_key = S%\n"
        "[other]\naws_access_key_id = B\naws_secret_access_key = T\naws_session_token = U\n"
    )
    assert find_credentials() == Credentials("A", "S%")
    environment.setenv("AWS_PROFILE", "other")
    assert find_credentials() == Credentials("B", "T", "U")
    environment.setenv("AWS_ACCESS_KEY_ID", "C")
    environment.setenv("AWS_SECRET_ACCESS_KEY", "V")
    assert find_credentials() == Credentials("C", "V")
    (tmp_path / "credentials").write_text("no sections")
    assert find_credentials() == Credentials("C", "V")


def test_a_server_that_is_not_there_is_named_soon(environment):
    environment.setenv("AWS_ACCESS_KEY_ID", "A")
    environment.setenv("AWS_SECRET_ACCESS_KEY", "S")
    with pytest.raises(
        StoreUnavailable, match="s3://bucket: the server cannot be reached"
    ) as caught:
        open_store("s3://bucket?endpoint=http://127.0.0.1:1")
    assert caught.value.hint == "check the network and the server, then repeat the command"


def test_an_endpoint_of_the_environment_is_held_to_the_same_rule(environment):
    environment.setenv("AWS_ENDPOINT_URL", "http://10.0.0.1")
    environment.setenv("AWS_ALLOW_HTTP", "true")
    with pytest.raises(InvalidInput, match="plain HTTP"):
        s3_connect(parse("s3://bucket"), Timeouts())


def test_nothing_that_holds_credentials_shows_them(environment):
    environment.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    environment.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    connection = s3_connect(parse("s3://bucket/p"), Timeouts())
    shown = f"{connection!r} {connection.uploads!r} {find_credentials()!r}"
    assert SECRET not in shown
    environment.setenv("AZURE_STORAGE_ACCOUNT_KEY", SECRET + "!")
    with pytest.raises(InvalidInput) as caught:
        azure_connect(parse("az://account/container"), Timeouts())
    assert SECRET not in f"{caught.value!r} {caught.value.hint}"


def test_a_connection_string_names_the_endpoint_and_the_key(environment):
    environment.setenv(
        "AZURE_STORAGE_CONNECTION_STRING",
        "DefaultEndpointsProtocol=http;AccountName=acct;AccountKey=a2V5PT0=;"
        "BlobEndpoint=http://10.0.0.1/acct;",
    )
    with pytest.raises(InvalidInput, match=r"plain HTTP to 10\.0\.0\.1"):
        azure_connect(parse("az://acct/container"), Timeouts())
    # That of another account is not used.
    environment.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    assert azure_connect(parse("az://other/container"), Timeouts()).name == "az://other/container"
