"""The reports in docs/reports: store.json, store.md with its plots, and targets.md, which joins all."""

import json
from collections.abc import Mapping
from pathlib import Path

from bench import targets
from bench.log import Log
from bench.summary import OURS, Capture, Figure, Figures, Summary
from bench.tools import every

MIB, GIB = 1 << 20, 1 << 30
REPORTS = Path(__file__).parents[1] / "docs" / "reports"
_TITLES = {
    "ingest": "First ingest",
    "reingest": "Re-ingest of known bytes",
    "hydrate": "Hydrate to a raw file",
}


def write(log: Log, about: Mapping[str, str], *, quick: bool) -> None:
    """Write all reports; when quick, print what there is."""
    summary = Summary.of(log, about)
    launch = targets.launches(REPORTS / "launch.json")
    found = targets.rows(summary, {} if quick else launch)
    if quick:
        print("\n".join(targets.table(found)))
        return
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / "store.json").write_text(json.dumps(summary.json(), indent=1) + "\n")
    pictures = _plots(summary)
    (REPORTS / "store.md").write_text("\n".join(_store(summary, [p.name for p in pictures])))
    (REPORTS / "targets.md").write_text("\n".join(_targets(summary, found)))
    print("\n".join(targets.table(found)))
    print(f"written: {REPORTS}/targets.md, store.md, store.json")


def _plots(summary: Summary) -> list[Path]:
    try:
        from bench import plots  # noqa: PLC0415 - tables are written without matplotlib too
    except ImportError:
        print("no plots: run `make bench-setup`")
        return []
    return plots.write(summary, REPORTS / "store")


def _targets(summary: Summary, found: list[targets.Row]) -> list[str]:
    lost = [f"- {line}" for line in targets.losses(summary)] or ["- nowhere"]
    return [
        "# Targets",
        "",
        "Written by `make bench`. For times, *k x peer* means that the peer takes k times as long. All is",
        "measured in one run on one machine; conditions and spreads are in [store.md](store.md) and",
        "[launch.md](launch.md).",
        "",
        *targets.table(found),
        "",
        "## Where others are faster or smaller",
        "",
        *lost,
        "",
        "## Machine",
        "",
        *_about(summary.about),
        "",
    ]


def _store(summary: Summary, pictures: list[str]) -> list[str]:
    lines = [
        "# The store against its peers",
        "",
        "Written by `make bench` (`bench/store.py`). Tools take turns, in another order in each run; figures",
        "are medians. A run begins with a synced file system and ends when the tool has ended **and** the",
        "file system is synced; *returned* is when the tool ended. Start-up counts. *Warm*: source and store",
        "are in the page cache; *cold*: caches were dropped just before. Memory is the peak of the whole",
        "process tree, for Glance with its server. What each tool gave back was compared with what it was",
        "given, once, by SHA-256.",
        "",
        *_about(summary.about),
        "",
        *[f"![{name}]({name})" for name in pictures],
        "",
        *_limits(summary),
        *_stored(summary.stored),
    ]
    for name, figures in summary.image.items():
        row, caches = name.split(", ")
        lines += [f"## {_TITLES[row]}, {caches} caches", ""]
        limit = summary.limits.get("limits", {}).get(row) if caches == "warm" else None
        lines += [*_figures(figures, limit), ""]
    for disk in summary.capture:
        lines += _capture(disk)
    lines += ["## Tools", "", *(f"- **{tool.name}**: {tool.note}" for tool in every()), ""]
    return lines


def _about(about: Mapping[str, str]) -> list[str]:
    return [f"- {name}: {value}" for name, value in about.items()]


def _limits(summary: Summary) -> list[str]:
    if not summary.limits:
        return []
    rates, work = summary.limits["rates"], summary.limits["work"]
    names = ("read", "hash", "compress", "decompress", "write", "sync", "device")
    told = ", ".join(f"{name} {rates[name] / 1e6:.0f}" for name in names)
    return [
        "## The machine's limits",
        "",
        f"MB/s of one core, or of the device: {told}; Python {rates['tau'] * 1e6:.1f} µs a chunk;",
        f"{rates['cores']} cores. The image: {work['data'] / MIB:.0f} MiB read,",
        f"{work['hashed'] / MIB:.0f} MiB not zero, {work['new'] / MIB:.0f} MiB of new chunks,",
        f"{work['chunks']} chunks. Python's start and imports, which count for Calotype everywhere:",
        f"{summary.limits['start']:.2f} s.",
        "",
    ]


def _stored(stored: Mapping[str, list[int]]) -> list[str]:
    if not stored:
        return []
    lines = [
        "## Stored bytes of the six images",
        "",
        "MiB after base, base rebuilt, web, dev, base later, dev later. *Fixed 64 KiB* is computed: zstd-3",
        "for each distinct chunk and 50 bytes of index a chunk. The images are built by `bench/images.py`:",
        "the earlier ones from Debian's point release alone, the later ones anew, with bookworm-updates and",
        "bookworm-security.",
        "",
        "| tool | after each image | all | Calotype / it |",
        "|---|---|---|---|",
    ]
    ours = stored.get(OURS, [0])[-1]
    for tool, sizes in sorted(stored.items(), key=lambda pair: pair[1][-1]):
        steps = " ".join(f"{size / MIB:.0f}" for size in sizes) if len(sizes) > 1 else ""
        lines.append(f"| {tool} | {steps} | {sizes[-1] / MIB:.1f} | {ours / sizes[-1]:.2f} |")
    return [*lines, ""]


def _figures(figures: Figures, limit: float | None) -> list[str]:
    lines = [
        "| tool | seconds | min-max | returned | x Calotype | CPU s | peak MiB | stored MiB | runs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ours = figures[OURS].seconds if OURS in figures else None
    lines += [_figure(figure, ours) for figure in figures.values()]
    if limit is not None:
        share = f"{limit / ours:.2f}" if ours else ""
        lines.append(f"| *the machine's limit* | {limit:.2f} | | | {share} | | | | |")
    return lines


def _figure(figure: Figure, ours: float | None) -> str:
    ratio = f"{figure.seconds / ours:.2f}" if ours else ""
    stored = "" if figure.stored is None else f"{figure.stored / MIB:.1f}"
    return (
        f"| {figure.tool} | {figure.seconds:.2f} | {figure.least:.2f}-{figure.most:.2f} "
        f"| {figure.returned:.2f} | {ratio} | {figure.cpu:.2f} | {figure.memory:.0f} | {stored} "
        f"| {figure.runs} |"
    )


def _capture(disk: Capture) -> list[str]:
    lines = [
        f"## Capture, a disk of {disk.gib} GiB",
        "",
        f"{disk.data / GIB:.1f} GiB in use, {disk.changed / MIB:.0f} MiB changed; zstd-3 makes of them",
        f"{disk.compressed / MIB:.1f} MiB in one stream. restic reads a flattened copy that is made before",
        "its clock starts; `qemu-img convert -B` copies the overlay alone, unhashed, and the chain stays.",
        "",
        *_figures(disk.warm, None),
        "",
    ]
    if disk.cold:
        lines += ["Cold:", "", *_figures(disk.cold, None), ""]
    return lines
