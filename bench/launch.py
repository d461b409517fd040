"""Launch: from an image to a running VM, hot (its base is on this host) and cold (it is only in an S3 store).

    .venv/bin/python -m bench.launch hot [--runs 15] [--sizes 2,10,50,128]
    .venv/bin/python -m bench.launch cold [--image IMAGE.raw] [--prompt 'login:']

*Hot* measures, alternating, until QEMU's monitor answers: the limit, which is ``qemu-img create -b`` and
then the very same start of QEMU; the engine's ``create_vm``; and the whole command. *Cold* starts SeaweedFS,
counts the bytes that it sends, and boots the image cold without a boot profile, cold with the one that this
recorded, and hot.

Each writes its part of ``docs/reports/launch.json``, and ``launch.md`` and ``launch.svg`` from all that is
there.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.measure import machine
from tests.campaigns.clones import Host, resident
from tests.servers.meter import Meter, meter
from tests.servers.run import seaweedfs

from calotype import wire
from calotype.config import Home
from calotype.engine import launch, machines
from calotype.engine.base import bases
from calotype.engine.base.partial import Partial
from calotype.engine.context import Context
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.launch import VmRequest
from calotype.engine.sources import Upload
from calotype.model import MIB, OsState
from calotype.recipe import build

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "reports" / "launch"
GIB = 1 << 30
MEMORY = 128 * MIB
_SECONDS = 1800.0  # until a boot counts as failed

_COLD = (
    *("runs, s", "first serial byte, s", "login, s", "sent until login, MiB", "guest read, MiB"),
    *("sent / read", "on the file, s", "memory, MiB"),
)
_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="640" height="320" '
    'font-family="sans-serif" font-size="12">'
)

Row = dict[str, Any]


# Hot


def hot(scratch: Path, runs: int, sizes: list[int]) -> list[Row]:
    """One row for each size of the image in GiB."""
    tiny = build("tiny", Home.from_environment().recipes).path
    context = wire.build(home=Home(scratch / "home"))
    rows = []
    for size in sizes:
        image = scratch / "image.raw"
        shutil.copyfile(tiny, image)
        os.truncate(image, size * GIB)
        request = ImageRequest(name=f"img{size}", os_state=OsState.GENERALIZED)
        import_image(context, request, Upload(location=str(image)), {})
        image.unlink()
        index = context.catalog.image(f"img{size}").os_disk.index
        with context.operation() as operation:
            bases.ensure(context, index, operation.directory)
        rows.append({"size": size * GIB, **_hot(context, f"img{size}", runs)})
        print(json.dumps(rows[-1]))  # so that a run that is cut short is not for nothing
    context.close()
    return rows


def _hot(context: Context, image: str, runs: int) -> Row:
    ways: dict[str, Callable[[], float]] = {
        "limit": lambda: _limit(context, image),
        "engine": lambda: _engine(context, image),
        "command": lambda: _command(context, image),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(runs + 1):
        for name, way in ways.items():
            seconds = way()
            if number:  # the first one warms up
                found[name].append(seconds)
    return {name: {"median": statistics.median(v), "all": v} for name, v in found.items()}


def _engine(context: Context, image: str) -> float:
    started = time.perf_counter()
    launch.create_vm(context, VmRequest(name="bench", image=image, memory=MEMORY))
    seconds = time.perf_counter() - started
    machines.delete(context, "bench")
    return seconds


def _command(context: Context, image: str) -> float:
    argv = [sys.executable, "-m", "calotype", "vm", "create", "bench", "--image", image]
    environment = {**os.environ, "CALOTYPE_HOME": str(context.home.root)}
    started = time.perf_counter()
    subprocess.run(
        [*argv, "--memory", "128M"], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    seconds = time.perf_counter() - started
    machines.delete(context, "bench")
    return seconds


def _limit(context: Context, image: str) -> float:
    """``qemu-img create -b``, and the start of QEMU with the command line that the engine uses."""
    request = VmRequest(name="limit", image=image, memory=MEMORY, start=False)
    vm = launch.create_vm(context, request)  # for its row and its seed; not measured
    overlay = context.disk_path(vm.os_disk.file)
    index = vm.os_disk.index
    assert index is not None
    overlay.unlink()
    base = context.base_path(index)
    spec = machines.specification(context, vm, {index: base})
    started = time.perf_counter()
    options = "extended_l2=on,cluster_size=128k"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-b", str(base), "-F", "raw"]
    subprocess.run([*argv, str(overlay)], check=True)
    context.driver.start(spec)
    seconds = time.perf_counter() - started
    machines.delete(context, "limit")
    return seconds


# Cold


def cold(scratch: Path, image: Path, prompt: str) -> list[Row]:
    """Rows: hot, cold with nothing known, cold with a boot profile."""
    (scratch / "weed").mkdir()
    with seaweedfs(scratch / "weed") as server, meter(server.port) as counter:
        url = server.url("launch", counter.port)
        host = Host(scratch / "home", {**server.environment, "CALOTYPE_STORE": url})
        host.run("image", "create", "img", "--source", str(image), "--os-state", "Generalized")
        index = host.run("image", "show", "img")["osDisk"]["index"]
        rows = []
        for name in ("cold", "cold, boot profile", "hot"):
            if name != "hot":
                host.forget()
            row = {"way": name, "image": image.stem, **_boot(host, counter, index, prompt)}
            rows.append(row)
            print(json.dumps(row))
    return rows


def _boot(host: Host, counter: Meter, index: str, prompt: str) -> Row:
    partial = Partial.of(host.home, index)
    before, started = counter.sent, time.perf_counter()
    made = host.run("vm", "create", "vm", "--image", "img", "--memory", "1G")
    log = host.home.vms / made["id"] / "run" / "serial.log"
    row: Row = {"running": time.perf_counter() - started}
    memory = 0
    for what, seen in (("first_byte", b""), ("login", prompt.encode())):
        while not (data := log.read_bytes() if log.exists() else b"") or seen not in data:
            memory = max(memory, resident(partial))
            if time.perf_counter() - started > _SECONDS:
                raise SystemExit(f"no {what} in {_SECONDS:g} s")
            time.sleep(0.02)
        row[what] = time.perf_counter() - started
        row[f"sent_until_{what}"] = counter.sent - before
    stats = partial.root / "stats.json"
    if stats.exists():
        time.sleep(2.5)  # the server writes them every two seconds
        row["stats"] = json.loads(stats.read_bytes())
        (partial.root / "hurry").touch() if (partial.root / "profile").exists() else None
    deadline = time.perf_counter() + _SECONDS
    while partial.exists() and time.perf_counter() < deadline:
        memory = max(memory, resident(partial))
        time.sleep(0.2)
    if memory:
        row |= {"on_the_file": time.perf_counter() - started, "memory": memory}
        row["sent"] = counter.sent - before
    host.run("vm", "delete", "vm")
    return row


# Report


def report(part: str, rows: list[Row], load: float, notes: Sequence[str] | None = None) -> None:
    """Put one part into the JSON, and write table and plot from all of it; ``notes`` replace the old ones."""
    path = REPORT.with_suffix(".json")
    content: Row = json.loads(path.read_bytes()) if path.exists() else {}
    content |= {part: rows, "machine": machine(ROOT), f"load during {part}": load}
    content["notes"] = content.get("notes", []) if notes is None else list(notes)
    path.write_text(json.dumps(content, indent=1) + "\n")
    lines = ["# Launch", "", f"`{machine_line(content['machine'])}`", ""]
    lines += [
        f"Load average (5 minutes) at the end of {name}: {content[f'load during {name}']:.0f}."
        for name in ("hot", "cold")
        if f"load during {name}" in content
    ]
    lines += [f"- {note}" for note in content.get("notes", [])]
    lines += ["", *_hot_table(content.get("hot", [])), *_cold_table(content.get("cold", []))]
    REPORT.with_suffix(".md").write_text("\n".join(lines))
    if content.get("hot"):
        REPORT.with_suffix(".svg").write_text(plot(content["hot"]))


def machine_line(described: Mapping[str, str]) -> str:
    """The machine in one line."""
    return ", ".join(f"{key} {value}" for key, value in described.items() if value)


def _hot_table(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = [
        "## Hot: until QEMU's monitor answers (medians, ms)",
        "",
        "The limit is `qemu-img create -b` and the same start of QEMU; target: limit + 10 ms, flat.",
        "",
        "| disk | limit | engine | engine - limit | `vm create` |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        limit, engine, command = (row[n]["median"] * 1000 for n in ("limit", "engine", "command"))
        lines.append(
            f"| {row['size'] >> 30} GiB | {limit:.0f} | {engine:.0f} | **{engine - limit:+.0f}** "
            f"| {command:.0f} |"
        )
    return [*lines, "", "![Hot launch](launch.svg)", ""]


def _cold_table(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = [
        "## Cold: the base is only in an S3 store",
        "",
        f"| | {' | '.join(_COLD)} |",
        "|---" * (len(_COLD) + 1) + "|",
    ]
    for row in rows:
        stats = row.get("stats")
        cells = [row["way"], *(f"{row[k]:.2f}" for k in ("running", "first_byte", "login"))]
        if stats:
            sent = row["sent_until_login"]
            cells += [f"{sent / MIB:.1f}", f"{stats['read'] / MIB:.1f}"]
            cells += [f"**{sent / stats['read']:.2f}**", f"{row['on_the_file']:.0f}"]
            cells += [f"{row['memory'] / MIB:.0f}"]
        else:
            cells += ["", "", "", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def plot(rows: list[Row]) -> str:
    """Medians over the disk's size, as SVG."""
    names = {"limit": "#888", "engine": "#0a6", "command": "#06c"}
    top = max(row[name]["median"] for row in rows for name in names) * 1.15
    parts = [
        _SVG,
        '<rect width="640" height="320" fill="white"/>',
        '<line x1="60" y1="280" x2="620" y2="280" stroke="black"/>',
        '<line x1="60" y1="20" x2="60" y2="280" stroke="black"/>',
        '<text x="8" y="16">ms</text>',
    ]
    for tick in range(5):
        y = 280 - tick * 65
        parts.append(f'<text x="22" y="{y + 4}">{top * 1000 * tick / 4:.0f}</text>')
    xs = [60 + 500 * (n + 0.5) / len(rows) for n in range(len(rows))]
    for x, row in zip(xs, rows, strict=True):
        parts.append(f'<text x="{x - 20:.0f}" y="298">{row["size"] >> 30} GiB</text>')
    for place, (name, colour) in enumerate(names.items()):
        ys = [280 - 260 * row[name]["median"] / top for row in rows]
        points = " ".join(f"{x:.0f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(f'<text x="565" y="{30 + 16 * place}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


@contextmanager
def _scratch(where: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=where, prefix="launch-") as directory:
        yield Path(directory)


def main() -> None:
    """Measure one part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["hot", "cold"])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--sizes", default="2,10,50,128")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--prompt", default="login:")
    parser.add_argument("--scratch", type=Path)
    given = parser.parse_args()
    with _scratch(given.scratch) as scratch:
        if given.part == "hot":
            rows = hot(scratch, given.runs, [int(size) for size in given.sizes.split(",")])
        else:
            image = given.image or build("debian-12", Home.from_environment().recipes).path
            rows = cold(scratch, image, given.prompt)
    report(given.part, rows, os.getloadavg()[1])


if __name__ == "__main__":
    main()
