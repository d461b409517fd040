"""How the catalogue answers with a thousand to a million image versions, beside plain SQLite.

    .venv/bin/python -m bench.catalogue [--most 1000000] [--calls 2000]

One catalogue grows from scale to scale: 1,000 definitions in 50 galleries, one of which holds a tenth of all
versions. Every tenth image has data disks; a tenth of the versions is staged, excluded from latest,
deprecated or deleted. Each call goes through `Catalog`, a transaction each; beside it, in turns, the same
work as plain statements of Python's sqlite3, with which nothing here can be faster. A publication is on
the disk when its call returns, in both.

Writes docs/reports/catalogue.md, .json and .svg.
"""

import argparse
import contextlib
import gc
import json
import math
import os
import random
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench.measure import flush, machine
from sqlalchemy import create_engine, insert

from calotype.catalog import Act, Catalog, rows, tables
from calotype.model import (
    GIB,
    Gallery,
    Image,
    ImageDefinition,
    ImageDisk,
    ImageVersion,
    Lifecycle,
    OsState,
    OsType,
    Provenance,
    Scope,
    Shelf,
    SourceKind,
    Stage,
    Verdict,
    Version,
)

REPORT = Path(__file__).parents[1] / "docs" / "reports" / "catalogue"
SCALES = (1_000, 10_000, 100_000, 1_000_000)
TARGET_MS = 10.0  # of the 99th percentile, at the largest scale
GALLERIES, DEFINITIONS = 50, 1_000
MANAGED = 100  # images that are in no gallery
PAGE, DEEP = 100, 50  # versions on a page; the smallest catalogue has 50 behind its deep one
_START = datetime(2020, 1, 1, tzinfo=UTC)
_NAMES = uuid.UUID("8f0a4a4e-2d51-4c38-9e1c-5bb1a0a6d0c5")
_BATCH = 10_000
_SOME = 2_000  # versions that calls ask for
_TURN = 50  # calls before it is the other's turn


def identifier(kind: str, number: int) -> str:
    return str(uuid.uuid5(_NAMES, f"{kind} {number}"))


def place(number: int) -> tuple[int, int]:
    """The definition of the version of that number, and the how-manieth it is there; every tenth is in 0."""
    if number % 10 == 0:
        return 0, number // 10
    other = number - number // 10 - 1
    return 1 + other % (DEFINITIONS - 1), other // (DEFINITIONS - 1)


