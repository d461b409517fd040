"""The table of targets: each row with our figure, each peer's, the limit's, and whether the target holds."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.capture import COPY
from bench.summary import OURS, Figures, Summary

MIB = 1 << 20
MEMORY = 300  # MiB


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One target; ``holds`` is None where it was not measured."""

    work: str
    target: str
    ours: str
    others: str
    holds: bool | None


def rows(summary: Summary, launch: Mapping[str, Any]) -> list[Row]:
    """The targets, in the order in which they were set."""
    return [
        *_stored(summary),
        *_image(summary, "ingest", {"restic": 3.0, "casync": 3.0, "borg lz4": 1.2}, limit=0.6),
        *_image(summary, "reingest", {"restic": 4.0}, limit=0.5),
        *_image(summary, "hydrate", {"restic": 2.0, "borg lz4": 2.0}, limit=0.6),
        *_capture(summary),
        *_hot(launch),
        *_cold(launch),
        *_memory(summary, launch),
    ]


def losses(summary: Summary) -> list[str]:
    """Where a peer is faster or smaller than we are, in words."""
    found = []
    for row, figures in summary.image.items():
        if (ours := figures.get(OURS)) is None:
            continue
        for tool, figure in figures.items():
            if figure.seconds < ours.seconds and not tool.startswith(OURS):
                found.append(
                    f"{row}: {tool} takes {figure.seconds:.2f} s, we take {ours.seconds:.2f} s"
                )
    for disk in summary.capture:
        ours = disk.warm[OURS]
        for tool, figure in disk.warm.items():
            if figure.seconds < ours.seconds:
                found.append(
                    f"capture, disk of {disk.gib} GiB: {tool} takes {figure.seconds:.2f} s, "
                    f"we take {ours.seconds:.2f} s"
                )
    if OURS in summary.stored:
        total = summary.stored[OURS][-1]
        found += [
            f"stored bytes of the set: {tool} takes {sizes[-1] / MIB:.0f} MiB, "
            f"we take {total / MIB:.0f} MiB"
            for tool, sizes in summary.stored.items()
            if sizes[-1] < total and not tool.startswith(OURS)
        ]
    return found


def _stored(summary: Summary) -> Iterator[Row]:
    if OURS not in summary.stored:
        return
    ours = summary.stored[OURS][-1]
    wanted = {"restic": 0.55, "borg lz4": 0.55, "borg zstd,1": 0.55, "casync": 0.85}
    for tool, most in wanted.items():
        if tool not in summary.stored:
            continue
        peer = summary.stored[tool][-1]
        yield Row(
            work="stored bytes, the six images",
            target=f"≤ {most} x {tool}",
            ours=f"{ours / MIB:.0f} MiB = **{ours / peer:.2f} x**",
            others=f"{tool} {peer / MIB:.0f} MiB",
            holds=ours <= most * peer,
        )
    repacked = summary.stored.get(f"{OURS}, recompressed")
    if repacked and "restic" in summary.stored:
        total, peer = repacked[-1], summary.stored["restic"][-1]
        yield Row(
            work="the same after `prune` recompressed it",
            target="≤ 0.55 x restic",
            ours=f"{total / MIB:.0f} MiB = **{total / peer:.2f} x**",
            others=f"restic {peer / MIB:.0f} MiB",
            holds=total <= 0.55 * peer,
        )


def _image(
    summary: Summary, row: str, factors: Mapping[str, float], *, limit: float
) -> Iterator[Row]:
    names = {
        "ingest": "first ingest",
        "reingest": "re-ingest of known bytes",
        "hydrate": "hydrate to a raw file",
    }
    for caches in ("warm", "cold"):
        figures = summary.image.get(f"{row}, {caches}", {})
        if OURS not in figures:
            continue
        ours = figures[OURS].seconds
        others = _others(figures)
        for tool, least in factors.items():
            if tool in figures:
                yield Row(
                    work=f"{names[row]}, {caches}",
                    target=f"≥ {least:g} x {tool}",
                    ours=f"{ours:.2f} s = **{figures[tool].seconds / ours:.1f} x**",
                    others=others,
                    holds=figures[tool].seconds >= least * ours,
                )
                others = ""  # told once
        if caches == "warm" and summary.limits:
            least_seconds = summary.limits["limits"][row]
            start = summary.limits["start"]
            yield Row(
                work=f"{names[row]}, {caches}",
                target=f"≥ {limit:g} of the limit",
                ours=f"{ours:.2f} s = **{least_seconds / ours:.2f}**",
                others=(f"limit {least_seconds:.2f} s; of ours {start:.2f} s are Python's start"),
                holds=least_seconds >= limit * ours,
            )


def _others(figures: Figures) -> str:
    return ", ".join(
        f"{f.tool} {f.seconds:.2f} s" for f in figures.values() if not f.tool.startswith(OURS)
    )


