"""Every recipe of a whole Debian: built, proved, boot-tested, and its application asked for an answer.

    .venv/bin/python -m tests.campaigns.recipes [--fresh] [--only debian-nginx] [--report REPORT]

Each image must be Generalized by every check, two clones of it must start and differ where they must, and the
clones' applications must answer, each with what is its own (certificates, clusters). Everything is done by
the `calotype` command in a home of its own, which is removed at the end.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from calotype.recipe import load

REPORT = Path(__file__).parents[2] / "docs" / "reports" / "recipes"
MIB = 1 << 20


class Calotype:
    """The command, in a home of its own."""

    def __init__(self, home: Path) -> None:
        self._env = {**os.environ, "CALOTYPE_HOME": str(home)}

    def __call__(self, *arguments: str) -> Any:
        done = self._run([*arguments, "-o", "json"])
        return json.loads(done) if done.strip() else None

    def ssh(self, vm: str, command: str) -> str:
        """What a command prints in a VM."""
        return self._run(["vm", "ssh", vm, "--", command]).strip()

    def _run(self, arguments: Sequence[str]) -> str:
        argv = [sys.executable, "-m", "calotype", *arguments]
        done = subprocess.run(argv, env=self._env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(
                f"{' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout


@dataclass(frozen=True, kw_only=True, slots=True)
class Application:
    """What is asked of a VM: ``answers``, by command; ``own``: what must differ between two VMs."""

    answers: Mapping[str, str] = field(default_factory=dict)
    own: Mapping[str, str] = field(default_factory=dict)  # what it is: the command that prints it
    page: bool = False  # port 80 answers with 200


_WHOLE = {
    "cloud-init status --wait": "status: done",
    "systemctl is-system-running --wait": "running",
}
_OWN = {
    "machine-id": "cat /etc/machine-id",
    "SSH host key": "cat /etc/ssh/ssh_host_ed25519_key.pub",
}
_PSQL = "sudo -u postgres psql -Atc"
_C = "printf 'int main(void) {return 42;}' > /tmp/a.c && gcc -g -o /tmp/a /tmp/a.c; /tmp/a; echo $?"
_CXX = (
    "printf '#include <iostream>\\nint main() {std::cout << 42 << std::endl;}' > /tmp/b.cc "
    "&& g++ -o /tmp/b /tmp/b.cc && /tmp/b"
)
APPLICATIONS = {
    "debian-minimal": Application(),
    "debian-12": Application(),
    "debian-nginx": Application(page=True),
    "debian-postgresql": Application(
        answers={
            f"{_PSQL} 'create table t (n int); insert into t values (41); select n + 1 from t'": "42",
            f"{_PSQL} 'show server_version' | cut -d. -f1": "15",
            f"{_PSQL} 'show server_encoding'": "UTF8",
            f"{_PSQL} 'show ssl'": "on",
            "pg_isready -h 127.0.0.1": "accepting connections",
        },
        own={
            "cluster": f"{_PSQL} 'select system_identifier from pg_control_system()'",
            "TLS certificate": "openssl x509 -noout -pubkey -in /etc/ssl/certs/ssl-cert-snakeoil.pem",
        },
    ),
    "debian-dev": Application(
        answers={
            _C: "42",
            _CXX: "42",
            "gdb --batch -ex run -ex 'print $_exitcode' /tmp/a | tail -1": "$1 = 42",
            "python3 -m venv /tmp/v && /tmp/v/bin/pip --version | cut -d' ' -f1": "pip",
            "git init -q /tmp/g && git -C /tmp/g status --porcelain && echo clean": "clean",
            "cmake --version | head -1 | cut -d' ' -f1": "cmake",
        }
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What was seen of a recipe; sizes in MiB, times in seconds."""

    recipe: str
    description: str
    packages: int
    disk: int
    used: int
    built: float
    verdict: str
    checks: int
    tested: float  # two clones
    start: float  # of a VM, until it is provisioned
    answers: list[str]


