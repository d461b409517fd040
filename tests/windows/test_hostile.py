"""Mutated file systems, hives and logs: our own errors only, in bounded time."""

import random
import time
from functools import partial

import pytest
from tests.disks import BytesDisk
from tests.windows import build
from tests.windows.build import CONFIG, GENERAL
from tests.windows.registry import PAGE, Keys, change, entry, hive, log

from calotype.errors import GuestError
from calotype.guest.hive import Hive, Key
from calotype.guest.ntfs_tree import NtfsTree
from calotype.guest.proof import prove_disk


class Patched(BytesDisk):
    """A disk with a few other bytes, without a copy of it for each mutant."""

    def __init__(self, disk: BytesDisk, changes: dict[int, int]) -> None:
        super().__init__(disk.data)
        self.changes = changes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        super().read_into(offset, buffer)
        for at, value in self.changes.items():
            if offset <= at < offset + len(buffer):
                buffer[at - offset] = value


def mutation(rng: random.Random, places: list[tuple[int, int]]) -> dict[int, int]:
    """One to six bytes at some of the (offset, length) places."""
    changes = {}
    for _ in range(rng.randrange(1, 7)):
        start, length = rng.choice(places)
        changes[start + rng.randrange(length)] = rng.choice(
            (0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256))
        )
    return changes


def test_mutated_file_systems():
    """Half of the changes in the boot sector and the system's records, half in what the proof reads."""
    disk = build.disk(build.installation(GENERAL))
    start = 1 << 20
    content = disk.data[start:]
    tree = NtfsTree.on_disk(BytesDisk(content), 0, 16 << 20)
    places = [(start, 84)]
    table = tree.fs._table
    assert table is not None
    used = [
        "/",
        "/Windows",
        "/Windows/System32",
        CONFIG,
        f"{CONFIG}/SOFTWARE",
        "/Windows/Setup/State",
    ]
    numbers = [0, 2, 3, 5, *(found[1].number for found in map(tree._find, used) if found)]
    for number in numbers:
        run = next(run for run in table._from(number * 2) if run.logical <= number * 2)
        assert run.physical is not None
        at = start + (run.physical + number * 2 - run.logical) * tree.fs.cluster
        assert disk.data[at : at + 4] == b"FILE"
        places += [(at, 300), (at + 20, 120)]
    rng = random.Random(4)
    verdicts = set()
    began = time.monotonic()
    slowest = 0.0
    for _ in range(500):
        before = time.monotonic()
        verdicts.add(prove_disk(Patched(disk, mutation(rng, places))).verdict)
        slowest = max(slowest, time.monotonic() - before)
    assert len(verdicts) >= 2
    assert slowest < 5, f"one took {slowest:.1f} s of {time.monotonic() - began:.1f} s"


def part(raw: bytes, at: int, length: int) -> bytes:
    return raw[at : at + length]


def read_all(found: Hive) -> int:
    """Everything in a hive, at most 5,000 keys of it."""
    waiting: list[Key] = [found.root]
    count = 0
    while waiting and count < 5000:
        key = waiting.pop()
        count += 1
        for value in key.values():
            _ = value.text, value.texts, value.number
        waiting.extend(key.keys())
    return count


def test_a_hive_of_lists_of_lists_of_the_same_key():
    """Sixty million keys by its own word; we stop long before."""
    names: Keys = {rf"Many\{n:05d}": {} for n in range(1000)}
    raw = bytearray(hive(names))
    first = raw.index(b"li")
    (ri,) = (at for at in range(PAGE, len(raw), 8) if raw[at + 4 : at + 6] == b"ri")
    li = first - 4 - PAGE
    bomb = b"ri" + (60_000).to_bytes(2, "little") + li.to_bytes(4, "little") * 60_000
    at = len(raw) - PAGE
    cell = (-(len(bomb) + 4)).to_bytes(4, "little", signed=True) + bomb
    cell += bytes(-len(cell) % 8)
    (key,) = (
        place
        for place in range(PAGE, len(raw), 8)
        if raw[place + 4 : place + 6] == b"nk" and raw[place + 80 : place + 84] == b"Many"
    )
    assert int.from_bytes(raw[key + 4 + 28 : key + 4 + 32], "little") == ri - PAGE
    raw[key + 4 + 28 : key + 4 + 32] = at.to_bytes(4, "little")
    found = Hive(partial(part, bytes(raw + cell)), len(raw) + len(cell))
    began = time.monotonic()
    with pytest.raises(GuestError, match="too many"):
        found.key(r"Many\nothing")
    assert time.monotonic() - began < 30  # about one on a quiet machine


def test_mutated_hives_and_logs():
    keys = build.software(GENERAL, {r"A\B": {"big": bytes(40_000), "m": ["a", "b"]}})
    keys |= {rf"Many\{n}": {"n": n} for n in range(30)}
    old = hive(keys, first=3, second=2)
    new = bytearray(old)
    new[PAGE + 5000] ^= 1
    bins = len(old) - PAGE
    logs = log(2, [entry(2, bins, change(old, bytes(new)))], 32, bins)
    rng = random.Random(5)
    places = [(0, 512), (PAGE, 6000), (len(old) - 16_000, 16_000)]
    read = refused = 0
    for number in range(3000):
        raw, mutated = bytearray(old), bytearray(logs)
        if number % 5 == 0:
            for at, value in mutation(rng, [(0, len(mutated)), (512, 60)]).items():
                mutated[at] = value
        else:
            for at, value in mutation(rng, places).items():
                raw[at] = value
        if number % 50 == 1:
            raw = raw[: rng.randrange(len(raw))]
        try:
            found = Hive(partial(part, bytes(raw)), len(raw), [bytes(mutated)])
            read += bool(read_all(found))
        except GuestError:
            refused += 1
    assert read > 100
    assert refused > 100
