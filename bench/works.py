"""What is measured: one image in and out, and the bytes that a set of images takes."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import zstandard
from bench import limits
from bench.images import BenchImage
from bench.log import Log, Sample
from bench.measure import Command, cold, data_runs, held, median, run, warm
from bench.tools import Calotype, Tool, facts, named, ours
from blake3 import blake3

from calotype.store.codec import LEVEL

MIB = 1 << 20
RECOMPRESSED = 15  # the zstd level of `calotype store prune --recompress`
FIXED = "fixed 64 KiB"

#: Who takes part, and in what besides the first upload and the way back with warm caches.
TIMED = (
    *("calotype", "calotype, whole command", "restic", "borg lz4", "borg zstd,1", "casync"),
    *("qemu-img convert", "qemu-img -c zlib", "qemu-img -c zstd", "glance, raw", "glance, qcow2"),
)
ONCE = {"qemu-img -c zlib", "glance, raw"}  # slow, and nobody's target
AGAIN = {"calotype", "restic", "borg lz4"}
COLD = {"calotype", "restic", "borg lz4", "qemu-img convert", "qemu-img -c zstd"}
QUICK = ("calotype", "restic", "borg lz4", "qemu-img convert", "qemu-img -c zstd")
STORED = (
    *("calotype", "restic", "restic max", "borg lz4", "borg zstd,1", "casync"),
    *("qemu-img convert", "qemu-img -c zlib", "qemu-img -c zstd"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Where it happens and how often."""

    log: Log
    scratch: Path
    runs: int
    quick: bool = False

    @contextmanager
    def room(self) -> Iterator[Path]:
        """An empty directory that is gone afterwards."""
        path = self.scratch / "room"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def measured(self, command: Command, room: Path, **about: object) -> Sample:
        """Run a command and tell of it."""
        result = asdict(run(command, room, self.scratch / "output.log"))
        words = " ".join(str(value) for value in about.values())
        print(f"  {words:44} {result['seconds']:8.2f} s {result['memory']:7.0f} MiB", flush=True)
        return {**about, **result}


def rates(bench: Bench, image: BenchImage) -> None:
    """What the machine allows, measured beside the tools, and what there is to do."""
    if bench.log.samples("limits"):
        return
    with bench.room() as room:
        tool = Calotype()
        run(tool.put(room, image.path, "a"), room, bench.scratch / "output.log")
        first = json.loads(facts(room, "a").read_text())
        run(tool.put(room, image.path, "b"), room, bench.scratch / "output.log")
        again = json.loads(facts(room, "b").read_text())
        starting = ours("start", tool.kept(room))
        starts = [run(starting, room, bench.scratch / "output.log").returned for _ in range(5)]
        found = limits.measure(image.path, room)
    hashed = limits.not_zero(image.path)
    works = {name: work(made, hashed) for name, made in (("first", first), ("again", again))}
    seconds = {
        "ingest": limits.ingest_limit(works["first"], found),
        "reingest": limits.ingest_limit(works["again"], found),
        "hydrate": limits.hydrate_limit(works["first"], found),
    }
    sample = {
        "rates": asdict(found),
        "work": asdict(works["first"]),
        "limits": seconds,
        "start": median(starts),
    }
    bench.log.add("limits", [sample])


def work(made: dict[str, int], hashed: int) -> limits.Work:
    """What an ingest had to do, from what it says that it did."""
    return limits.Work(
        data=made["bytes_read"],
        hashed=hashed,
        new=made["new_bytes"],
        stored=made["stored_bytes"],
        chunks=made["chunks"],
    )


def image(bench: Bench, subject: BenchImage) -> None:
    """Rows *ingest*, *reingest* and *hydrate*: every tool in turn, in another order each time."""
    tools = named(*(QUICK if bench.quick else TIMED))
    for number in range(bench.runs):
        print(f"image {subject.name}, run {number + 1} of {bench.runs}", flush=True)
        turn = number * 5 % len(tools)
        for tool in tools[turn:] + tools[:turn]:
            if number and tool.name in ONCE:
                continue
            if not bench.log.has("image", tool=tool.name, run=number):
                samples = [{**s, "run": number} for s in _in_and_out(bench, tool, subject, number)]
                bench.log.add("image", samples)


def _in_and_out(bench: Bench, tool: Tool, subject: BenchImage, number: int) -> Iterator[Sample]:
    """One tool: in, again, out with warm caches, then with cold ones."""
    chills = tool.name in COLD and not bench.quick
    with bench.room() as room, opened(tool, room):
        session = _Session(bench, tool, subject, room)
        warm([subject.path])
        yield session.put("ingest", "warm")
        if tool.name in AGAIN:
            yield session.put("reingest", "warm")
        warm([tool.kept(room)])
        yield session.get("warm", check=number == 0)
        if chills:
            if tool.name in AGAIN:
                cold([subject.path, tool.kept(room)])
                yield session.put("reingest", "cold")
            cold([subject.path, tool.kept(room)])
            yield session.get("cold", check=False)
    if chills:
        with bench.room() as room, opened(tool, room):
            cold([subject.path])
            yield _Session(bench, tool, subject, room).put("ingest", "cold")


@contextmanager
def opened(tool: Tool, room: Path) -> Iterator[None]:
    """The tool with an empty store."""
    tool.open(room)
    try:
        yield
    finally:
        tool.close()


