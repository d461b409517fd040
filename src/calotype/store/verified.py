"""What was verified when: the memory of sampled and interrupted checks.

It lies outside of the store, as a cache that may be lost: it decides what is read next, never what is right.
"""

import contextlib
import json
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from calotype.disk.durable import write_private

_FORMAT = "calotype verified"
_VERSION = 1


class Verified:
    """For each part of each pack, when it was last read and found right. Safe for several threads.

    Times are whole seconds since 1970; 0 is never. A part is a read of about 4 MiB. Without ``path`` it is
    forgotten with the process. A file that cannot be read or understood counts as empty.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._times: dict[str, list[int]] = {}
        self.begun: int | None = None  # when the last full check began that did not end
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            if path is not None:
                self._parse(json.loads(path.read_bytes()))

    def _parse(self, content: dict[str, Any]) -> None:
        if content["format"] != _FORMAT or content["version"] != _VERSION:
            return
        begun = content["begun"]
        times = {str(pack): [int(t) for t in some] for pack, some in content["packs"].items()}
        self.begun, self._times = (None if begun is None else int(begun)), times

    def times(self, pack: str, parts: int) -> Sequence[int]:
        """When each of the ``parts`` of the pack of this id was verified."""
        known = self._times.get(pack, [])
        return known if len(known) == parts else [0] * parts

    def note(self, pack: str, part: int, parts: int, when: int) -> None:
        """Part ``part`` of ``parts`` was found right (or, ``when`` 0, was not)."""
        with self._lock:
            known = self._times.get(pack, [])
            if len(known) != parts:
                known = self._times[pack] = [0] * parts
            known[part] = when

    def keep(self, packs: Collection[str]) -> None:
        """Forget all other packs."""
        with self._lock:
            self._times = {pack: t for pack, t in self._times.items() if pack in packs}

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self._path is None:
            return
        with self._lock:
            content = {
                "format": _FORMAT,
                "version": _VERSION,
                "begun": self.begun,
                "packs": self._times,
            }
            data = json.dumps(content, separators=(",", ":")).encode()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_private(self._path, data)
