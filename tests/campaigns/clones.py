"""Clones of one image, started at once on a host that has nothing of it: they fetch it once.

    .venv/bin/python -m tests.campaigns.clones [--clones 16] [--image IMAGE.raw] [--scratch DIRECTORY]

The store is SeaweedFS; a port before it counts the bytes that it sends. First one copy of the image is
fetched by one process; then the host forgets all that it has, and all clones are started at once, until each
runs, the base is whole, and every clone was put on it. Writes ``docs/reports/clones.json`` and ``.md``, and
fails when the clones' bytes are more than 1.1 times one copy's.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.servers.meter import Meter, meter
from tests.servers.run import Server, seaweedfs

from calotype.config import Home
from calotype.engine.base.partial import Partial
from calotype.machine.layout import Layout
from calotype.machine.qmp import Qmp

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "docs" / "reports" / "clones"
LIMIT = 1.1
MIB = 1 << 20

COPY = """
import sys
from pathlib import Path
from calotype import wire
context = wire.build()
index = context.catalog.image("img").os_disk.index
context.repository.materialize(index, Path(sys.argv[1]))
context.close()
"""


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured; bytes as the server sent them, seconds from the first command's start."""

    clones: int
    image: str
    disk_bytes: int
    one_copy: int
    all_clones: int
    one_server: bool
    all_run: float
    all_on_the_file: float
    memory: int  # the most that the base's processes held at once

    @property
    def ratio(self) -> float:
        """The clones' bytes over one copy's."""
        return self.all_clones / self.one_copy


class Host:
    """An installation whose store is on a server."""

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self.home = Home(home)
        self.environment = {**os.environ, **environment, "CALOTYPE_HOME": str(home)}

    def run(self, *arguments: str) -> Any:
        """Run a command to its end; what it says in JSON."""
        argv = [sys.executable, "-m", "calotype", *arguments, "-o", "json"]
        done = subprocess.run(argv, env=self.environment, capture_output=True, check=False)
        if done.returncode:
            raise SystemExit(f"{arguments}: {done.stderr.decode(errors='replace')}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def python(self, script: str, *arguments: str) -> None:
        """Run a script."""
        argv = [sys.executable, "-c", script, *arguments]
        subprocess.run(argv, env=self.environment, check=True)

    def forget(self) -> None:
        """Be a host that has never seen the image."""
        for partial in Partial.all(self.home):
            partial.remove()
        for path in self.home.bases.glob("*.raw"):
            path.unlink()
        for name in ("objects", "lookup"):
            shutil.rmtree(self.home.cache / name, ignore_errors=True)


def resident(partial: Partial) -> int:
    """The bytes of memory that the processes of a base hold now, without what they share."""
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if not {b"calotype.daemon", partial.index.encode()} <= set(words):
                    continue
                lines = (entry / "smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def measure(server: Server, counter: Meter, image: Path, clones: int, scratch: Path) -> Result:
    """Upload, fetch one copy, then start all clones."""
    url = server.url("clones", counter.port)
    host = Host(scratch / "home", {**server.environment, "CALOTYPE_STORE": url})
    host.run("image", "create", "img", "--source", str(image), "--os-state", "Generalized")
    index = host.run("image", "show", "img")["osDisk"]["index"]
    host.forget()
    before = counter.sent
    host.python(COPY, str(scratch / "copy.raw"))
    one_copy = counter.sent - before
    (scratch / "copy.raw").unlink()
    host.forget()

    def create(number: int) -> str:
        options = ("--memory", "64M", "--image", "img")
        made: dict[str, str] = host.run("vm", "create", f"clone{number}", *options)
        return made["id"]

    before, started = counter.sent, time.monotonic()
    partial = Partial.of(host.home, index)
    memory = 0
    servers: set[str] = set()
    with ThreadPoolExecutor(clones) as pool:
        jobs = [pool.submit(create, number) for number in range(clones)]
        while not all(job.done() for job in jobs):
            memory = max(memory, resident(partial))
            if partial.alive():
                servers.add((partial.root / "server").read_text())
            time.sleep(0.1)
        ids = [job.result() for job in jobs]
    all_run = time.monotonic() - started
    (partial.root / "hurry").touch()
    while partial.exists():
        memory = max(memory, resident(partial))
        time.sleep(0.1)
    done = time.monotonic() - started
    sent = counter.sent - before
    for vm_id in ids:
        with Qmp.open(Layout(host.home.vms / vm_id).query) as qmp:
            drivers = {n["drv"] for n in qmp.execute("query-named-block-nodes", {"flat": True})}
        if "nbd" in drivers:
            raise SystemExit(f"{vm_id} was not put on the file")
    for number in range(clones):
        host.run("vm", "delete", f"clone{number}")
    return Result(
        clones=clones,
        image=image.name.rpartition("-")[0] or image.name,
        disk_bytes=image.stat().st_size,
        one_copy=one_copy,
        all_clones=sent,
        one_server=len(servers - {""}) == 1,
        all_run=round(all_run, 1),
        all_on_the_file=round(done, 1),
        memory=memory,
    )


def report(result: Result) -> None:
    """Write the report."""
    content = asdict(result) | {"ratio": round(result.ratio, 4), "limit": LIMIT}
    REPORT.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    verdict = "holds" if result.ratio <= LIMIT else "**does not hold**"
    REPORT.with_suffix(".md").write_text(
        f"""# {result.clones} clones at once, from a cold S3 store

`python -m tests.campaigns.clones`: {result.clones} commands `vm create` at once, on a host without base,
lookup or cache; the store is SeaweedFS, the image `{result.image}` ({result.disk_bytes // MIB} MiB of disk).
Bytes are those that the server sent, HTTP headers included.

| | |
|---|---|
| one copy, fetched by one process | {result.one_copy / MIB:.2f} MiB |
| all {result.clones} clones, until each is on the whole base | {result.all_clones / MIB:.2f} MiB |
| ratio (limit {LIMIT}) | **{result.ratio:.3f}**, {verdict} |
| one server for all | {"yes" if result.one_server else "no"} |
| until all processes run | {result.all_run} s |
| until all are on the file, and the server has ended | {result.all_on_the_file} s |
| memory of the server's processes, at most | {result.memory / MIB:.0f} MiB |

{os.cpu_count()} cores, guests under emulation: the times are those of the guests, which share the processors.
"""
    )


def main() -> None:
    """Measure, write the report, and fail when the limit does not hold."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clones", type=int, default=16)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--scratch", type=Path)
    given = parser.parse_args()
    image = given.image
    if image is None:
        from calotype.recipe import build  # noqa: PLC0415 (not needed with an image)

        image = build("tiny", Home.from_environment().recipes).path
    with tempfile.TemporaryDirectory(dir=given.scratch, prefix="clones-") as directory:
        scratch = Path(directory)
        (scratch / "weed").mkdir()
        with seaweedfs(scratch / "weed") as server, meter(server.port) as counter:
            result = measure(server, counter, image, given.clones, scratch)
    report(result)
    sys.stdout.write(json.dumps(asdict(result)) + "\n")
    if result.ratio > LIMIT or not result.one_server:
        raise SystemExit("the clones fetched more than one copy")


if __name__ == "__main__":
    main()
