"""Which of many byte strings a disk image holds, whatever refers to them: files, free blocks, journals.

Every byte that is not a hole is looked at. A disk of some gigabytes takes seconds: of each string the four
4-byte groups are known one of which must lie at a multiple of four, so numpy looks at one word in four bytes,
and only where such a group stands the bytes themselves are compared.
"""

import base64
import contextlib
import mmap
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from bench.measure import data_runs

#: The shortest string that can be searched for.
SHORTEST = 7
_CHUNK = 16 << 20
_BITS = 20
_MIX = np.uint32(2654435761)  # Knuth's multiplicative hash
_EDGE = 2  # base64 digits at each end that depend on the bytes beside


@dataclass(frozen=True, slots=True)
class Hit:
    """A string's form found at a byte offset."""

    name: str
    form: str
    offset: int


def forms(needle: bytes) -> dict[str, bytes]:
    """How a string may stand on a disk: as it is, as UTF-16, and inside base64 text at three offsets."""
    found = {"plain": needle}
    with contextlib.suppress(UnicodeDecodeError):
        found["UTF-16"] = needle.decode("ascii").encode("utf-16-le")
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + needle)
        end = len(text) if (shift + len(needle)) % 3 == 0 else len(text) - 4
        inner = text[(4 if shift else 0) : end]  # only whole groups of three are the needle's alone
        if len(inner) >= SHORTEST + 2 * _EDGE:
            found[f"base64 at {shift}"] = inner
    return found


def search(disk: Path, needles: Mapping[str, Iterable[bytes]]) -> list[Hit]:
    """Where the needles (some byte strings by name) stand, in any of their forms, in the disk's order.

    Raises:
        ValueError: a needle is shorter than `SHORTEST` bytes.
    """
    patterns: dict[bytes, tuple[str, str]] = {}
    for name, values in needles.items():
        for value in values:
            for form, pattern in forms(value).items():
                if len(pattern) < SHORTEST:
                    raise ValueError(f"{name}: {pattern!r} is too short to be searched for")
                patterns.setdefault(pattern, (name, form))
    index = _Index(patterns)
    with disk.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = {
            (at, pattern)
            for start, end in data_runs(file.fileno())
            for at, pattern in index.hits(content, start, end)
        }
    return [Hit(*patterns[pattern], at) for at, pattern in sorted(found)]


class _Index:
    """The groups of four bytes by which strings are found."""

    def __init__(self, patterns: Iterable[bytes]) -> None:
        self._groups: dict[int, list[tuple[bytes, int]]] = {}
        for pattern in patterns:
            for offset in range(4):
                word = int.from_bytes(pattern[offset : offset + 4], "little")
                self._groups.setdefault(word, []).append((pattern, offset))
        words = np.array(list(self._groups), dtype=np.uint32)
        self._words = np.sort(words)
        self._table = np.zeros(1 << _BITS, dtype=np.bool_)
        self._table[_mixed(words)] = True

    def hits(self, content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """(offset, string) of those with a group from ``start`` to ``end``."""
        start -= start % 4
        for at in range(start, end, _CHUNK):
            count = (min(at + _CHUNK, end) - at) // 4
            if count == 0:
                continue
            words = np.frombuffer(content, dtype="<u4", count=count, offset=at)
            near = np.flatnonzero(self._table[_mixed(words)])
            near = near[np.isin(words[near], self._words)]
            for place, word in zip(near.tolist(), words[near].tolist(), strict=True):
                for pattern, offset in self._groups[word]:
                    begin = at + 4 * place - offset
                    if begin >= 0 and content[begin : begin + len(pattern)] == pattern:
                        yield begin, pattern
            del words  # the map cannot be closed while an array looks into it


def _mixed(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    return (words * _MIX) >> np.uint32(32 - _BITS)


def whereabouts(disk: Path, start: int, offsets: Iterable[int]) -> dict[int, str]:
    """What holds the bytes at these offsets of a disk whose ext4 file system begins at ``start``.

    A path, ``<free>``, ``<journal>``, or ``<metadata>`` (inodes, directories that are no more, bitmaps).
    """
    size = _block_size(disk, start)
    blocks = {offset: (offset - start) // size for offset in offsets if offset >= start}
    target = f"{disk}?offset={start}"
    asked = _debugfs(target, "testb", set(blocks.values()), together=1)
    unused = {int(n) for n in re.findall(r"Block (\d+) not in use", asked)}
    owners = _pairs(_debugfs(target, "icheck", set(blocks.values()) - unused))
    inodes = {int(inode) for inode in owners.values() if inode.isdigit()}
    names = _pairs(_debugfs(target, "ncheck", inodes))
    return {
        offset: "<free>" if block in unused else _owner(owners.get(str(block), ""), names)
        for offset, block in blocks.items()
    }


def _block_size(disk: Path, start: int) -> int:
    with disk.open("rb") as file:
        file.seek(start + 1024 + 24)
        return 1024 << int.from_bytes(file.read(4), "little")


def _owner(inode: str, names: Mapping[str, str]) -> str:
    if inode == "8":
        return "<journal>"
    if inode in names:
        return "/" + names[inode].lstrip("/")
    return f"<inode {inode}>" if inode.isdigit() else "<metadata>"


def _pairs(text: str) -> dict[str, str]:
    """The two columns of a table that debugfs prints."""
    lines = (line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    return {key.strip(): value.strip() for key, value in lines}


def _debugfs(target: str, command: str, numbers: set[int], together: int = 400) -> str:
    """What debugfs says to a command for these numbers, some of them ``together`` on a line."""
    ordered = [str(number) for number in sorted(numbers)]
    lines = [
        f"{command} {' '.join(ordered[at : at + together])}\n"
        for at in range(0, len(ordered), together)
    ]
    argv = ["debugfs", "-f", "-", target]
    done = subprocess.run(argv, input="".join(lines), capture_output=True, text=True, check=False)
    return done.stdout
