"""Where this installation keeps its things, and what it was told."""

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from calotype import units
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
    def config(self) -> Path:
        """What the user set, in TOML; there need not be one."""
        return self.root / "config.toml"

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
    def evidence(self) -> Path:
        """What was proved of images: one directory each, named by its id."""
        return self.root / "evidence"

    @property
    def keys(self) -> Path:
        """The SSH key pair of VMs created without one, and the key that signs reports."""
        return self.root / "keys"

    @property
    def market(self) -> Path:
        """Publishers' indexes, and how new they were: older ones are refused, so this is no cache."""
        return self.root / "market"

    @property
    def community(self) -> Path:
        """What is trusted of followed installations: one directory each."""
        return self.root / "community"

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


class Setting(NamedTuple):
    """One thing that can be set: ``key`` in the file, ``environment`` beside it, which wins."""

    key: str
    environment: str
    parse: Callable[[str], Any]
    default: str
    help: str


#: Everything that can be set.
SETTINGS = (
    Setting(
        "store.url",
        "CALOTYPE_STORE",
        str,
        "",
        "where packs and Indexes are kept: a directory, s3://BUCKET/PREFIX?endpoint=URL, "
        "az://ACCOUNT/CONTAINER/PREFIX; empty: in Calotype's own directory",
    ),
    Setting(
        "store.cache",
        "CALOTYPE_STORE_CACHE",
        units.size,
        "10G",
        "how much of a remote store is kept on this host",
    ),
    Setting(
        "region",
        "CALOTYPE_REGION",
        str,
        "local",
        "what this installation is called where image versions are barred from regions; other regions are "
        "the stores under [stores]",
    ),
    Setting(
        "vm.lazy_above",
        "CALOTYPE_LAZY_ABOVE",
        units.size,
        "64M",
        "VMs of images with more data start at once, while their base is fetched (a store that is "
        "not on this host: always)",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the environment says, else ``config.toml``, else the default.

    ``values`` are by key; ``stores`` are the URLs of other stores by the name that the user gave them.
    """

    values: Mapping[str, Any]
    stores: Mapping[str, str]

    @classmethod
    def load(cls, path: Path) -> "Settings":
        """Read the settings; a file that is not there sets nothing.

        Raises:
            InvalidInput: a key or a value is not one.
        """
        flat = _flat(_parsed(path))
        stores = {k.removeprefix("stores."): v for k, v in flat.items() if k.startswith("stores.")}
        known = {setting.key for setting in SETTINGS}
        for key in flat.keys() - known - {f"stores.{name}" for name in stores}:
            near = get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise InvalidInput(f"{path}: there is no setting '{key}'", hint=hint)
        values = {}
        for setting in SETTINGS:
            text = os.environ.get(setting.environment) or flat.get(setting.key, setting.default)
            values[setting.key] = setting.parse(text)
        return cls(values=MappingProxyType(values), stores=MappingProxyType(stores))

    def store(self, text: str) -> str:
        """The URL of another store: one that ``config.toml`` names under ``[stores]``, or ``text``."""
        return self.stores.get(text, text)


def _parsed(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not TOML: {error}") from None


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"store": {"url": "x"}}`` as ``{"store.url": "x"}``."""
    flat: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, str | int) and not isinstance(value, bool):
            flat[prefix + key] = str(value)
        else:
            raise InvalidInput(f"the setting '{prefix}{key}' is neither a text nor a number")
    return flat
