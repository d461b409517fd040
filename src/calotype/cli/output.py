"""Results for people (tables) and for programs (JSON, TSV, JMESPath)."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from calotype.cli.common import Common
from calotype.cli.text import visible
from calotype.errors import InvalidInput

#: Header of a column -> what stands in it, from one (plain) record.
Columns = Mapping[str, Callable[[dict[str, Any]], Any]]

_LONG = 20  # as wide as a word's column is at least; what is longer may be broken
_GAP = 2  # between columns


def emit(common: Common | None, value: object, columns: Columns | None = None) -> None:
    """Print a result in the form that was asked for.

    Args:
        common: The command's global options.
        value: Dataclasses, mappings, lists and scalars.
        columns: For a table of records: its columns. A ``--query`` overrides them.
    """
    common = common or Common()
    data = plain(value)
    if common.query is not None:
        data = _search(common.query, data)
        columns = None
    if common.output == "json":
        print(visible(json.dumps(data, indent=2, ensure_ascii=False)))
    elif common.output == "tsv":
        _tsv(data)
    elif common.output == "table":
        _table(data, columns)


def for_people(common: Common | None) -> bool:
    """Whether the result is printed for people, who may be told more in words."""
    return common is None or (common.output == "table" and common.query is None)


def plain(value: object) -> Any:
    """JSON's own types, with Azure's camelCase keys."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        derived = {"kind": value.kind} if hasattr(value, "kind") and "kind" not in fields else {}
        return {_camel(name): plain(item) for name, item in {**fields, **derived}.items()}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {_camel(name): plain(item) for name, item in value._asdict().items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def _search(query: str, data: Any) -> Any:
    try:
        return jmespath.search(query, data)
    except JMESPathError as error:
        raise InvalidInput(f"--query: {error}", hint="see jmespath.org for the syntax") from error


def _cell(value: object) -> str:
    if value is None:
        return ""
    nested = isinstance(value, dict | list)
    return visible(json.dumps(value, ensure_ascii=False) if nested else str(value))


def _tsv(data: Any) -> None:
    for record in data if isinstance(data, list) else [data]:
        if isinstance(record, dict):
            record = list(record.values())  # noqa: PLW2901 (one line for each record)
        cells = record if isinstance(record, list) else [record]
        print("\t".join(_cell(cell).replace("\t", " ").replace("\n", " ") for cell in cells))


def _table(data: Any, columns: Columns | None) -> None:
    console = _console()
    if isinstance(data, list) and all(isinstance(record, dict) for record in data):
        if not data:
            return
        columns = columns or {key: _getter(key) for key in data[0]}
        _records(console, list(columns), [[get(r) for get in columns.values()] for r in data])
    elif isinstance(data, dict):
        _print(console, [[_cell(key), _cell(value)] for key, value in _flat(data)])
    elif data is not None:
        for item in data if isinstance(data, list) else [data]:
            print(_cell(item))


def _console() -> Console:
    """Standard output; where it is no terminal, lines are as long as they need to be."""
    console = Console()
    return console if console.is_terminal else Console(width=400)


def _records(console: Console, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; where the words of all columns have no room side by side, one for each record."""
    cells = [[_cell(cell) for cell in row] for row in rows]
    widths = _widths(list(zip(headers, *cells, strict=True)), console.width)
    if widths is not None:
        _print(console, cells, list(zip(headers, widths, strict=True)))
        return
    for position, row in enumerate(cells):
        if position:
            print()
        _print(console, [[header, cell] for header, cell in zip(headers, row, strict=True) if cell])


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """The widths of columns that break none but long words; ``None``: there are none."""
    widths = [
        max(min(cell_len(word), _LONG) for text in column for word in text.split() or [""])
        for column in columns
    ]
    spare = room - sum(widths) - _GAP * len(columns)
    if spare < 0:
        return None
    wanted = [
        max(cell_len(line) for text in column for line in text.split("\n")) - width
        for column, width in zip(columns, widths, strict=True)
    ]
    # Those that want little get it first.
    for done, place in enumerate(sorted(range(len(columns)), key=wanted.__getitem__)):
        more = min(wanted[place], spare // (len(columns) - done))
        widths[place] += more
        spare -= more
    return widths


def _print(
    console: Console,
    rows: Sequence[Sequence[str]],
    columns: Sequence[tuple[str, int]] | None = None,
) -> None:
    """Rows under headers in columns of these widths; without any, names and values."""
    table = Table(show_header=columns is not None, box=None, pad_edge=False, header_style="bold")
    for header, width in columns or (("", None), ("", None)):
        table.add_column(header, overflow="fold", width=width)
    for row in rows:
        table.add_row(*map(Text, row))
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        print(line if console.is_terminal else line.rstrip())


def _getter(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda record: record.get(key)


def _flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in data.items():
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for position, item in enumerate(value):
                rows += _flat(item, f"{prefix}{key}[{position}].")
        elif value not in (None, "", [], {}):
            rows.append((prefix + key, value))
    return rows
