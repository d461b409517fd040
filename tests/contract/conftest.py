"""Every kind of store, bare and behind every wrapper. The servers start once, when one is first asked for."""

import os

import pytest
from tests.servers.run import azurite, fresh, seaweedfs

from calotype.store import DirectoryStore, MemoryStore
from calotype.store.cache import CacheStore
from calotype.store.location import parse
from calotype.store.remote import RemoteStore, Timeouts
from calotype.store.retry import RetryStore
from calotype.store.server import connect

WRAPPERS = ("bare", "retry", "cache", "cache-retry")


def wrapped(store, how, path):
    """The store behind these wrappers."""
    if "retry" in how:
        store = RetryStore(store)
    return CacheStore(store, path, 64 << 20) if "cache" in how else store


@pytest.fixture(scope="session", autouse=True)
def _no_credentials():
    """What the machine's owner has set is no part of a test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith(("AWS_", "AZURE_"))]:
            patch.delenv(name)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        yield patch


def _serve(context, patch):
    with context as server:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def s3_server(_no_credentials, tmp_path_factory):
    """A running SeaweedFS."""
    yield from _serve(seaweedfs(tmp_path_factory.mktemp("weed")), _no_credentials)


@pytest.fixture(scope="session")
def azure_server(_no_credentials, tmp_path_factory):
    """A running Azurite."""
    yield from _serve(azurite(tmp_path_factory.mktemp("azurite")), _no_credentials)


@pytest.fixture(params=["memory", "directory", "s3", "azure"])
def bare(request, tmp_path):
    """A store of each kind, empty."""
    if request.param == "memory":
        return MemoryStore()
    if request.param == "directory":
        return DirectoryStore(tmp_path / "store")
    server = request.getfixturevalue(f"{request.param}_server")
    return RemoteStore(connect(parse(server.url(fresh())), Timeouts()), spool=tmp_path)


@pytest.fixture(params=WRAPPERS)
def store(request, bare, tmp_path):
    """A store of each kind behind each wrapper, empty."""
    made = wrapped(bare, request.param, tmp_path / "cache")
    yield made
    made.close()
