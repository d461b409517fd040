"""From samples to figures: medians, spreads and peaks for each row, cache state and tool."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bench.log import Log, Sample
from bench.measure import median

OURS = "calotype"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One tool at one work; seconds are medians, memory is the highest of all runs."""

    tool: str
    seconds: float
    least: float
    most: float
    returned: float
    cpu: float
    memory: float  # MiB
    stored: float | None  # bytes that the work added
    runs: int

    @classmethod
    def of(cls, tool: str, samples: Iterable[Sample]) -> "Figure":
        """The figure of samples that were measured alike."""
        found = list(samples)
        seconds = [s["seconds"] for s in found]
        stored = [s["stored"] for s in found if "stored" in s]
        return cls(
            tool=tool,
            seconds=median(seconds),
            least=min(seconds),
            most=max(seconds),
            returned=median(s["returned"] for s in found),
            cpu=median(s["cpu"] for s in found),
            memory=max(s["memory"] for s in found),
            stored=median(stored) if stored else None,
            runs=len(found),
        )


Figures = dict[str, Figure]


@dataclass(frozen=True, kw_only=True, slots=True)
class Capture:
    """One size of disk; bytes."""

    gib: int
    data: int
    changed: int
    compressed: int
    warm: Figures
    cold: Figures


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """All that a campaign found; a part that was not measured is empty."""

    about: Mapping[str, str]
    limits: Mapping[str, Any]  # rates, work, limits
    stored: Mapping[str, list[int]]  # tool: bytes after each image
    image: Mapping[str, Figures]  # "ingest, warm" and so on
    capture: list[Capture]

    @classmethod
    def of(cls, log: Log, about: Mapping[str, str]) -> "Summary":
        """The figures of a log."""
        image: dict[str, Figures] = {}
        for row in ("ingest", "reingest", "hydrate"):
            for caches in ("warm", "cold"):
                if figures := _figures(log.samples("image"), row=row, caches=caches):
                    image[f"{row}, {caches}"] = figures
        limits = log.samples("limits")
        return cls(
            about=about,
            limits=limits[-1] if limits else {},
            stored={s["tool"]: s["sizes"] for s in log.samples("stored")},
            image=image,
            capture=_captures(log.samples("capture")),
        )

    def json(self) -> dict[str, Any]:
        """Everything, for the report's JSON."""
        return asdict(self)


def _captures(samples: list[Sample]) -> list[Capture]:
    found = []
    for facts in (s for s in samples if not s["tool"]):
        measured = [s for s in samples if s["gib"] == facts["gib"] and s["tool"]]
        found.append(
            Capture(
                gib=facts["gib"],
                data=facts["data"],
                changed=facts["changed"],
                compressed=facts["compressed"],
                warm=_figures(measured, caches="warm"),
                cold=_figures(measured, caches="cold"),
            )
        )
    return found


def _figures(samples: Iterable[Sample], **key: object) -> Figures:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        if key.items() <= sample.items():
            groups.setdefault(sample["tool"], []).append(sample)
    ordered = sorted(groups.items(), key=lambda pair: pair[0] != OURS)
    return {tool: Figure.of(tool, group) for tool, group in ordered}
