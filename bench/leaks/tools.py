"""The tools that are compared: each makes a copy of the used machine's disk general in its own way."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench.leaks import appliance
from bench.leaks.guest import Refused, Room
from bench.leaks.used import Used, copy


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a tool did: seconds of its own work; paths of secrets that it reported; its version."""

    seconds: float
    version: str
    reported: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Tool(Protocol):
    """A column of the table: its name, and how it is said on a command line."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def how(self) -> str: ...  # noqa: D102

    def run(self, used: Used, work: Path, target: Path) -> Outcome:
        """Write the general disk to ``target``, a raw file that is not there yet.

        Raises:
            Refused: it could not.
        """
        ...


@dataclass(frozen=True, slots=True)
class InGuest:
    """Commands that are run in the machine, booted once more, before it is shut down."""

    name: str
    how: str
    version: str
    script: str

    def run(self, used: Used, work: Path, target: Path) -> Outcome:
        """Boot the copy, run the commands as root, shut down."""
        copy(used.disk, target)
        with Room(work / "vm").boot(target, "tool") as vm:
            version = vm.root(self.version).strip()
            started = time.perf_counter()
            said = vm.root(self.script)
            seconds = time.perf_counter() - started
        return Outcome(
            seconds=seconds,
            version=version,
            notes=("without the boot and the shutdown",),
            details={"said": said[-2000:]},
        )


@dataclass(frozen=True, slots=True)
class VirtSysprep:
    """libguestfs' virt-sysprep on the disk of the machine that is off."""

    name: str
    how: str
    options: tuple[str, ...] = ()

    def run(self, used: Used, work: Path, target: Path) -> Outcome:
        """Change the copy in place."""
        if shutil.which("virt-sysprep") is None:
            raise Refused("virt-sysprep is not installed (make bench-leaks-setup)")
        copy(used.disk, target)
        environment = {**os.environ, **appliance.environment(work)}
        argv = ["virt-sysprep", *self.options, "--format", "raw", "-a", str(target)]
        started = time.perf_counter()
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise Refused(f"{' '.join(argv)}: {done.stderr[-1000:]}")
        return Outcome(seconds=seconds, version=_first_line(["virt-sysprep", "--version"]))


@dataclass(frozen=True, slots=True)
class Calotype:
    """Ours, by its command line: the disk is uploaded, a VM made of it, and that captured."""

    name: str
    how: str
    options: tuple[str, ...] = ()

    def run(self, used: Used, work: Path, target: Path) -> Outcome:
        """Capture, generalizing, and export."""
        cli = Cli(work / "home")
        made = generalized(cli, used, self.options)
        cli("image", "export", made["name"], str(target), "--format", "raw", "--no-report")
        report = made["capture"]["generalized"]
        edits = {step["name"]: len(step["edits"]) for step in report["steps"]}
        return Outcome(
            seconds=made["seconds"],
            version=_first_line([sys.executable, "-m", "calotype", "--version"]),
            reported=tuple(path for _kind, path in map(_pair, report["secrets"])),
            notes=("the whole command: copy, generalize, check, store",),
            details={"edits": edits, "wiped": report["wiped"]},
        )


class Cli:
    """The command ``calotype`` in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "CALOTYPE_HOME": str(home)}

    def __call__(self, *arguments: str) -> Any:
        """Run a command; what it says in JSON.

        Raises:
            SystemExit: it failed.
        """
        done = self.run(*arguments, "-o", "json")
        if done.returncode:
            raise SystemExit(f"calotype {' '.join(arguments)}: {done.stderr.strip()}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever that is."""
        argv = [sys.executable, "-m", "calotype", *arguments]
        return subprocess.run(
            argv, env=self.environment, capture_output=True, text=True, check=False
        )

    def names(self, what: str) -> set[str]:
        """The names of all images, or all VMs."""
        return {entry["name"] for entry in self(what, "list") or []}


def generalized(cli: Cli, used: Used, options: Sequence[str] = ()) -> dict[str, Any]:
    """``vm capture --generalize`` of the used disk; the command's answer and its ``seconds``."""
    source = f"used-{used.disk.stat().st_mtime_ns}"
    if source not in cli.names("image"):
        upload = ("image", "create", source, "--source", str(used.disk))
        cli(*upload, "--os-state", "Specialized")
    if source not in cli.names("vm"):
        cli("vm", "create", source, "--image", source, "--no-start")
    if "golden" in cli.names("image"):
        cli("image", "delete", "golden")
    argv = ("vm", "capture", source, "--image", "golden", "--generalize", *options)
    started = time.perf_counter()
    made = cli(*argv)
    return {**made, "seconds": time.perf_counter() - started}


_CLOUD_INIT = "cloud-init clean --logs --machine-id"
_CAPTURE = "calotype vm capture VM --image NAME --generalize"
_WAAGENT = "waagent -force -deprovision+user"

TOOLS: tuple[Tool, ...] = (
    InGuest("waagent", _WAAGENT, "waagent -version | head -1", _WAAGENT),
    InGuest("cloud-init", _CLOUD_INIT, "cloud-init --version", _CLOUD_INIT),
    InGuest(
        "both",
        f"{_WAAGENT}; {_CLOUD_INIT}",
        "waagent -version | head -1; cloud-init --version",
        f"{_WAAGENT}\n{_CLOUD_INIT}",
    ),
    VirtSysprep("virt-sysprep", "virt-sysprep -a DISK"),
    VirtSysprep(
        "virt-sysprep, all",
        "virt-sysprep --operations all -a DISK",
        ("--operations", "all"),
    ),
    Calotype("Calotype", _CAPTURE),
    Calotype(
        "Calotype, secrets too",
        f"{_CAPTURE} --enable application-secrets",
        ("--enable", "application-secrets"),
    ),
)


def _pair(secret: Any) -> tuple[str, str]:
    """A secret's kind and path, which JSON has as a list or by name."""
    kind, path = (secret["kind"], secret["path"]) if isinstance(secret, dict) else secret
    return kind, path


def _first_line(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return (done.stdout.strip().splitlines() or [""])[0]
