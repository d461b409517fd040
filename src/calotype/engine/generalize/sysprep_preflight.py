"""The pre-flight of Sysprep: what would stop it, or would not survive it, and the cure of each."""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from calotype.errors import GuestError, InvalidInput
from calotype.guest.windows_log import printable
from calotype.guest.windows_roles import HYPER_V, ROLES
from calotype.machine import Agent
from calotype.strict import require_shallow

_TIMEOUT = 600.0  # seconds: listing features and packages takes a small VM minutes
_LONGEST = 1 << 20  # bytes of its answer
_SHOWN = 5  # of a list
_ROOT = re.compile(r"[A-Za-z]:\\[A-Za-z0-9_. -]{1,64}")
_CONTROLLER = 4  # DomainRole: a backup or primary domain controller
_MEMBERS = (1, 3)
_PENDING = {
    "servicing": "Component Based Servicing waits for a restart",
    "update": "Windows Update waits for a restart",
    "renames": "files wait for a restart to be renamed or removed",
}
_APPS = (
    "for each: Remove-AppxPackage -AllUsers -Package NAME, or provision it for all users "
    "(Add-AppxProvisionedPackage); and stop the Store from updating apps"
)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why Sysprep would fail (``fatal``), or what it would leave broken; and what helps."""

    what: str
    cure: str
    fatal: bool = True


@dataclass(frozen=True, slots=True)
class Preflight:
    """What the guest said of itself; ``root`` is its Windows directory."""

    root: str
    product: str
    obstacles: tuple[Obstacle, ...]

    @property
    def fatal(self) -> tuple[Obstacle, ...]:
        """What would make Sysprep fail."""
        return tuple(obstacle for obstacle in self.obstacles if obstacle.fatal)


def preflight(agent: Agent) -> Preflight:
    """Ask a running Windows what would stop Sysprep; nothing is changed.

    Raises:
        GuestError: it has no agent or no PowerShell that answers, or answers what makes no sense.
    """
    done = agent.run(command(), timeout=_TIMEOUT)
    if done.status != 0:
        reason = printable(done.stderr.decode("utf-8", "replace")) or f"status {done.status}"
        raise GuestError(f"the pre-flight of Sysprep failed in the guest: {reason}")
    return parse(done.stdout)


def command() -> list[str]:
    """PowerShell with the pre-flight's script in its command line, so that no file is left."""
    script = (
        files("calotype.engine.generalize").joinpath("sysprep_preflight.ps1").read_text("utf-8")
    )
    lines = (line.strip() for line in script.splitlines())
    small = "\n".join(line for line in lines if line and not line.startswith("#"))
    encoded = base64.b64encode(small.encode("utf-16-le")).decode("ascii")
    options = ["-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass"]
    return ["powershell.exe", *options, "-EncodedCommand", encoded]


def parse(answer: bytes) -> Preflight:
    """Judge what the script said.

    Raises:
        GuestError: it is no such answer.
    """
    try:
        require_shallow(answer[:_LONGEST], "the answer")
        lines = answer[:_LONGEST].decode("utf-8-sig").strip().splitlines()
        said = json.loads(lines[-1]) if lines else None
    except (ValueError, InvalidInput) as error:
        raise GuestError("the pre-flight of Sysprep answers what cannot be read") from error
    if not isinstance(said, dict) or not _ROOT.fullmatch(str(said.get("windows"))):
        raise GuestError("the pre-flight of Sysprep does not say where Windows is")
    return Preflight(said["windows"], _text(said, "product"), tuple(_obstacles(said)))


def _obstacles(said: dict[str, Any]) -> Iterator[Obstacle]:
    yield from _roles(said)
    if apps := _list(said, "apps"):
        yield Obstacle(
            f"Store apps are installed and not provisioned for all: {_some(apps)}", _APPS
        )
    for name in _list(said, "pending"):
        what = _PENDING.get(name, "a restart is pending")
        yield Obstacle(what, "restart Windows until none is", fatal=name != "renames")
    if volumes := _list(said, "bitlocker"):
        yield Obstacle(
            f"BitLocker is on, or not yet off ({_some(volumes)})",
            "manage-bde -off C:, and wait until it is decrypted",
        )
    if _number(said, "rearms") == 0 and _number(said, "skiprearm") != 1:
        yield Obstacle(
            "Windows may not be rearmed any more (Sysprep ran as often as it may, 1,001 times since 8.1)",
            "use an older image, or set SkipRearm=1 in SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion\\"
            "SoftwareProtectionPlatform",
        )
    if _number(said, "upgraded"):
        yield Obstacle(
            "it was upgraded from an older Windows",
            "Sysprep generalizes clean installations only: install anew",
        )
    if _number(said, "running"):
        yield Obstacle("another Sysprep runs", "wait until it has ended, or end it")
    yield from _warnings(said)


def _roles(said: dict[str, Any]) -> Iterator[Obstacle]:
    features = {name.casefold() for name in _list(said, "features")}
    build = _number(said, "build") or 0
    for role in ROLES:
        if role.components & features and not role.is_supported(build):
            yield Obstacle(
                f"Sysprep does not support the role {role.name}", role.cure, role.identity
            )
    if HYPER_V.components & features:
        yield Obstacle("Sysprep does not support virtual networks of Hyper-V", HYPER_V.cure, False)
    rank = _number(said, "role")
    if rank is not None and rank >= _CONTROLLER:
        yield Obstacle("it is a domain controller", "demote it first")
    elif rank in _MEMBERS:
        yield Obstacle(
            "it is a member of a domain, which Sysprep takes it out of",
            "leave the domain first, and join clones anew",
            fatal=False,
        )


def _warnings(said: dict[str, Any]) -> Iterator[Obstacle]:
    if answers := _list(said, "answers"):
        yield Obstacle(
            f"answer files are there, and are used before the one that a clone is given: {_some(answers)}",
            "remove them: they may hold passwords too",
            fatal=False,
        )
    if _number(said, "cdrom") not in (None, 1):
        yield Obstacle(
            f"the service cdrom has Start={_number(said, 'cdrom')}: no clone would see what it is given",
            "set SYSTEM\\CurrentControlSet\\Services\\cdrom Start to 1",
            fatal=False,
        )
    if failed := _list(said, "failed"):
        yield Obstacle(
            f"could not be looked at: {_some(failed)}",
            "see what the guest's own tools say",
            fatal=False,
        )


def _list(said: dict[str, Any], name: str) -> list[str]:
    """A list of texts; PowerShell writes one of a single entry as the entry itself."""
    found = said.get(name)
    entries = found if isinstance(found, list) else [found]
    return [printable(str(entry)) for entry in entries[:10_000] if isinstance(entry, str) and entry]


def _number(said: dict[str, Any], name: str) -> int | None:
    found = said.get(name)
    return found if isinstance(found, int) else None


def _text(said: dict[str, Any], name: str) -> str:
    found = said.get(name)
    return printable(found) if isinstance(found, str) else ""


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
