"""What all commands share: global options, the context of a command, progress bars."""

import logging
import sys
import time
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
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from calotype import progress, wire
from calotype.cli.text import size
from calotype.engine.context import Context
from calotype.model import Caller

_GLOBAL = Group("Global options", sort_key=1000)
_SILENCE = 30.0  # seconds that nobody wonders about


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
    "No word of progress."
    subscription: Annotated[str | None, Parameter(env_var="CALOTYPE_SUBSCRIPTION")] = None
    "The subscription (name or id) to work in."
    resource_group: Annotated[
        str | None, Parameter(alias="-g", env_var="CALOTYPE_RESOURCE_GROUP")
    ] = None
    "The resource group to work in."
    principal: Annotated[str | None, Parameter(name="--as", env_var="CALOTYPE_AS")] = None
    "Work as this principal, with its roles and no more."


class _Rate(ProgressColumn):
    """Units of 1024, like the amounts beside it."""

    def render(self, task: Task) -> Text:
        """Such as ``120.5 MiB/s``."""
        speed = task.finished_speed or task.speed
        return Text(f"{size(int(speed))}/s" if speed else "")


class _Left(ProgressColumn):
    """How long it will take; at the end, how long it took."""

    def render(self, task: Task) -> Text:
        """Such as ``12 s left``."""
        if task.finished:
            return Text(f"{task.finished_time or 0:.0f} s")
        left = task.time_remaining
        return Text("" if left is None else f"{left:.0f} s left")


def _amount(total: int | None, unit: str) -> tuple[ProgressColumn, ...]:
    """What stands beside the bar: how much, how fast, how long."""
    if total is None:
        return (TimeElapsedColumn(),)
    if unit == "B":
        return (DownloadColumn(binary_units=True), _Rate(), _Left())
    return (MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn())


class Bars:
    """Progress as bars on standard error: done, total, rate, time left."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def phase(
        self, label: str, total: int | None = None, *, unit: str = "B"
    ) -> Iterator[Callable[[int], None]]:
        """A bar for as long as the phase lasts; none for nothing to do."""
        if total == 0:
            yield lambda _n: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), *_amount(total, unit))
        with RichProgress(
            *columns,
            console=self._console,
            transient=False,
        ) as bars:
            task = bars.add_task(label, total=total)
            yield lambda n: bars.advance(task, n)
            if total is None:
                bars.update(task, total=1, completed=1)


class Lines:
    """Progress where no terminal is: a line on standard error each half minute."""

    @contextmanager
    def phase(
        self, label: str, total: int | None = None, *, unit: str = "B"
    ) -> Iterator[Callable[[int], None]]:
        """A phase that says how far it is as long as it lasts; a short one says nothing."""
        del unit
        begin = said = time.monotonic()
        done = 0

        def advance(count: int) -> None:
            nonlocal done, said
            done += count
            if (now := time.monotonic()) - said >= _SILENCE:
                said = now
                far = f"{100 * done // total} %, " if total else ""
                print(f"{label}: {far}{now - begin:.0f} s", file=sys.stderr, flush=True)

        yield advance


@contextmanager
def session(common: Common | None) -> Iterator[Context]:
    """The context of one command, closed at its end."""
    common = common or Common()
    if common.verbose:
        logging.basicConfig(level=logging.INFO, format="+ %(message)s", stream=sys.stderr)
    context = wire.build(progress=_progress(quiet=common.quiet), caller=_caller(common))
    try:
        yield context
    finally:
        context.close()


def _progress(*, quiet: bool) -> progress.Progress:
    console = Console(stderr=True)
    if quiet:
        return progress.SILENT
    return Bars(console) if console.is_terminal else Lines()


def _caller(common: Common) -> Caller:
    """Whom the command works for, and where."""
    if common.principal is common.subscription is common.resource_group is None:
        return Caller()
    from calotype.engine import subscriptions  # noqa: PLC0415 (loads what other commands need not)

    context = wire.build()
    try:
        return subscriptions.caller(
            context, common.principal, common.subscription, common.resource_group
        )
    finally:
        context.close()
