"""Calotype's store as one process for each work, as the peers are: start-up and imports included."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from calotype.disk.view import OverlaySource, RawSource
from calotype.store import DirectoryStore, Ingested, Repository


def start(store: str) -> None:
    """Open a store and do nothing: what starting Python costs each of the works below."""
    Repository(DirectoryStore(store))


def put(store: str, image: str, facts: str) -> None:
    """Upload a raw disk; what the ingest did is kept in the file ``facts``."""
    repository = Repository.open_or_create(DirectoryStore(store))
    _keep(facts, repository.ingest(RawSource(Path(image)).open()))


def get(store: str, facts: str, out: str) -> None:
    """Hydrate to a raw file."""
    Repository(DirectoryStore(store)).materialize(_index(facts), Path(out))


def capture(store: str, overlay: str, base: str, facts: str, captured: str) -> None:
    """Capture what an overlay changed over the raw file that was put before."""
    repository = Repository(DirectoryStore(store))
    disk = OverlaySource(Path(overlay), Path(base)).open()
    _keep(captured, repository.ingest(disk, base=_index(facts), changed=disk.changed()))


def recompress(store: str, level: str) -> None:
    """Repack everything at another zstd level, as prune does in the background."""
    from calotype.store.ledger import MemoryLedger  # noqa: PLC0415 - the works above do not load it

    repository = Repository(DirectoryStore(store), MemoryLedger())
    repository.adopt()
    for _ in range(2):  # condemned by the first, deleted by the second
        repository.prune(grace=timedelta(0), share=2.0, level=int(level))


def _keep(facts: str, made: Ingested) -> None:
    Path(facts).write_text(json.dumps(asdict(made)))


def _index(facts: str) -> str:
    return str(json.loads(Path(facts).read_text())["index"])


WORKS: dict[str, Callable[..., None]] = {
    "start": start,
    "put": put,
    "get": get,
    "capture": capture,
    "recompress": recompress,
}

if __name__ == "__main__":
    WORKS[sys.argv[1]](*sys.argv[2:])
