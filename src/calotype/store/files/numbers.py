"""Columns of integers out of rows of bytes: on-disk structures, many at a time."""

import numpy as np
import numpy.typing as npt

from calotype.store.digest import Ints

Table = npt.NDArray[np.uint8]  # shape (n, size): n structures of one size


def table(raw: bytes, size: int) -> Table:
    """Bytes as rows of ``size``; an incomplete last row is left out."""
    whole = len(raw) // size * size
    return np.frombuffer(raw, dtype=np.uint8, count=whole).reshape(-1, size)


def column(rows: Table, at: int, dtype: str) -> Ints:
    """The integer at byte ``at`` of each row, as int64 (8 bytes: signed)."""
    width = np.dtype(dtype).itemsize
    raw = np.ascontiguousarray(rows[:, at : at + width])
    return raw.view(dtype).reshape(-1).astype(np.int64)


def matrix(rows: Table, at: int, count: int, dtype: str) -> Ints:
    """``count`` integers from byte ``at`` of each row on, as int64; shape (n, count)."""
    width = np.dtype(dtype).itemsize
    raw = np.ascontiguousarray(rows[:, at : at + width * count])
    return raw.view(dtype).reshape(-1, count).astype(np.int64)


def power_of_two(number: int, low: int, high: int) -> bool:
    """Whether a size is a power of two from ``low`` to ``high``."""
    return low <= number <= high and number & (number - 1) == 0
