"""Upload of a disk image and capture of what a VM changed, against qemu-img and restic in the same run.

    .venv/bin/python bench/upload_capture.py IMAGE.raw [--runs 3] [--changed 100] [--scratch DIRECTORY]

Writes ``docs/reports/upload-capture.json`` and ``.md``. Every row is the median of its runs; every run is a
process of its own that ends with its output synced; caches are warm (the image is read once before). restic
is installed by ``apt-get install restic``; its rows are left out without it.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "reports" / "upload-capture"
MIB = 1 << 20
RUN_MIB = 0.25  # of one changed run

UPLOAD = """
import sys
from pathlib import Path
from calotype.disk.view import RawSource
from calotype.store import DirectoryStore, Repository
repository = Repository.open_or_create(DirectoryStore(sys.argv[1]))
print(repository.ingest(RawSource(Path(sys.argv[2])).open()).index)
"""
CAPTURE = """
import sys
from pathlib import Path
from calotype.disk.view import OverlaySource
from calotype.store import DirectoryStore, Repository
repository = Repository(DirectoryStore(sys.argv[1]))
disk = OverlaySource(Path(sys.argv[2]), Path(sys.argv[3])).open()
print(repository.ingest(disk, base=sys.argv[4], changed=disk.changed()).index)
"""
CREATE = """
import sys
from pathlib import Path
from calotype.disk.overlay import create
create(Path(sys.argv[1]), int(sys.argv[2]))
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One process: its wall clock and CPU seconds, and its peak memory in MiB."""

    seconds: float
    cpu: float
    memory: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One tool at one work; medians, and stored bytes that it added."""

    work: str
    tool: str
    seconds: float
    spread: tuple[float, float]
    cpu: float
    memory: float
    stored: int


def python(code: str, *args: str | Path | int) -> list[str]:
    return [sys.executable, "-c", code, *map(str, args)]