def numbered(nth: int) -> Version:
    return Version(nth // 1_000, nth // 10 % 100, nth % 10)


def reference(definition: int, version: Version) -> str:
    return f"gallery-{definition % GALLERIES}/definition-{definition}/{version}"


def version(number: int) -> ImageVersion:
    """The version of that number, with the image that it is; always the same one."""
    definition, nth = place(number)
    spread = random.Random(number)
    share, name = spread.random(), reference(definition, numbered(nth))
    data = range(spread.randint(1, 3)) if spread.random() < 0.1 else range(0)
    image = Image(
        id=identifier("image", number),
        name=name,
        os_type=OsType.LINUX,
        os_state=OsState.GENERALIZED,
        os_disk=ImageDisk(index=spread.randbytes(32).hex(), size=30 * GIB),
        data_disks=tuple(
            ImageDisk(index=spread.randbytes(32).hex(), size=GIB, lun=lun) for lun in data
        ),
        tags={"build": str(number)},
        stage=Stage.STAGED if share < 0.03 else Stage.PROMOTED,
        verdict=Verdict.GENERALIZED,
        provenance=Provenance(
            kind=SourceKind.VM, source=f"builder-{number}", vm_id=identifier("vm", number)
        ),
        created_at=_START + timedelta(minutes=number),
        scope=Scope(),
        shelf=Shelf.GALLERY,
        parents=(identifier("image", number - 10),) if number >= 10 else (),
    )
    deleted = _START + timedelta(minutes=number + 60) if 0.08 <= share < 0.1 else None
    return ImageVersion(
        definition_id=identifier("definition", definition),
        reference=name,
        version=numbered(nth),
        image=image,
        exclude_from_latest=0.03 <= share < 0.05,
        state=Lifecycle.DEPRECATED if 0.05 <= share < 0.08 else Lifecycle.ACTIVE,
        end_of_life=_START + timedelta(days=3650, minutes=number),
        deleted_at=deleted,
        purge_at=deleted + timedelta(days=7) if deleted else None,
    )


def furnish(catalog: Catalog) -> None:
    """Galleries, definitions, and images that are in no gallery."""
    act = Act("bench.fill", "bench")
    for number in range(GALLERIES):
        name = f"gallery-{number}"
        catalog.galleries.add(
            Gallery(id=identifier("gallery", number), name=name, created_at=_START), act
        )
    for number in range(DEFINITIONS):
        definition = ImageDefinition(
            id=identifier("definition", number),
            gallery_id=identifier("gallery", number % GALLERIES),
            gallery=f"gallery-{number % GALLERIES}",
            name=f"definition-{number}",
            publisher="bench",
            offer="catalogue",
            sku=f"sku-{number}",
            os_type=OsType.LINUX,
            os_state=OsState.GENERALIZED,
            created_at=_START,
        )
        catalog.galleries.add_definition(definition, act)
    for number in range(MANAGED):
        image = version(-1 - number).image
        catalog.add_image(replace(image, name=f"image-{number}", shelf=Shelf.MANAGED))


def fill(path: Path, numbers: range) -> None:
    """Bring versions in by the tables, ten thousand in a transaction."""
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as db:
        db.exec_driver_sql("PRAGMA synchronous = OFF")
        for first in range(numbers.start, numbers.stop, _BATCH):
            made = [version(n) for n in range(first, min(first + _BATCH, numbers.stop))]
            db.execute(insert(tables.images), [rows.image_row(v.image) for v in made])
            disks = [row for v in made for row in rows.image_disk_rows(v.image)]
            db.execute(insert(tables.image_disks), disks)
            db.execute(insert(tables.lineage), [{"id": v.id, "name": v.reference} for v in made])
            above = [row for v in made for row in rows.descent_rows(v.image)]
            db.execute(insert(tables.descent), above)
            db.execute(insert(tables.versions), [_row(v) for v in made])
            db.commit()
        db.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()


def _row(version: ImageVersion) -> dict[str, Any]:
    eligible = version.image.stage is Stage.PROMOTED and version.state is Lifecycle.ACTIVE
    return {
        "image_id": version.id,
        "definition_id": version.definition_id,
        **version.version._asdict(),
        "eligible": eligible and not (version.exclude_from_latest or version.deleted_at),
        "exclude_from_latest": version.exclude_from_latest,
        "state": version.state.value,
        "end_of_life": version.end_of_life,
        "block_deletion": version.block_deletion_before_end_of_life,
        "excluded_regions": list(version.excluded_regions),
        "deleted_at": version.deleted_at,
        "purge_at": version.purge_at,
    }


@dataclass(frozen=True, slots=True)
class Work:
    """Something that is asked of the catalogue: ``ours`` through `Catalog`, ``plain`` by sqlite3."""

    name: str
    ours: Callable[[], object]
    plain: Callable[[], object] | None = None
    fewer: int = 1  # times fewer calls


_JOINED = "SELECT * FROM images i JOIN versions v ON v.image_id = i.id WHERE v.definition_id = ?"
_NEWEST = " ORDER BY major DESC, minor DESC, patch DESC LIMIT "
_DISKS = "SELECT * FROM image_disks WHERE image_id = ? ORDER BY position"


class Bench:
    """The works on a catalogue of one scale; a work asks for another version each time."""

    def __init__(self, catalog: Catalog, plain: sqlite3.Connection, size: int, fresh: int) -> None:
        self._catalog, self._plain, self._size = catalog, plain, size
        self._fresh = fresh  # the first number that nobody published
        self._random = random.Random(size)
        self._published: list[str] = []
        self._biggest = identifier("definition", 0)
        self._deep = numbered(size // 10 // 2)
        self._some: list[tuple[int, Version]] = []
        while len(self._some) < _SOME:
            number = self._random.randrange(size)
            if len(self._some) % 2:
                number -= number % 10  # of the largest definition
            if _row(made := version(number))["eligible"]:
                self._some.append((place(number)[0], made.version))

    def works(self) -> list[Work]:
        """All works, those that change the catalogue last."""
        return [
            Work("get a version", self._get, self._plain_get),
            Work("latest", self._latest, self._plain_latest),
            Work("latest, by its reference", self._resolve),
            Work("first page of 100", self._first, self._plain_first),
            Work("deep page of 50", self._page, self._plain_page),
            Work("list 100 images", self._images, self._plain_images),
            Work("which of ten disks are needed", self._needed),
            Work("publish", self._publish, self._plain_publish, 2),
            Work("promote", self._promote, None, 2),
        ]

    def _any(self) -> tuple[int, Version]:
        """The definition and the number of a version that may be the latest."""
        return self._random.choice(self._some)

    def _get(self) -> object:
        definition, number = self._any()
        return self._catalog.versions.get(identifier("definition", definition), number)

    def _latest(self) -> object:
        definition, _number = self._any()
        return self._catalog.versions.latest(identifier("definition", definition))

    def _resolve(self) -> object:
        number, _version = self._any()
        name = f"definition-{number}"
        found = self._catalog.galleries.definition(f"gallery-{number % GALLERIES}", name)
        return self._catalog.versions.latest(found.id)

    def _first(self) -> object:
        return self._catalog.versions.list(self._biggest, limit=PAGE)

    def _page(self) -> object:
        return self._catalog.versions.list(self._biggest, limit=DEEP, before=self._deep)

    def _images(self) -> object:
        return self._catalog.list_images()

    def _needed(self) -> object:
        """What housekeeping asks after a VM or an image was deleted."""
        return self._catalog.indexes_in_use({self._random.randbytes(32).hex() for _ in range(10)})

    def _new(self) -> ImageVersion:
        self._fresh += 1
        made = version(self._fresh - 1)
        staged = replace(made.image, stage=Stage.STAGED)
        return replace(made, image=staged, deleted_at=None, purge_at=None)

    def _publish(self) -> None:
        made = self._new()
        self._published.append(made.id)
        self._catalog.versions.add(made, Act("version.create", f"version {made.reference}"))

    def _promote(self) -> None:
        self._catalog.promote_image(self._published.pop())

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of a query, and those of the disks of each."""
        with self._transaction("BEGIN"):
            found = self._plain.execute(query, values).fetchall()
            for row in found:
                self._plain.execute(_DISKS, (row[0],)).fetchall()
        return found

    def _plain_get(self) -> object:
        definition, number = self._any()
        where = " AND major = ? AND minor = ? AND patch = ?"
        return self._rows(_JOINED + where, identifier("definition", definition), *number)

    def _plain_latest(self) -> object:
        query = f"{_JOINED} AND eligible{_NEWEST}1"
        return self._rows(query, identifier("definition", self._any()[0]))

    def _plain_first(self) -> object:
        return self._rows(f"{_JOINED} AND deleted_at IS NULL{_NEWEST}{PAGE}", self._biggest)

    def _plain_page(self) -> object:
        where = f"{_JOINED} AND deleted_at IS NULL AND (major, minor, patch) < (?, ?, ?)"
        return self._rows(f"{where}{_NEWEST}{DEEP}", self._biggest, *self._deep)

    def _plain_images(self) -> object:
        scope = (Shelf.MANAGED.value, Scope().subscription, Scope().group)
        where = "shelf = ? AND subscription = ? AND resource_group = ?"
        return self._rows(f"SELECT * FROM images WHERE {where} ORDER BY name", *scope)

    def _plain_publish(self) -> None:
        """The rows of a version, without an entry of the audit."""
        made = self._new()
        with self._transaction("BEGIN IMMEDIATE"):
            self._insert("images", rows.image_row(made.image))
            for row in rows.image_disk_rows(made.image):
                self._insert("image_disks", row)
            self._insert("lineage", {"id": made.id, "name": made.reference})
            self._insert("versions", _row(made))

    def _insert(self, table: str, row: Mapping[str, Any]) -> None:
        columns = ", ".join(f'"{name}"' for name in row)
        marks = ", ".join("?" for _ in row)
        values = [
            json.dumps(value) if isinstance(value, dict | list) else _plainly(value)
            for value in row.values()
        ]
        self._plain.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", values)

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        self._plain.execute(begin)
        yield
        self._plain.execute("COMMIT")


def _plainly(value: object) -> object:
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(" ", "microseconds")
    return value


def measure(work: Work, calls: int) -> dict[str, Any]:
    """The times of a work, in turns with the plain statements."""
    ours: list[tuple[float, float]] = []
    plain: list[tuple[float, float]] = []
    for _ in range(10):
        timed(work.ours)
    # What this bench itself holds is not looked through in every hundredth call.
    gc.collect()
    gc.freeze()
    while len(ours) < calls:
        ours += [timed(work.ours) for _ in range(min(_TURN, calls - len(ours)))]
        if work.plain is not None:
            plain += [timed(work.plain) for _ in range(min(_TURN, calls - len(plain)))]
    row = {"work": work.name, "calls": calls, **_figures(ours)}
    return row | ({"plain": _figures(plain)} if plain else {})


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of a call by the clock, and of this thread's CPU."""
    begin, cpu = time.perf_counter(), time.thread_time()
    call()
    return (time.perf_counter() - begin) * 1e3, (time.thread_time() - cpu) * 1e3


def _figures(times: Sequence[tuple[float, float]]) -> dict[str, float]:
    wall, cpu = ([pair[n] for pair in times] for n in (0, 1))
    return {
        "p50_ms": round(statistics.median(wall), 3),
        "p99_ms": round(statistics.quantiles(wall, n=100)[98], 3),
        "most_ms": round(max(wall), 3),
        "cpu_p50_ms": round(statistics.median(cpu), 3),
        "cpu_p99_ms": round(statistics.quantiles(cpu, n=100)[98], 3),
    }


def growth(figures: Mapping[int, float]) -> dict[str, float]:
    """How a time grows with the number of versions.

    ``each_tenfold_ms``: what ten times as many versions add, by least squares over log n; ``exponent``: of
    the power law n^e that fits best (0 when it does not grow, 1 when it is proportional).
    """
    logs = [math.log10(n) for n in figures]
    times = list(figures.values())
    line = statistics.linear_regression(logs, times)
    power = statistics.linear_regression(logs, [math.log10(t) for t in times])
    return {"each_tenfold_ms": round(line.slope, 4), "exponent": round(power.slope, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--most", type=int, default=SCALES[-1])
    parser.add_argument("--calls", type=int, default=2_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="calotype-catalogue-", dir="/var/tmp") as scratch:
        results = run(Path(scratch), [n for n in SCALES if n <= args.most], args.calls)
        write(results, {k: v for k, v in machine(Path(scratch)).items() if k in _ABOUT})


_ABOUT = ("cpu", "memory", "disk", "kernel", "python")


def run(scratch: Path, scales: Sequence[int], calls: int) -> list[dict[str, Any]]:
    """Grow a catalogue from scale to scale, and measure each work at each."""
    path, results, there = scratch / "catalog.db", [], 0
    furnish(Catalog(path))
    for scale in scales:
        begin = time.monotonic()
        fill(path, range(there, scale))
        flush(scratch)
        print(f"{scale} versions in {time.monotonic() - begin:.0f} s", flush=True)
        catalog, plain = Catalog(path), sqlite3.connect(path, isolation_level=None)
        plain.execute("PRAGMA synchronous = FULL")
        plain.execute("PRAGMA foreign_keys = ON")
        # What is published while this scale is measured gets numbers that no later scale fills in.
        bench = Bench(catalog, plain, scale, fresh=scales[-1] + scale)
        for work in bench.works():
            row = {"versions": scale, **measure(work, calls // work.fewer)}
            results.append(row)
            print(f"  {work.name}: p50 {row['p50_ms']} ms, p99 {row['p99_ms']} ms", flush=True)
        plain.close()
        catalog.close()
        there = scale
    return results


def write(results: Sequence[dict[str, Any]], about: dict[str, str]) -> None:
    """Write the report, its plot, and print it."""
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[1]
    about = {
        **about,
        "SQLite": f"{sqlite3.sqlite_version}, WAL, synchronous=FULL",
        "load": f"{load:.1f}",
    }
    report = {"written": time.strftime("%Y-%m-%d"), "machine": about, "calls": list(results)}
    REPORT.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    try:
        from bench import plots  # noqa: PLC0415 - tables are written without matplotlib too
    except ImportError:
        print("no plot: run `make bench-catalogue`, which installs matplotlib")
        picture = []
    else:
        plots.catalogue(results, TARGET_MS, REPORT.with_suffix(".svg"))
        picture = [f"![p99 of each call]({REPORT.name}.svg)", ""]
    lines = [*_HEAD, *picture, *_tables(results)]
    if load > (os.cpu_count() or 1):
        lines += [
            "**The machine was busy with other work**: the p99 by the clock is that of the machine; see CPU.",
            "",
        ]
    lines += ["Conditions: " + "; ".join(f"{k}: {v}" for k, v in about.items()) + ".", ""]
    REPORT.with_suffix(".md").write_text("\n".join(lines))
    print("\n".join(lines))


_HEAD = [
    "# The catalogue with a thousand to a million image versions",
    "",
    "Written by `make bench-catalogue` (`bench/catalogue.py`): 1,000 definitions in 50 galleries, one of",
    "which holds a tenth of all versions and is asked half the time; data disks on every tenth image; a",
    "tenth of the versions staged, excluded, deprecated or deleted. Each call is one transaction through the",
    "catalogue's own interface, access checks included (*by its reference*: two). *Plain* is the same rows",
    "read or written by Python's sqlite3 in the same file, in turns with ours. A publication is durable",
    "(`fsync`) when it returns, with its entry in the audit; plain ones have none. What the bench itself",
    "holds is kept from Python's garbage collector (`gc.freeze`), as servers do with what they loaded.",
    "",
]


def _tables(results: Sequence[dict[str, Any]]) -> list[str]:
    scales = sorted({row["versions"] for row in results})
    most = scales[-1]
    lines = [
        f"## At {most:,} versions",
        "",
        f"| call | calls | p50, ms | p99 | slowest | CPU p99 | plain p50 | plain p99 | ≤ {TARGET_MS:.0f} |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in results:
        if row["versions"] == most:
            plain = row.get("plain", {})
            cells = (
                *(row["work"], row["calls"], row["p50_ms"], row["p99_ms"], row["most_ms"]),
                *(row["cpu_p99_ms"], plain.get("p50_ms", ""), plain.get("p99_ms", "")),
                "yes" if row["p99_ms"] <= TARGET_MS else "**no**",
            )
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    heads = " | ".join(f"{scale:,}" for scale in scales)
    lines += [
        "",
        "## Growth",
        "",
        "The median in ms at each number of versions; what ten times as many add to it (least squares over",
        "log n), and the exponent of the power law that fits best: about 0 is O(log n), 1 would be a scan.",
        "",
        f"| call | {heads} | tenfold adds, ms | exponent |",
        "| --- |" + " ---: |" * (len(scales) + 2),
    ]
    for work in dict.fromkeys(row["work"] for row in results):
        found = {row["versions"]: row["p50_ms"] for row in results if row["work"] == work}
        grows = growth(found) if len(found) > 1 else {"each_tenfold_ms": "", "exponent": ""}
        cells = (work, *found.values(), grows["each_tenfold_ms"], grows["exponent"])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
