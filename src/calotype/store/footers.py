"""The footers of packs as they are needed: a bounded number in memory, from a cache or from the store."""

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3

from calotype.errors import StoreDamaged
from calotype.store.objects import ReadableStore, Stored
from calotype.store.pack import PREFIX, Pack, load, parse

log = logging.getLogger("calotype.store")

_ROOM = 32 << 20  # bytes of footers in memory, with what is derived from them
_DERIVED = 16  # bytes a chunk


class Footers:
    """Reads footers, and keeps the last ones. Safe to use from several threads at once.

    With a ``directory`` every footer is kept there as well, so that it is fetched once; a file is believed
    when its BLAKE3 is the pack's id.
    """

    def __init__(self, objects: ReadableStore, directory: Path | None) -> None:
        self._objects = objects
        self._directory = directory
        self._lock = threading.Lock()
        self._packs: OrderedDict[str, Pack] = OrderedDict()
        self._used = 0

    def get(self, stored: Stored) -> Pack:
        """The footer of a pack.

        Raises:
            NotFound: the pack is gone.
            StoreDamaged: it has no valid footer.
            InvalidInput: it was written by a newer version.
        """
        with self._lock:
            if (pack := self._packs.get(stored.key)) is not None:
                self._packs.move_to_end(stored.key)
                return pack
        pack = self._cached(stored)
        if pack is None:
            pack = load(self._objects, stored.key, stored.size)
            self._save(pack)
        self._keep(pack)
        return pack

    def add(self, pack: Pack) -> None:
        """Keep the footer of a pack that was just sealed."""
        self._save(pack)
        self._keep(pack)

    def drop(self, keys: Sequence[str]) -> None:
        """Forget the footers of packs that were deleted."""
        with self._lock:
            for key in keys:
                if (pack := self._packs.pop(key, None)) is not None:
                    self._used -= _cost(pack)
        if self._directory is not None:
            for key in keys:
                self._file(self._directory, key).unlink(missing_ok=True)

    def prune(self, live: Sequence[str]) -> None:
        """Remove the files of packs that are not among these."""
        if self._directory is None:
            return
        names = {key.removeprefix(PREFIX) for key in live}
        for path in self._directory.iterdir():
            if path.name.partition(".")[0] not in names:
                path.unlink(missing_ok=True)

    def _keep(self, pack: Pack) -> None:
        with self._lock:
            if pack.key not in self._packs:
                self._packs[pack.key] = pack
                self._used += _cost(pack)
            while self._used > _ROOM and len(self._packs) > 1:
                self._used -= _cost(self._packs.popitem(last=False)[1])

    @staticmethod
    def _file(directory: Path, key: str) -> Path:
        return directory / key.removeprefix(PREFIX)

    def _cached(self, stored: Stored) -> Pack | None:
        if self._directory is None:
            return None
        path = self._file(self._directory, stored.key)
        try:
            foot = path.read_bytes()
        except OSError:
            return None
        if blake3(foot).hexdigest() != path.name:
            return None
        with contextlib.suppress(StoreDamaged):
            return parse(foot, path.name, stored.size)
        return None

    def _save(self, pack: Pack) -> None:
        if self._directory is None:
            return
        path = self._file(self._directory, pack.key)
        # One name for all writers: they write the same bytes, and a torn file is not believed.
        part = path.with_name(path.name + ".part")
        try:
            part.write_bytes(pack.foot)
            part.rename(path)
        except FileNotFoundError:
            pass  # another writer was faster
        except OSError as error:  # a full disk: the cache can wait
            log.warning("cannot keep a footer in %s: %s", self._directory, error.strerror)


def _cost(pack: Pack) -> int:
    return len(pack.foot) + _DERIVED * len(pack.lengths)