@dataclass(frozen=True, slots=True)
class _Session:
    """One tool with its store in ``room``, and one image."""

    bench: Bench
    tool: Tool
    subject: BenchImage
    room: Path

    def put(self, row: str, caches: str) -> Sample:
        kept = self.tool.kept(self.room)
        before = held(kept) if kept.exists() else 0
        name = self.subject.name if row == "ingest" else f"{self.subject.name}-{caches}"
        command = self.tool.put(self.room, self.subject.path, name)
        sample = self._measured(command, row, caches)
        return {**sample, "stored": held(kept) - before}

    def get(self, caches: str, *, check: bool) -> Sample:
        out = self.room / "out.raw"
        command = self.tool.get(self.room, self.subject.name, self.subject.path, out)
        sample = self._measured(command, "hydrate", caches)
        if check and sha256(out) != sha256(self.subject.path):
            raise SystemExit(f"{self.tool.name} gave back other bytes than it was given")
        out.unlink()
        return sample

    def _measured(self, command: Command, row: str, caches: str) -> Sample:
        return self.bench.measured(command, self.room, row=row, caches=caches, tool=self.tool.name)


def sha256(path: Path) -> str:
    """The digest of a sparse file, its holes from memory."""
    state, zeros, at = hashlib.sha256(), bytes(MIB), 0

    def skip(until: int) -> None:
        nonlocal at
        while at < until:
            state.update(memoryview(zeros)[: min(MIB, until - at)])
            at += min(MIB, until - at)

    with path.open("rb", buffering=0) as file:
        for start, end in data_runs(file.fileno()):
            skip(start)
            file.seek(start)
            while at < end:
                block = file.read(min(MIB, end - at))
                state.update(block)
                at += len(block)
        skip(path.stat().st_size)
    return state.hexdigest()


def stored(bench: Bench, subjects: Sequence[BenchImage], known: Path) -> None:
    """Row *stored*: the bytes that the set takes, after each image.

    Peers' numbers do not depend on the machine's state: they are kept in ``known`` under the versions of
    tool and images, and are not measured twice.
    """
    for tool in named(*STORED):
        if bench.log.has("stored", tool=tool.name):
            continue
        key = _key(tool, subjects)
        kept = json.loads(known.read_text()) if known.exists() else {}
        if tool.name == "calotype" or key not in kept:
            kept[key] = _sizes(bench, tool, subjects)
            if tool.name != "calotype":
                known.write_text(json.dumps(kept, indent=1))
        sizes = kept[key]
        print(f"  stored {tool.name:37} {sizes[-1] / MIB:8.1f} MiB", flush=True)
        bench.log.add("stored", [{"tool": tool.name, "sizes": sizes}])
    if not bench.log.has("stored", tool="calotype, recompressed"):
        sizes = _sizes(bench, Calotype(), subjects, recompress=True)
        bench.log.add("stored", [{"tool": "calotype, recompressed", "sizes": sizes}])
    if not bench.log.has("stored", tool=FIXED):
        kept = json.loads(known.read_text()) if known.exists() else {}
        key = f"{FIXED} zstd-{LEVEL} {' '.join(s.path.stem for s in subjects)}"
        if key not in kept:
            kept[key] = fixed(subjects)
            known.write_text(json.dumps(kept, indent=1))
        bench.log.add("stored", [{"tool": FIXED, "sizes": kept[key]}])


def _key(tool: Tool, subjects: Sequence[BenchImage]) -> str:
    program = shutil.which(tool.program) or ""
    version = os.stat(program).st_mtime_ns if program else 0
    return f"{tool.name} {version} {' '.join(s.path.stem for s in subjects)}"


def _sizes(
    bench: Bench, tool: Tool, subjects: Sequence[BenchImage], *, recompress: bool = False
) -> list[int]:
    found = []
    with bench.room() as room, opened(tool, room):
        for subject in subjects:
            command = tool.put(room, subject.path, subject.name)
            run(command, room, bench.scratch / "output.log")
            found.append(held(tool.kept(room)))
        if recompress:
            command = ours("recompress", tool.kept(room), str(RECOMPRESSED))
            run(command, room, bench.scratch / "output.log")
            found = [held(tool.kept(room))]
    return found


def fixed(subjects: Sequence[BenchImage], size: int = 64 << 10) -> list[int]:
    """What chunks of one size would take: each new one compressed, and 50 bytes of index for each."""
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    seen: set[bytes] = set()
    total, found = 0, []
    for subject in subjects:
        with subject.path.open("rb", buffering=0) as file:
            for start, end in data_runs(file.fileno()):
                for at in range(start // size * size, end, size):
                    block = os.pread(file.fileno(), size, at)
                    if block.count(0) == len(block):
                        continue
                    total += 50
                    if (digest := blake3(block).digest()) not in seen:
                        seen.add(digest)
                        total += min(len(block), len(compressor.compress(block)))
        found.append(total)
    return found


def space(scratch: Path, least: int) -> None:
    """Refuse to begin what cannot end.

    Raises:
        SystemExit: the disk is too full.
    """
    free = shutil.disk_usage(scratch).free
    if free < least:
        sys.exit(f"bench: {scratch} needs {least >> 30} GiB of free space and has {free >> 30}")
