"""CRC-32C (Castagnoli), for headers of some KiB."""

from typing import Final


def _table() -> tuple[int, ...]:
    polynomial = 0x82F63B78
    values = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (polynomial if value & 1 else 0)
        values.append(value)
    return tuple(values)


_TABLE: Final = _table()


def crc32c(data: bytes, before: int = 0) -> int:
    """The checksum of ``data`` as an unsigned 32-bit integer (about 10 MB/s).

    Args:
        data: the bytes.
        before: the checksum of the bytes that stand before them.
    """
    value = before ^ 0xFFFFFFFF
    for byte in data:
        value = (value >> 8) ^ _TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF
