"""Debian's archive as this machine is set up to reach it: mirror, proxy, indexes, packages."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from calotype.errors import ToolFailed
from calotype.run import Limits, run

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_DEFAULT = "http://deb.debian.org/debian"
_DEFAULT_SECURITY = "http://deb.debian.org/debian-security"

#: Settings of the host's APT that say how to fetch; the rest (hooks, pinning) is the host's own affair.
_FETCH = re.compile(
    r"Acquire::(Check-(Date|Valid-Until)|Force(IPv4|IPv6)|Retries|Queue-Mode|Proxy-Auto-Detect"
    r"|(http|https|ftp|tor)(::.*)?)"
)


@dataclass(frozen=True, slots=True)
class Source:
    """One archive: where it is, and which suites and components of it are used."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]


def host_sources(directory: Path = Path("/etc/apt")) -> list[Source]:
    """Every binary archive in the machine's own configuration, in order; both formats."""
    paths = [directory / "sources.list"]
    parts = directory / "sources.list.d"
    if parts.is_dir():
        paths += sorted(p for p in parts.iterdir() if p.suffix in {".list", ".sources"})
    found: list[Source] = []
    for path in paths:
        if path.is_file():
            text = path.read_text(errors="replace")
            found += _deb822(text) if path.suffix == ".sources" else _one_line(text)
    return found


def _one_line(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        bare = re.sub(r"\[[^]]*\]", "", line.split("#", 1)[0])
        words = bare.split()
        if len(words) >= 3 and words[0] == "deb":
            yield Source(words[1], (words[2],), tuple(words[3:]))


def _deb822(text: str) -> Iterator[Source]:
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n[ \t]*\n", kept):
        unfolded = re.sub(r"\n[ \t]+", " ", stanza)
        pairs = (line.split(":", 1) for line in unfolded.splitlines() if ":" in line)
        fields = {key.strip().lower(): value.split() for key, value in pairs}
        if "deb" not in fields.get("types", []) or fields.get("enabled") == ["no"]:
            continue
        for uri in fields.get("uris", []):
            yield Source(uri, tuple(fields.get("suites", [])), tuple(fields.get("components", [])))


def mirror_lines(suite: str, known: Sequence[Source]) -> list[str]:
    """The ``sources.list`` of ``suite``: the machine's own mirrors, or Debian's where it names none."""
    plain: str | None = None
    security: str | None = None
    updates = False
    for source in known:
        where = urlsplit(source.uri)
        last = where.path.rstrip("/").rsplit("/", 1)[-1]
        if where.scheme not in {"http", "https"} or "main" not in source.components:
            continue
        if last == "debian":
            plain = plain or source.uri
            updates = updates or any(s.endswith("-updates") for s in source.suites)
        elif last == "debian-security":
            security = security or source.uri
    if plain is None:
        plain, security, updates = _DEFAULT, _DEFAULT_SECURITY, True
    pairs = [(plain, suite)]
    pairs += [(plain, f"{suite}-updates")] if updates else []
    pairs += [(security, f"{suite}-security")] if security else []
    return [f"deb [signed-by={_KEYRING}] {uri} {name} main" for uri, name in pairs]


def fetch_options() -> list[str]:
    """How the host's APT reaches its mirrors (proxies and the like), as lines of ``apt.conf``."""
    dump = run(["apt-config", "dump", "--format", '%F "%v";%n', "Acquire"], limits=Limits(wall=30))
    lines = dump.stdout.decode("utf-8", "replace").splitlines()
    kept = [line for line in lines if _FETCH.fullmatch(line.split(" ", 1)[0])]
    return [*(line for line in kept if not line.endswith(' "";')), 'Acquire::Languages "none";']


class Archive:
    """A private APT with its own indexes: it installs nothing and touches nothing of the host's."""

    def __init__(self, work: Path, suite: str, packages: Path, options: Iterable[str]) -> None:
        self._packages = packages
        self._conf = work / "apt.conf"
        for name in ("etc/apt", "state/lists/partial", "cache"):
            (work / name).mkdir(parents=True, exist_ok=True)
        (work / "state/status").touch()
        sources = work / "etc/apt/sources.list"
        sources.write_text("\n".join(mirror_lines(suite, host_sources())) + "\n")
        settings = {
            "Dir": work,
            "Dir::Etc": work / "etc/apt",
            "Dir::State": work / "state",
            "Dir::State::status": work / "state/status",
            "Dir::Cache": work / "cache",
            "Dir::Etc::Netrc": "/etc/apt/auth.conf",
            "Dir::Etc::NetrcParts": "/etc/apt/auth.conf.d",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Sandbox::User": "root",
        }
        lines = [f'{key} "{value}";' for key, value in settings.items()]
        self._conf.write_text("\n".join([*lines, *options]) + "\n")

    def _apt(self, *argv: str, wall: float = 900) -> str:
        env = {**os.environ, "APT_CONFIG": str(self._conf), "LC_ALL": "C.UTF-8"}
        return run(list(argv), env=env, limits=Limits(wall=wall)).stdout.decode("utf-8", "replace")

    def update(self) -> None:
        """Fetch the indexes.

        Raises:
            ToolFailed: the mirror cannot be reached, or its signature is not good.
        """
        self._apt("apt-get", "-qq", "-o", "APT::Update::Error-Mode=any", "update")

    def real_kernel(self, meta: str) -> str:
        """The package that the kernel's (meta) package stands for today."""
        listing = self._apt("apt-cache", "depends", "--no-recommends", "--no-suggests", meta)
        found = re.search(r"Depends: (linux-image-\d\S+)", listing)
        return found[1] if found else meta

    def download(self, names: Sequence[str]) -> list[Path]:
        """The ``.deb`` files of exactly these packages, fetched unless they are there already.

        Raises:
            ToolFailed: a package is unknown, or a file does not match its checksum.
        """
        listing = self._apt("apt-get", "-qq", "--print-uris", "download", *names)
        wanted = re.findall(r"^'([^']+)' (\S+) (\d+) (\S+)$", listing, re.MULTILINE)
        if len(wanted) != len(names):
            raise ToolFailed(f"APT found {len(wanted)} of the {len(names)} packages asked for")
        # "apt-get download" leaves a file alone whose checksum is right, and replaces any other.
        command = 'cd "$1" && shift && exec apt-get -qq download "$@"'
        self._apt("sh", "-c", command, "sh", str(self._packages), *names)
        files = {file.split("_", 1)[0]: self._packages / file for _uri, file, _size, _sum in wanted}
        return [files[name] for name in names]
