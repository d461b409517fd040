"""qcow2 overlays: what a VM, or a throw-away view, wrote over its base.

An overlay names no other file: whoever opens it says what lies beneath. Sub-clusters of 4 KiB make its
granularity that of a guest's file system.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from calotype.disk import blank, qcow2
from calotype.disk.base import Disk, Extent
from calotype.disk.layout import Kind, MappedDisk
from calotype.disk.window import Window

create = blank.create


class LayeredDisk(Disk, Protocol):
    """A disk that knows which of its parts differ from the base that it was made from."""

    def changed(self) -> list[Extent]:
        """The runs that were written since, ascending and apart (zeroed runs among them)."""
        ...


class OverlayDisk(MappedDisk):
    """An overlay file that nothing writes to, over ``base`` (``None``: over zeros).

    It owns ``base`` and closes it.

    Raises:
        DiskRefused: the file is not one of our overlays, or names another file.
    """

    def __init__(self, path: Path, base: Disk | None) -> None:
        window = Window.open(path)
        try:
            layout = qcow2.parse(window, overlay=True)
        except BaseException:
            window.close()
            raise
        super().__init__(layout, window, backing=base)
        self.base = base

    def extents(self) -> Iterator[Extent]:
        """Runs that cover ``[0, size)``; where the overlay is empty, as the base tells them."""
        return coalesce(self._extents())

    def changed(self) -> list[Extent]:
        """The runs that this overlay holds (zeroed runs among them), whatever is beneath."""
        return list(
            coalesce(
                Extent(int(run["offset"]), int(run["length"]), bool(run["kind"] == Kind.ZERO))
                for run in self.layout.runs
                if run["kind"] != Kind.BACKING
            )
        )

    def close(self) -> None:
        """Close the overlay and its base; harmless when repeated."""
        super().close()
        if self.base is not None:
            self.base.close()

    def _extents(self) -> Iterator[Extent]:
        beneath = iter(self.base.extents()) if self.base is not None else iter(())
        under: Extent | None = None
        for run in self.layout.runs:
            at, end = int(run["offset"]), int(run["offset"] + run["length"])
            if run["kind"] != Kind.BACKING:
                yield Extent(at, end - at, bool(run["kind"] == Kind.ZERO))
                continue
            while at < end:
                while under is None or under.end <= at:
                    under = next(beneath, Extent(at, end - at, zero=True))
                stop = min(end, under.end)
                yield Extent(at, stop - at, under.zero)
                at = stop


def coalesce(runs: Iterable[Extent]) -> Iterator[Extent]:
    """Join neighbours that touch and agree on ``zero``."""
    last: Extent | None = None
    for run in runs:
        if last is not None and last.end == run.offset and last.zero == run.zero:
            last = Extent(last.offset, last.length + run.length, last.zero)
            continue
        if last is not None:
            yield last
        last = run
    if last is not None:
        yield last


def stack(layers: Sequence[Iterable[Extent]]) -> Iterator[Extent]:
    """What several layers changed, the topmost first: where two overlap the upper one's ``zero`` holds.

    Each layer's runs are ascending and apart; so are the result's.
    """
    edges = sorted(
        (edge, order, run)
        for order, layer in enumerate(layers)
        for run in layer
        for edge in (run.offset, run.end)
        if run.length
    )
    runs: list[Extent] = []
    open_at: dict[int, Extent] = {}
    last = 0
    for edge, order, run in edges:
        if open_at and edge > last:
            runs.append(Extent(last, edge - last, open_at[min(open_at)].zero))
        last = edge
        if edge == run.end:
            # A neighbour of the same layer may have begun at this very edge.
            if open_at.get(order) == run:
                del open_at[order]
        else:
            open_at[order] = run
    return coalesce(runs)
