"""How long `calotype image diff` takes on images with 3 GB of files: of one lineage, and of two.

    .venv/bin/python -m bench.diff [--runs 7] [--virt-diff]

Two Debian images with the same packages (about 3 GB, 500 packages) are installed from two states of the
archive; these are the images of different lineage. That of the same lineage is made from the first: some
of the packages that are newer in the second are laid over it, a user and files are added, a service and
configuration change, and what differs is taken in as a capture takes it in.

Each command is run once to warm the page cache, then ``--runs`` times. Writes docs/reports/diff.md and .json.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import images
from bench.leaks.appliance import environment
from bench.measure import Command, machine, run

from calotype import wire
from calotype.config import Home
from calotype.disk import Extent, open_image
from calotype.engine.context import Context
from calotype.guest.locate import find_root, survey
from calotype.guest.offline import OfflineGuest, offline
from calotype.guest.packages import inventory
from calotype.model import Consistency, Image, OsState, OsType, Provenance, SourceKind

REPORT = Path(__file__).parents[1] / "docs" / "reports" / "diff"
CALOTYPE = [sys.executable, "-m", "calotype"]
_GRID = 64 << 10
_PACKAGES = [
    *("git", "build-essential", "python3-numpy", "python3-venv", "gdb", "nginx", "postgresql"),
    *("golang", "default-jdk-headless", "rustc", "cargo", "clang", "texlive-latex-recommended"),
    *("nodejs", "libreoffice-writer-nogui", "linux-headers-cloud-amd64"),
]
_TABLES = {
    "full": {"archives": "release", "packages": _PACKAGES, "size_mib": 5120},
    "full-later": {"archives": "today", "packages": _PACKAGES, "size_mib": 5120},
}
_UPGRADED = 20  # packages
_CASES = {
    "same lineage": ("full", "descendant"),
    "different lineage": ("full", "full-later"),
    "different lineage, contents read": ("full", "full-later"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--virt-diff", action="store_true", help="also libguestfs' (half an hour)")
    args = parser.parse_args()
    home = images.cache() / "diff"
    home.mkdir(parents=True, exist_ok=True)
    made = {name: images.image(name, table).path for name, table in _TABLES.items()}
    with tempfile.TemporaryDirectory(prefix=".diff.", dir=images.cache()) as scratch:
        work = Path(scratch)
        env = {"CALOTYPE_HOME": str(work / "home")}
        for name, path in made.items():
            take = [*CALOTYPE, "image", "create", name, "--source", str(path), "--format", "raw"]
            subprocess.run([*take, "-o", "none"], env={**os.environ, **env}, check=True)
        descend(made["full"], made["full-later"], work)
        rows = [measure(case, env, work, args.runs) for case in _CASES]
        rows += virt_diff(made, work) if args.virt_diff else []
        write(rows, machine(work), len(images.image("full", _TABLES["full"]).packages))


def descend(first: Path, later: Path, work: Path) -> None:
    """Make the image ``descendant`` from the first, and take it in as a capture."""
    raw = work / "descendant.raw"
    shutil.copyfile(first, raw)
    raw.chmod(0o600)
    with open_image(raw, declared="raw", second_opinion=False) as opened:
        partition, _ = find_root(opened.disk, survey(opened.disk))
    part = work / "root.img"
    with raw.open("rb") as source, part.open("wb") as target:
        source.seek(partition.offset)
        left = partition.size
        while left and (block := source.read(min(left, 8 << 20))):
            target.write(block)
            left -= len(block)
    with (
        open_image(later, declared="raw", second_opinion=False) as other,
        offline(part) as guest,
    ):
        upgrade(guest, find_root(other.disk, survey(other.disk))[1])
    with part.open("rb") as source, raw.open("r+b") as target:
        target.seek(partition.offset)
        shutil.copyfileobj(source, target, 8 << 20)
    part.unlink()
    context = wire.build(home=Home(work / "home"))
    try:
        _capture(context, raw, list(_changed(first, raw)))
    finally:
        context.close()
    raw.unlink()


def upgrade(guest: OfflineGuest, newer: Any) -> None:
    """Lay some packages' newer files over a guest; add users, services and an application."""
    old = {p.name: p for p in inventory(guest).packages}
    new = [p for p in inventory(newer).packages if p.name in old and p != old[p.name]]
    chosen = [p for p in new if not p.name.startswith("linux-")][:_UPGRADED]
    status = guest.read("/var/lib/dpkg/status") or b""
    for package in chosen:
        was = old[package.name]
        head = f"Package: {package.name}\n".encode()
        start = status.index(b"\n" + head) + 1
        end = status.index(b"\n\n", start)
        stanza = status[start:end].replace(was.version.encode(), package.version.encode())
        status = status[:start] + stanza + status[end:]
        for path in _files_of(newer, package.name):
            found = newer.stat(path)
            if found is not None and found.is_file and guest.stat(path) is not None:
                guest.write(path, newer.read(path, 256 << 20) or b"", found.mode & 0o7777)
    guest.write("/var/lib/dpkg/status", status)
    passwd = guest.read("/etc/passwd") or b""
    guest.write("/etc/passwd", passwd + b"deploy:x:1001:1001::/home/deploy:/bin/bash\n")
    guest.write("/etc/nginx/nginx.conf", (guest.read("/etc/nginx/nginx.conf") or b"") + b"# ours\n")
    for number in range(50):
        guest.write(f"/srv/page-{number}.html", os.urandom(20_000))
    guest.remove("/etc/systemd/system/multi-user.target.wants/nginx.service")
    guest.remove("/usr/share/doc/git")