def _capture(summary: Summary) -> Iterator[Row]:
    if not summary.capture:
        return
    for caches in ("warm", "cold"):
        disks = [getattr(disk, caches) for disk in summary.capture]
        if not all(OURS in figures for figures in disks):
            continue
        seconds = [figures[OURS].seconds for figures in disks]
        told = ", ".join(
            f"{s:.2f} s at {d.gib}" for s, d in zip(seconds, summary.capture, strict=True)
        )
        yield Row(
            work=f"capture of 100 MiB, {caches}",
            target="≤ 1 s",
            ours=f"{told} GiB",
            others="",
            holds=max(seconds) <= 1.0,
        )
        middle = (max(seconds) + min(seconds)) / 2
        spread = (max(seconds) - min(seconds)) / 2 / middle
        yield Row(
            work=f"capture of 100 MiB, {caches}",
            target="flat in the disk's size, ± 20 %",
            ours=f"**± {spread:.0%}**",
            others="",
            holds=spread <= 0.2,
        )
    shares = [(d.warm[OURS].stored or 0) / d.compressed for d in summary.capture]
    yield Row(
        work="capture of 100 MiB, stored",
        target="≤ 1.15 x what changed, compressed (zstd-3, one stream)",
        ours=f"**{max(shares):.2f} x** at most",
        others="",
        holds=max(shares) <= 1.15,
    )
    for disk in summary.capture:
        if COPY in disk.warm:
            ratio = disk.warm[COPY].seconds / disk.warm[OURS].seconds
            yield Row(
                work=f"capture, disk of {disk.gib} GiB with {disk.data / (1 << 30):.1f} GiB in use",
                target="≥ 20 x a full copy" if disk.gib == 50 else "(20 x a full copy at 50 GiB)",
                ours=f"{disk.warm[OURS].seconds:.2f} s = **{ratio:.0f} x**",
                others=_others(disk.warm),
                holds=ratio >= 20 if disk.gib == 50 else None,
            )
        if COPY in disk.warm and disk.gib == 50:
            full = disk.warm[COPY].seconds * (disk.gib << 30) / disk.data
            ratio = full / disk.warm[OURS].seconds
            yield Row(
                work="capture, disk of 50 GiB, were all of it in use",
                target="≥ 20 x a full copy",
                ours=f"{disk.warm[OURS].seconds:.2f} s = **{ratio:.0f} x**",
                others=f"qemu-img convert {full:.0f} s (computed: its seconds for each GiB in use)",
                holds=ratio >= 20,
            )


def _hot(launch: Mapping[str, Any]) -> Iterator[Row]:
    found = launch.get("hot", [])
    if not found:
        yield _missing("hot launch", "limit + ≤ 10 ms, flat", "hot")
        return
    over = [(r["engine"]["median"] - r["limit"]["median"]) * 1000 for r in found]
    told = ", ".join(f"{o:+.0f} ms at {r['size'] >> 30}" for o, r in zip(over, found, strict=True))
    limits = ", ".join(f"{r['limit']['median'] * 1000:.0f}" for r in found)
    yield Row(
        work="hot launch, until the VM runs",
        target="limit + ≤ 10 ms, flat",
        ours=f"{told} GiB",
        others=f"`qemu-img create -b` and QEMU's start: {limits} ms",
        holds=max(over) <= 10,
    )


def _cold(launch: Mapping[str, Any]) -> Iterator[Row]:
    ways = {row["way"]: row for row in launch.get("cold", [])}
    hot = ways.get("hot")
    if hot is None:
        yield _missing("cold launch from S3", "first serial byte within 1.3 x of hot", "cold")
        return
    for way, row in ways.items():
        if way == "hot":
            continue
        ratio = row["first_byte"] / hot["first_byte"]
        yield Row(
            work=f"launch from S3, {way}: first serial byte",
            target="≤ 1.3 x hot",
            ours=f"{row['first_byte']:.2f} s = **{ratio:.2f} x**",
            others=f"hot {hot['first_byte']:.2f} s; login {row['login']:.0f} s, hot {hot['login']:.0f} s",
            holds=ratio <= 1.3,
        )
        stats = row.get("stats")
        if stats:
            share = row["sent_until_login"] / stats["read"]
            yield Row(
                work=f"launch from S3, {way}: bytes before login",
                target="≤ 1.3 x what the guest reads",
                ours=f"{row['sent_until_login'] / MIB:.0f} MiB = **{share:.2f} x**",
                others=f"the guest reads {stats['read'] / MIB:.0f} MiB",
                holds=share <= 1.3,
            )


def _missing(work: str, target: str, part: str) -> Row:
    command = f"not measured: `python -m bench.launch {part}`"
    return Row(work=work, target=target, ours=command, others="", holds=None)


def _memory(summary: Summary, launch: Mapping[str, Any]) -> Iterator[Row]:
    ours: dict[str, float] = {}
    peers: dict[str, float] = {}
    groups = list(summary.image.items())
    groups += [(f"capture at {d.gib} GiB", d.warm) for d in summary.capture]
    for name, figures in groups:
        for tool, figure in figures.items():
            if tool == OURS:
                ours[name] = figure.memory
            elif not tool.startswith(OURS):
                peers[tool] = max(peers.get(tool, 0.0), figure.memory)
    for row in launch.get("cold", []):
        if "memory" in row:
            ours[f"{row['way']} launch"] = row["memory"] / MIB
    if not ours:
        return
    worst = max(ours, key=lambda name: ours[name])
    yield Row(
        work="memory, all of the above",
        target=f"≤ {MEMORY} MiB",
        ours=f"**{ours[worst]:.0f} MiB** ({worst})",
        others=", ".join(f"{tool} {most:.0f} MiB" for tool, most in peers.items()),
        holds=ours[worst] <= MEMORY,
    )


def table(found: list[Row]) -> list[str]:
    """The rows as Markdown."""
    words = {True: "yes", False: "**no**", None: ""}
    lines = ["| work | target | Calotype | others | holds |", "|---|---|---|---|---|"]
    lines += [
        f"| {r.work} | {r.target} | {r.ours} | {r.others} | {words[r.holds]} |" for r in found
    ]
    return lines


def launches(path: Path) -> dict[str, Any]:
    """What ``bench.launch`` found, if it ran."""
    return dict(json.loads(path.read_bytes())) if path.exists() else {}
