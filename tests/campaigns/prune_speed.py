"""How long a prune takes: over a real disk and a changed copy of it, in a directory, with a catalogue."""

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from calotype.catalog import Catalog
from calotype.disk import open_image
from calotype.store import DirectoryStore, Repository

_PIECE = 1 << 20
_CHANGED = 0.1  # of the places where the copy has data


def measure(disk: Path) -> dict[str, Any]:
    """Seconds and bytes of each step."""
    with tempfile.TemporaryDirectory(prefix="calotype-prune-", dir="/var/tmp") as name:
        place = Path(name)
        changed = place / "changed.raw"
        shutil.copyfile(disk, changed)
        _change(changed)
        catalog = Catalog(place / "catalog.db")
        objects = DirectoryStore(place / "store")
        repository = Repository.create(objects, catalog.ledger)
        result = _steps(repository, disk, changed)
        catalog.close()
        return result


def _steps(repository: Repository, disk: Path, changed: Path) -> dict[str, Any]:
    now = timedelta(0)
    seconds: dict[str, float] = {}
    _timed(seconds, "ingest the disk", lambda: _ingest(repository, disk))
    copy = _timed(seconds, "ingest the copy", lambda: _ingest(repository, changed))
    bare = Repository(repository._objects)
    bare._roots.bind = lambda: None  # type: ignore[method-assign] # measured only, nothing is kept
    for how, store in (("with", repository), ("without", bare)):
        runs = [_once(partial(_ingest, store, disk)) for _ in range(5)]
        seconds[f"ingest the disk again, {how} a ledger"] = round(sorted(runs)[2], 3)
    both = _timed(seconds, "mark (dry run), both live", lambda: repository.prune(dry_run=True))
    repository.delete_index(copy)
    gone = _timed(seconds, "prune, the copy deleted", lambda: repository.prune(grace=now))
    _timed(seconds, "prune again, nothing to do", lambda: repository.prune(grace=now))
    moved = _timed(
        seconds,
        "repack all of it and delete the old packs",
        lambda: repository.prune(grace=now, share=2),
    )
    assert repository.check().ok
    return {
        "disk": disk.stat().st_size,
        "load": round(os.getloadavg()[0], 1),
        "seconds": seconds,
        "packs": both.packs,
        "stored": both.stored,
        "freed": gone.freed,
        "moved": moved.moved,
    }


def _timed(seconds: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    began = time.monotonic()
    done = work()
    seconds[name] = round(time.monotonic() - began, 3)
    return done


def _once(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _ingest(repository: Repository, path: Path) -> str:
    with closing(open_image(path, declared="raw", second_opinion=False)) as image:
        return repository.ingest(image.disk).index


def _change(path: Path) -> None:
    """Overwrite pieces of the data of a disk."""
    chance = random.Random(1)
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        at = 0
        while True:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                return
            if chance.random() < _CHANGED:
                file.seek(at)
                file.write(chance.randbytes(min(_PIECE, size - at)))
            at = (at // _PIECE + 1) * _PIECE
            if at >= size:
                return
