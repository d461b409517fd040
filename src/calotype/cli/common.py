"""What all commands share: global options, the context of a command, progress bars."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Group, Parameter
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress

from calotype import progress, wire
from calotype.engine.context import Context

_GLOBAL = Group("Global options", sort_key=1000)


@Parameter(name="*", group=_GLOBAL)
@dataclass(frozen=True)
class Common:
    """Options that every command has."""

    output: Annotated[Literal["table", "json", "tsv", "none"], Parameter(alias="-o")] = "table"
    "How the result is printed."
    query: str | None = None
    "A JMESPath expression on the result, as in az."
    verbose: Annotated[bool, Parameter(alias="-v", negative="")] = False
    "Print the commands that are run."
    quiet: Annotated[bool, Parameter(negative="")] = False
    "No progress bars."


class Bars:
    """Progress as bars on standard error: done, total, rate, time left."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def phase(
        self, label: str, total: int | None = None, *, unit: str = "B"
    ) -> Iterator[Callable[[int], None]]:
        """A bar for as long as the phase lasts."""
        amount = (
            (DownloadColumn(True), TransferSpeedColumn())
            if unit == "B"
            else (MofNCompleteColumn(),)
        )
        columns = (TextColumn("{task.description:<24}"), BarColumn(), *amount)
        with RichProgress(
            *columns,
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=False,
        ) as bars:
            task = bars.add_task(label, total=total)
            yield lambda n: bars.advance(task, n)
            if total is None:
                bars.update(task, total=bars.tasks[task].completed)


@contextmanager
def session(common: Common | None) -> Iterator[Context]:
    """The context of one command, closed at its end."""
    common = common or Common()
    if common.verbose:
        logging.basicConfig(level=logging.INFO, format="+ %(message)s", stream=sys.stderr)
    console = Console(stderr=True)
    bars = console.is_terminal and not common.quiet
    context = wire.build(progress=Bars(console) if bars else progress.SILENT)
    try:
        yield context
    finally:
        context.close()
