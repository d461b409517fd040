"""Plots of a summary, as SVG: one picture a work."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from bench.summary import OURS, Capture, Figures, Summary
from matplotlib import pyplot as plt

MIB = 1 << 20
_OURS, _PEER, _LIMIT = "#0a7a5c", "#9aa5b1", "#c0392b"
_STYLE = {
    "svg.hashsalt": "calotype",  # the same figures give the same file
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write(summary: Summary, stem: Path) -> list[Path]:
    """Draw what was measured beside ``stem``: ``stem-<work>.svg``."""
    made = []
    with mpl.rc_context(_STYLE):
        if summary.stored:
            made.append(_stored(summary.stored, stem.with_name(f"{stem.name}-stored.svg")))
        if any(name.endswith("warm") for name in summary.image):
            made.append(_image(summary, stem.with_name(f"{stem.name}-image.svg")))
        if len(summary.capture) > 1:
            made.append(_capture(summary.capture, stem.with_name(f"{stem.name}-capture.svg")))
    return made


def _stored(stored: Mapping[str, list[int]], path: Path) -> Path:
    figure, axes = plt.subplots(figsize=(7.2, 0.3 * len(stored) + 0.8))
    ordered = sorted(stored.items(), key=lambda pair: -pair[1][-1])
    sizes = [sizes[-1] / MIB for _tool, sizes in ordered]
    colours = [_OURS if tool.startswith(OURS) else _PEER for tool, _sizes in ordered]
    bars = axes.barh([tool for tool, _sizes in ordered], sizes, color=colours)
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set_xlabel("MiB stored for the six images (less is better)")
    return _save(figure, path)


def _image(summary: Summary, path: Path) -> Path:
    works = [
        (row, figures)
        for row in ("ingest", "reingest", "hydrate")
        if (figures := summary.image.get(f"{row}, warm"))
    ]
    heights = [len(figures) for _row, figures in works]
    figure, all_axes = plt.subplots(
        len(works),
        1,
        figsize=(7.2, 0.27 * sum(heights) + 0.7 * len(works)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    limits = summary.limits.get("limits", {})
    for axes, (row, figures) in zip(all_axes[:, 0], works, strict=True):
        _bars(axes, row, figures, limits.get(row))
    return _save(figure, path)


def _bars(axes: plt.Axes, row: str, figures: Figures, limit: float | None) -> None:
    ordered = sorted(figures.values(), key=lambda figure: -figure.seconds)
    colours = [_OURS if f.tool.startswith(OURS) else _PEER for f in ordered]
    bars = axes.barh([f.tool for f in ordered], [f.seconds for f in ordered], color=colours)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.margins(x=0.1)
    axes.set_title(f"{row}, seconds (less is better)", loc="left", fontsize=9)
    if limit:
        axes.axvline(limit, color=_LIMIT, linestyle="--", linewidth=1)
        axes.text(limit, -0.45, " limit", color=_LIMIT, va="center", fontsize=8)


def _capture(disks: list[Capture], path: Path) -> Path:
    figure, axes = plt.subplots(figsize=(7.2, 3.2))
    for tool in disks[-1].warm | disks[0].warm:
        points = [(d.gib, d.warm[tool].seconds) for d in disks if tool in d.warm]
        ours = tool == OURS
        axes.plot(
            [gib for gib, _s in points],
            [seconds for _gib, seconds in points],
            marker="o",
            color=_OURS if ours else None,
            linewidth=2 if ours else 1,
            label=tool,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([d.gib for d in disks], [f"{d.gib}" for d in disks])
    axes.set_yticks([0.1, 0.3, 1, 3, 10, 30, 100], ["0.1", "0.3", "1", "3", "10", "30", "100"])
    axes.minorticks_off()
    axes.set_xlabel("disk, GiB")
    axes.set_ylabel("seconds to capture 100 MiB")
    axes.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def catalogue(rows: Sequence[Mapping[str, Any]], target: float, path: Path) -> Path:
    """Draw the 99th percentile of each call on the catalogue over the number of versions."""
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(8.6, 3.6))
        for work in dict.fromkeys(row["work"] for row in rows):
            points = [(row["versions"], row["p99_ms"]) for row in rows if row["work"] == work]
            axes.plot(*zip(*points, strict=True), marker="o", linewidth=1, label=work)
        axes.axhline(target, color=_LIMIT, linestyle="--", linewidth=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("image versions")
        axes.set_ylabel("p99 of a call, ms")
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> Path:
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path
