"""The leak table as a picture: what each tool left of the machine's and its people's canaries."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bench.leaks.report import in_files

_WIDTH, _BAR, _ROW, _LEFT = 720, 420, 34, 170
_FILES, _ELSEWHERE, _GROUND = "#b3402e", "#e3a79b", "#eeeeee"


def picture(canaries: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
    """Stacked bars, as SVG: in files, and elsewhere on the raw disk."""
    mine = {canary["name"] for canary in canaries if canary["group"] != "site"}
    height = 70 + _ROW * len(tools)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
            'font-family="sans-serif" font-size="13">'
        ),
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        (
            f'<text x="12" y="22" font-size="15">Left on the disk, of {len(mine)} canaries of the machine and'
            " its people</text>"
        ),
    ]
    for place, tool in enumerate(tools):
        files = len(mine & set(in_files(tool["left"])))
        left = len(mine & set(tool["left"]))
        parts += _bar(tool["name"], files, left, len(mine), 40 + _ROW * place)
    legend = height - 12
    parts += [
        f'<rect x="{_LEFT}" y="{legend - 11}" width="12" height="12" fill="{_FILES}"/>',
        f'<text x="{_LEFT + 18}" y="{legend}">still in files</text>',
        f'<rect x="{_LEFT + 130}" y="{legend - 11}" width="12" height="12" fill="{_ELSEWHERE}"/>',
        f'<text x="{_LEFT + 148}" y="{legend}">only in free blocks, slack and journals</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _bar(name: str, files: int, left: int, of: int, y: int) -> list[str]:
    wide = {part: _BAR * count / max(of, 1) for part, count in (("files", files), ("left", left))}
    box = f'y="{y}" height="{_ROW - 12}"'
    return [
        f'<text x="{_LEFT - 8}" y="{y + 16}" text-anchor="end">{escape(name)}</text>',
        f'<rect x="{_LEFT}" {box} width="{_BAR}" fill="{_GROUND}"/>',
        f'<rect x="{_LEFT}" {box} width="{wide["left"]:.1f}" fill="{_ELSEWHERE}"/>',
        f'<rect x="{_LEFT}" {box} width="{wide["files"]:.1f}" fill="{_FILES}"/>',
        f'<text x="{_LEFT + _BAR + 10}" y="{y + 16}">{left} ({files} in files)</text>',
    ]