def timed(argv: list[str], *, output: Path | None = None, env: dict[str, str] | None = None) -> Run:
    """Run to the end, then sync ``output`` (for tools that do not sync themselves)."""
    started = time.perf_counter()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, env={**os.environ, **(env or {})})
    _pid, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{argv[0]} failed: {process.returncode}")
    if output is not None:
        with output.open("rb") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    return Run(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def answer(argv: list[str]) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def held(path: Path) -> int:
    """The bytes of a file, or of all files of a directory."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(min(f.stat().st_size, f.stat().st_blocks * 512) for f in files)


@contextmanager
def room(scratch: Path) -> Iterator[Path]:
    """An empty directory that is gone afterwards."""
    path = scratch / "run"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Bench:
    """The rows, as they are measured."""

    def __init__(self, scratch: Path, runs: int) -> None:
        self.scratch = scratch
        self.runs = runs
        self.rows: list[Row] = []

    def row(self, work: str, tool: str, once: Callable[[Path], tuple[Run, int]]) -> None:
        """Measure ``once(empty directory)`` as often as asked; it returns the run and bytes added."""
        runs, stored = [], 0
        for _ in range(self.runs):
            with room(self.scratch) as path:
                run, stored = once(path)
                runs.append(run)
        seconds = [r.seconds for r in runs]
        row = Row(
            work=work,
            tool=tool,
            seconds=statistics.median(seconds),
            spread=(min(seconds), max(seconds)),
            cpu=statistics.median(r.cpu for r in runs),
            memory=max(r.memory for r in runs),
            stored=stored,
        )
        print(f"{work:10} {tool:24} {row.seconds:8.2f} s {row.stored / MIB:9.1f} MiB", flush=True)
        self.rows.append(row)

    def convert(self, work: str, source: list[str]) -> None:
        """The rows of ``qemu-img convert``."""
        kinds = {
            "qemu-img convert": [],
            "qemu-img convert -c": ["-c"],
            "qemu-img convert -c zstd": ["-c", "-o", "compression_type=zstd"],
        }
        for tool, options in kinds.items():

            def once(path: Path, options: list[str] = options) -> tuple[Run, int]:
                target = path / "copy.qcow2"
                argv = ["qemu-img", "convert", *source, "-O", "qcow2", *options, str(target)]
                return timed(argv, output=target), held(target)

            self.row(work, tool, once)


def restic_env(path: Path) -> dict[str, str]:
    return {"RESTIC_PASSWORD": "bench", "RESTIC_REPOSITORY": str(path / "restic")}


def upload_rows(bench: Bench, image: Path, *, restic: bool) -> None:
    """First upload into an empty store, and the same bytes once more."""

    def first(path: Path) -> tuple[Run, int]:
        run = timed(python(UPLOAD, path / "store", image))
        return run, held(path / "store")

    def again(path: Path) -> tuple[Run, int]:
        timed(python(UPLOAD, path / "store", image))
        before = held(path / "store")
        run = timed(python(UPLOAD, path / "store", image))
        return run, held(path / "store") - before

    def restic_first(path: Path) -> tuple[Run, int]:
        env = restic_env(path)
        timed(["restic", "init", "-q"], env=env)
        return timed(["restic", "backup", "-q", str(image)], env=env), held(path / "restic")

    def restic_again(path: Path) -> tuple[Run, int]:
        env = restic_env(path)
        timed(["restic", "init", "-q"], env=env)
        timed(["restic", "backup", "-q", str(image)], env=env)
        before = held(path / "restic")
        run = timed(["restic", "backup", "-q", "--force", str(image)], env=env)
        return run, held(path / "restic") - before

    bench.row("upload", "calotype", first)
    bench.convert("upload", ["-f", "raw", str(image)])
    if restic:
        bench.row("upload", "restic", restic_first)
    bench.row("upload again", "calotype", again)
    if restic:
        bench.row("upload again", "restic --force", restic_again)


def capture_rows(bench: Bench, image: Path, changed: int, *, restic: bool) -> int:
    """A VM's overlay with ``changed`` MiB of new bytes over the image; how many bytes it changed."""
    prepared = bench.scratch / "capture"
    shutil.rmtree(prepared, ignore_errors=True)
    prepared.mkdir(parents=True)
    overlay, store = prepared / "overlay.qcow2", prepared / "store"
    total = write_overlay(overlay, image.stat().st_size, changed, prepared)
    index = answer(python(UPLOAD, store, image))
    stacked = json.dumps(
        {
            "driver": "qcow2",
            "file": {"driver": "file", "filename": str(overlay)},
            "backing": {"driver": "raw", "file": {"driver": "file", "filename": str(image)}},
        }
    )

    def capture(path: Path) -> tuple[Run, int]:
        copy = path / "store"
        shutil.copytree(store, copy)
        before = held(copy)
        run = timed(python(CAPTURE, copy, overlay, image, index))
        return run, held(copy) - before

    def restic_capture(path: Path) -> tuple[Run, int]:
        # restic reads files only: the flattened copy that it needs is made before the clock starts.
        env, disk = restic_env(path), path / "disk.raw"
        timed(["restic", "init", "-q"], env=env)
        shutil.copyfile(image, disk)
        timed(["restic", "backup", "-q", str(disk)], env=env)
        before = held(path / "restic")
        timed(["qemu-img", "convert", f"json:{stacked}", "-O", "raw", str(disk)])
        run = timed(["restic", "backup", "-q", str(disk)], env=env)
        return run, held(path / "restic") - before

    bench.row("capture", "calotype", capture)
    bench.convert("capture", [f"json:{stacked}"])
    if restic:
        bench.row("capture", "restic", restic_capture)
    shutil.rmtree(prepared)
    return total


def write_overlay(path: Path, size: int, changed: int, scratch: Path) -> int:
    """Overwrite random places of the disk by qemu-io with bytes that compress about as files do."""
    subprocess.run(python(CREATE, path, size), check=True)
    rng = random.Random(100)
    length = int(RUN_MIB * MIB)
    places = rng.sample(range(size // length), int(changed / RUN_MIB))
    words = [rng.randbytes(6) for _ in range(4000)]
    commands = []
    for number, place in enumerate(sorted(places)):
        data = b"".join(rng.choice(words) for _ in range(length // 6 + 1))[:length]
        source = scratch / f"change{number}"
        source.write_bytes(data)
        commands.append(f"write -q -s {source} {place * length} {length}")
    script = "\n".join([*commands, "quit", ""]).encode()
    io = ["qemu-io", "-f", "qcow2", str(path)]
    subprocess.run(io, input=script, check=True, stdout=subprocess.DEVNULL)
    for number in range(len(places)):
        (scratch / f"change{number}").unlink()
    return len(places) * length


def machine() -> dict[str, str]:
    model = answer(["sh", "-c", "grep -m1 'model name' /proc/cpuinfo | cut -d: -f2"])
    tools = {"qemu-img": answer(["qemu-img", "--version"]).splitlines()[0]}
    if shutil.which("restic"):
        tools["restic"] = answer(["restic", "version"])
    return {
        "cpu": f"{os.cpu_count()} cores, {model}",
        "memory": answer(["sh", "-c", "grep MemTotal /proc/meminfo | tr -s ' '"]),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        **tools,
    }


def table(report: dict[str, object], rows: list[Row]) -> str:
    ours = {row.work: row for row in rows if row.tool == "calotype"}
    lines = [
        "# Upload and capture",
        "",
        "Written by `bench/upload_capture.py`. Medians; *ratio* is the tool's wall clock over Calotype's",
        "(above 1: Calotype is faster), *stored* is what the work added to the store or copy. Every process",
        "ends with its output synced, start-up included; caches are warm. qemu-img neither hashes nor",
        "deduplicates. restic's capture reads a flattened copy that is made before its clock starts.",
        "",
        *(f"- {name}: {value}" for name, value in report.items()),
        "",
        "| work | tool | seconds | min-max | ratio | CPU s | peak MiB | stored MiB | stored ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        own = ours[row.work]
        stored = f"{row.stored / own.stored:.2f}" if own.stored > MIB else ""
        lines.append(
            f"| {row.work} | {row.tool} | {row.seconds:.2f} | {row.spread[0]:.2f}-{row.spread[1]:.2f} "
            f"| {row.seconds / own.seconds:.2f} | {row.cpu:.2f} | {row.memory:.0f} "
            f"| {row.stored / MIB:.1f} | {stored} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("image", type=Path, help="a raw disk image")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--changed", type=int, default=100, help="MiB that the capture finds changed"
    )
    parser.add_argument("--scratch", type=Path, default=Path("/var/tmp/calotype-bench"))
    parser.add_argument("--report", type=Path, default=REPORT, help="without suffix")
    args = parser.parse_args()
    image = args.image.resolve()
    restic = shutil.which("restic") is not None
    with image.open("rb") as file:
        while file.read(16 * MIB):
            pass
    bench = Bench(args.scratch, args.runs)
    upload_rows(bench, image, restic=restic)
    total = capture_rows(bench, image, args.changed, restic=restic)
    shutil.rmtree(args.scratch, ignore_errors=True)
    report: dict[str, object] = {
        "image": f"{image.name}: {image.stat().st_size / MIB:.0f} MiB, {held(image) / MIB:.0f} MiB of data",
        "changed by the capture": f"{total / MIB:.0f} MiB in runs of {RUN_MIB * 1024:.0f} KiB",
        "runs of each row": args.runs,
        **machine(),
    }
    args.report.parent.mkdir(parents=True, exist_ok=True)
    found = {**report, "rows": [asdict(row) for row in bench.rows]}
    args.report.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
    args.report.with_suffix(".md").write_text(table(report, bench.rows))


if __name__ == "__main__":
    main()