def examine(calotype: Calotype, recipe: str, *, fresh: bool) -> Result:
    """Build a recipe and ask it everything.

    Raises:
        SystemExit: a command failed, or an answer is not what it must be.
    """
    told, application = load(recipe).description, APPLICATIONS[recipe]
    built, build_time = timed(
        lambda: calotype("recipe", "build", recipe, *(["--fresh"] if fresh else []))
    )
    calotype("recipe", "build", recipe, "--image", recipe, "--generation", "V2")
    proof = calotype("image", "verify", recipe)["proof"]
    must(recipe, "verdict", proof["verdict"], "Generalized")
    _, test_time = timed(lambda: calotype("image", "test", recipe))
    vms = [f"{recipe}-{n}" for n in range(2 if application.own else 1)]
    starts = [timed(partial(create, calotype, recipe, name))[1] for name in vms]
    answers = [f"{len(vms)} VMs of it are told apart by {' and '.join(application.own)}"]
    answers = answers if application.own else []
    for vm in vms:
        for command, wanted in {**_WHOLE, **application.answers}.items():
            said = calotype.ssh(vm, command)
            must(vm, command, wanted in said.splitlines()[-1], True, said)
    for what, command in {**_OWN, **application.own}.items() if len(vms) > 1 else ():
        own = {calotype.ssh(vm, command) for vm in vms}
        must(recipe, f"own {what}", len(own) == len(vms) and all(own), True, own)
    answers += [f"`{command}`: {wanted}" for command, wanted in application.answers.items()]
    if application.page:
        ((port, _guest),) = calotype("vm", "show", vms[0])["forwards"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            must(recipe, "page", answer.status, 200)
        answers.append("HTTP 200 on port 80")
    for vm in vms:
        calotype("vm", "delete", vm)
    return Result(
        recipe=recipe,
        description=told,
        packages=len(built["packages"]),
        disk=built["size"] // MIB,
        used=Path(built["path"]).stat().st_blocks * 512 // MIB,
        built=round(build_time, 1),
        verdict=proof["verdict"],
        checks=len(proof["checked"]),
        tested=round(test_time, 1),
        start=round(max(starts), 1),
        answers=answers,
    )


def create(calotype: Calotype, recipe: str, name: str) -> None:
    forward = ["--forward", "0:80"] if APPLICATIONS[recipe].page else []
    calotype("vm", "create", name, "--image", recipe, *forward, "--wait")


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.monotonic()
    return call(), time.monotonic() - begin


def must(where: str, what: str, found: object, wanted: object, said: object = "") -> None:
    if found != wanted:
        raise SystemExit(f"{where}: {what}: {found!r}, not {wanted!r} {said!r}")


def write(results: Sequence[Result], report: Path, *, fresh: bool) -> None:
    told = {"written": time.strftime("%Y-%m-%d"), "recipes": [asdict(r) for r in results]}
    report.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
    lines = [
        "# The recipes",
        "",
        "Written by `make recipes-check` (`tests/campaigns/recipes.py`). Each image is built from Debian's",
        "packages, looked into by every check of every generalize step, and two clones of it are started and",
        "compared; then VMs are made of it, and asked. Seconds are on a machine without KVM; *build* is",
        "with the packages in the cache"
        + ("." if fresh else ", or that the image was in the cache."),
        "",
        "| recipe | packages | disk, MiB | used, MiB | build, s | verdict | two clones, s | VM ready, s |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for r in results:
        cells = (
            *(r.recipe, r.packages, r.disk, r.used, r.built),
            *(f"{r.verdict} ({r.checks} checks)", r.tested, r.start),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    for r in results:
        lines += ["", f"**{r.recipe}**: {r.description}. cloud-init is done, no unit has failed."]
        lines += [f"- {answer}" for answer in r.answers]
    report.with_suffix(".md").write_text("\n".join([*lines, ""]))
    sys.stdout.write("\n".join([*lines, ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fresh", action="store_true", help="build anew, from the newest packages")
    parser.add_argument("--only", nargs="+", choices=list(APPLICATIONS), default=list(APPLICATIONS))
    parser.add_argument("--report", type=Path, default=REPORT)
    args = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="calotype-recipes-", dir="/var/tmp"))
    calotype = Calotype(home)
    try:
        results = []
        for recipe in args.only:
            results.append(examine(calotype, recipe, fresh=args.fresh))
            sys.stderr.write(f"{recipe}: whole\n")
        write(results, args.report, fresh=args.fresh)
    finally:
        for vm in calotype("vm", "list") or []:
            calotype("vm", "delete", vm["name"])
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