def _files_of(tree: Any, package: str) -> Iterator[str]:
    for suffix in ("", ":amd64"):
        listed = tree.read(f"/var/lib/dpkg/info/{package}{suffix}.list")
        if listed is not None:
            yield from listed.decode().splitlines()


def _changed(first: Path, second: Path) -> Iterator[Extent]:
    """Where two files differ, on the grid of a capture."""
    with first.open("rb") as a, second.open("rb") as b:
        at = 0
        while one := a.read(_GRID):
            if one != b.read(_GRID):
                yield Extent(at, len(one), zero=False)
            at += len(one)


def _capture(context: Context, raw: Path, changed: list[Extent]) -> None:
    base = context.catalog.image("full")
    with open_image(raw, declared="raw", second_opinion=False) as opened:
        done = context.repository.ingest(opened.disk, base=base.os_disk.index, changed=changed)
    context.catalog.add_image(
        Image(
            id=str(uuid.uuid4()),
            name="descendant",
            os_type=OsType.LINUX,
            os_state=OsState.SPECIALIZED,
            os_disk=replace(base.os_disk, index=done.index),
            generation=base.generation,
            provenance=Provenance(
                kind=SourceKind.VM, source="bench", consistency=Consistency.CRASH
            ),
            created_at=datetime.now(UTC),
        )
    )


def measure(case: str, env: dict[str, str], work: Path, runs: int) -> dict[str, Any]:
    """The whole command, warm, as somebody waits for it."""
    before, after = _CASES[case]
    argv = [*CALOTYPE, "image", "diff", before, after, "-o", "json"]
    if case.endswith("read"):
        argv = [sys.executable, "-c", _BLIND, *argv[3:]]
    log = work / "log"
    command = Command(argv=argv, env=env)
    run(command, work, log)
    found = json.loads(log.read_text())
    seen = [run(command, work, log) for _ in range(runs)]
    guest = found["guest"]
    packages = guest["packages"]
    print(case, [round(one.returned, 2) for one in seen], file=sys.stderr)
    return {
        "case": case,
        "runs": runs,
        "seconds": [round(one.returned, 3) for one in seen],
        "median": round(statistics.median(one.returned for one in seen), 3),
        "cpu": round(statistics.median(one.cpu for one in seen), 3),
        "peak_mib": round(max(one.memory for one in seen)),
        "files_bytes": guest["size"]["after"],
        "compared": guest["compared"],
        "read": guest["read"],
        "changed": len(guest["files"]),
        "packages": sum(len(packages[kind]) for kind in packages),
    }


#: The same command without the store's knowledge of chunks: every content of equal size is read and hashed.
_BLIND = """
import sys
import calotype.engine.proof.diff as engine
from calotype.cli import run
real = engine.diff
engine.diff = lambda a, b, judge: real(a, b)
sys.exit(run(sys.argv[1:]))
"""


def virt_diff(made: dict[str, Path], work: Path) -> list[dict[str, Any]]:
    """The virt-diff of libguestfs on the raw files, where it is installed; one run, for it takes minutes."""
    argv = ["virt-diff", "--checksum", "-a", str(made["full"]), "-A", str(made["full-later"])]
    try:
        seen = run(Command(argv=argv, env=environment(work)), work, work / "virt-diff.log")
    except SystemExit as error:
        print(f"virt-diff: {error}", file=sys.stderr)
        return []
    row = {"case": "virt-diff --checksum", "runs": 1, "seconds": [round(seen.returned, 1)]}
    return [
        {
            **row,
            "median": round(seen.returned, 1),
            "cpu": round(seen.cpu, 1),
            "peak_mib": round(seen.memory),
        }
    ]


_BUSY = (
    "**The machine was busy with other work** (see the load below): the seconds say little, the CPU "
    "seconds do."
)


def write(rows: list[dict[str, Any]], about: dict[str, str], count: int) -> None:
    size = rows[0]["files_bytes"]
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    load, cores = os.getloadavg()[1], os.cpu_count() or 1
    about = {**about, "load": f"{load:.0f} on {cores} cores"}
    report = {"written": time.strftime("%Y-%m-%d"), "machine": about, "cases": rows}
    REPORT.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    lines = [
        "# Comparing two images",
        "",
        f"Written by `make bench-diff`. Two Debian images with {size / 1e9:.1f} GB of files and {count}",
        "packages each; the whole command `calotype image diff A B -o json`, start of Python included, on a",
        "warm page cache. *Same lineage*: B is A with 20 packages upgraded and files changed, taken in as a",
        "capture takes it in. *Different lineage*: B was installed anew from a later state of the archive.",
        "*Contents read*: the same without the store's knowledge of chunks, so that every pair of files of",
        "one size is read and hashed, as a tool without such a store has to.",
        "",
        *([_BUSY, ""] if load > cores + 1 else []),
        "| case | median, s | slowest, s | CPU, s | peak, MiB | pairs of one size | read | paths differ |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = (
            *(row["case"], row["median"], max(row["seconds"]), row["cpu"], row["peak_mib"]),
            *(row.get("compared", "-"), row.get("read", "-"), row.get("changed", "-")),
        )
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    lines += ["", "Conditions: " + "; ".join(f"{k}: {v}" for k, v in about.items()) + ".", ""]
    REPORT.with_suffix(".md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
