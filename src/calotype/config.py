"""Where this installation keeps its things."""

import os
from dataclasses import dataclass
from pathlib import Path

from calotype.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Home:
    """The one directory of an embedded installation; every path is derived from it."""

    root: Path

    @classmethod
    def from_environment(cls) -> "Home":
        """``CALOTYPE_HOME``, else ``$XDG_DATA_HOME/calotype``, else ``~/.local/share/calotype``."""
        if home := os.environ.get("CALOTYPE_HOME"):
            return cls(Path(home).absolute())
        data = os.environ.get("XDG_DATA_HOME") or _user_home() / ".local" / "share"
        return cls(Path(data).absolute() / "calotype")

    @property
    def catalog(self) -> Path:
        """The SQLite catalogue."""
        return self.root / "catalog.db"

    @property
    def store(self) -> Path:
        """The object store of packs and indexes."""
        return self.root / "store"

    @property
    def bases(self) -> Path:
        """Materialized, read-only bases of VM disks, one raw file for each Index."""
        return self.root / "bases"

    @property
    def disks(self) -> Path:
        """Managed disks: one qcow2 overlay each."""
        return self.root / "disks"

    @property
    def vms(self) -> Path:
        """One directory for each VM: sockets, serial log, seed, links to its disks."""
        return self.root / "vms"

    @property
    def recipes(self) -> Path:
        """Built recipes and their packages; shared by all installations of a user."""
        if path := os.environ.get("CALOTYPE_RECIPE_CACHE"):
            return Path(path).absolute()
        cache = os.environ.get("XDG_CACHE_HOME") or _user_home() / ".cache"
        return Path(cache).absolute() / "calotype"

    @property
    def cache(self) -> Path:
        """What can be made again, such as the acceleration probe."""
        return self.root / "cache"

    @property
    def keys(self) -> Path:
        """The SSH key pair that is made when a VM is created without one."""
        return self.root / "keys"

    @property
    def tmp(self) -> Path:
        """Work in progress; swept when no command holds it."""
        return self.root / "tmp"

    def prepare(self) -> "Home":
        """Create the directories (mode 0700) that are missing."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (self.store, self.bases, self.disks, self.vms, self.cache, self.keys, self.tmp):
            path.mkdir(mode=0o700, exist_ok=True)
        return self


def _user_home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:  # a user id that no passwd knows, without HOME
        raise InvalidInput(
            "this user has no home directory", hint="set CALOTYPE_HOME to a directory"
        ) from error
