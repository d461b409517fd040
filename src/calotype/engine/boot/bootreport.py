"""What a boot test saw: plain records that become JSON, and the comparison of the clones."""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import combinations
from typing import Literal

from calotype.model import OsState, Stage

#: What was found in a clone: the name of a fact, and its values (fingerprints and hashes, no secrets).
Facts = Mapping[str, tuple[str, ...]]

#: As long as one value of a fact may be, and as many facts as a clone may tell, for it is the guest's word.
_LONGEST, _MOST = 512, 1000

#: The larger part of a log is kept from its end, for that is where it went wrong.
_CUT = "\n[... {} bytes left out ...]\n"


class Must(StrEnum):
    """What is asked of a fact, among clones of one generalized image."""

    DIFFER = "differ"
    EQUAL = "equal"
    REPORT = "report"  # either is right


#: Facts by the name that a clone tells them under: what people read, and what is asked of it.
_RULES: Mapping[str, tuple[str, Must]] = {
    "machine-id": ("machine-id", Must.DIFFER),
    "dbus-machine-id": ("D-Bus machine-id", Must.DIFFER),
    "hostname": ("host name", Must.DIFFER),
    "random-seed": ("random seed", Must.DIFFER),
    "duid": ("DHCP identity", Must.DIFFER),
    "boot-id": ("boot id", Must.DIFFER),
    "mac": ("MAC address", Must.DIFFER),
    "os": ("operating system", Must.EQUAL),
    "kernel": ("kernel", Must.EQUAL),
    "packages": ("packages", Must.EQUAL),
    "disks": ("disks", Must.EQUAL),
    "user": ("users with a login", Must.REPORT),
    "address": ("addresses", Must.REPORT),
    "block": ("identities of disks", Must.REPORT),
    "swap": ("swap", Must.REPORT),
    "cloud-init": ("cloud-init", Must.REPORT),
    "failed-unit": ("failed units", Must.REPORT),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A file kept as evidence; ``path``: where, besides the image's evidence report."""

    name: str
    kind: Literal["screenshot", "serial-log"]
    size: int  # bytes
    sha256: str
    path: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CloneReport:
    """One clone: how it was reached, what it told, how it ended. Times in seconds since its start."""

    name: str  # A, B, …
    vm_id: str  # its SMBIOS UUID
    reached: Literal["agent", "ssh"] | None = None  # by what it answered first
    inside: Literal["agent", "ssh"] | None = None  # by what it was looked into
    answered_after: float | None = None
    ready_after: float | None = None  # its own start was over
    login: bool | None = None  # the throw-away user got in by its key; None: not asked
    sudo: bool | None = None
    host_keys: Mapping[str, str] = field(default_factory=dict)  # type -> SHA256:…
    facts: Facts = field(default_factory=dict)
    off_after: float | None = None  # from being asked to its end; None: it had to be killed
    clean: bool | None = None  # its file systems were left clean; None: nobody can tell
    problem: str | None = None
    last_words: tuple[str, ...] = ()  # the end of its serial log, when there is a problem
    artifacts: tuple[Artifact, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """One fact of all clones; ``must_differ`` is ``None`` where either is right."""

    what: str
    must_differ: bool | None
    values: tuple[str | None, ...]  # one of each clone; None: it has none
    ok: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class BootReport:
    """A boot test. ``problems`` are why it failed, ``notes`` what is worth a line all the same."""

    image_id: str
    image_name: str
    os_state: OsState
    indexes: tuple[str, ...]  # of the disks that were started from, the OS disk first
    acceleration: str  # kvm or tcg
    parallel: bool
    started_at: str  # ISO 8601, UTC
    seconds: float
    clones: tuple[CloneReport, ...]
    differences: tuple[Difference, ...]
    base_untouched: bool
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    stage: Stage

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against promoting the image."""
        return not self.problems


def parse(output: bytes) -> Facts:
    """The facts in lines of ``name TAB value``; at most a bounded number of a bounded length."""
    facts: dict[str, list[str]] = {}
    for line in output.decode("utf-8", "replace").split("\n")[:_MOST]:
        name, tab, value = line.partition("\t")
        value = value.strip()[:_LONGEST]
        if tab and value and value not in facts.setdefault(name[:64], []):
            facts[name[:64]].append(value)
    return {name: tuple(values) for name, values in facts.items() if values}


def fingerprints(lines: Iterable[str]) -> dict[str, str]:
    """Type -> fingerprint as OpenSSH prints it, of public keys in lines of ``type base64``."""
    found = {}
    for line in lines:
        kind, _, blob = line.strip().partition(" ")
        try:
            key = base64.b64decode(blob.split(" ")[0], validate=True)
        except (binascii.Error, ValueError):
            continue
        if key:
            digest = base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")
            found[kind[:64]] = f"SHA256:{digest}"
    return found


def compare(clones: Sequence[CloneReport]) -> tuple[Difference, ...]:
    """Every fact of the clones side by side, with what must differ, what must be equal, and whether it is."""
    kinds = sorted({kind for clone in clones for kind in clone.host_keys})
    keys = [_key_difference(kind, clones) for kind in kinds]
    return (*keys, *(_difference(name, clones) for name in _RULES if _known(name, clones)))


def excerpt(log: bytes, limit: int = 1 << 20) -> bytes:
    """A log of at most ``limit`` bytes: a quarter from its head, the rest from its tail."""
    if len(log) <= limit:
        return log
    note = _CUT.format(len(log) - limit).encode()
    head = limit // 4
    return log[:head] + note + log[len(log) - (limit - head - len(note)) :]


def _key_difference(kind: str, clones: Sequence[CloneReport]) -> Difference:
    values = [(clone.host_keys[kind],) if kind in clone.host_keys else () for clone in clones]
    return _judge(f"SSH host key ({kind})", Must.DIFFER, values)


def _difference(name: str, clones: Sequence[CloneReport]) -> Difference:
    what, must = _RULES[name]
    return _judge(what, must, [clone.facts.get(name, ()) for clone in clones])


def _known(name: str, clones: Sequence[CloneReport]) -> bool:
    return any(name in clone.facts for clone in clones)


def _judge(what: str, must: Must, values: Sequence[tuple[str, ...]]) -> Difference:
    pairs = list(combinations(values, 2))
    if must is Must.DIFFER:
        ok = not any(set(one) & set(other) for one, other in pairs)
    else:
        ok = must is Must.REPORT or all(one == other for one, other in pairs)
    wanted = {Must.DIFFER: True, Must.EQUAL: False, Must.REPORT: None}[must]
    return Difference(what, wanted, tuple("\n".join(value) or None for value in values), ok)
