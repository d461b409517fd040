"""Bit rot: one bit flipped in one random place of a store, a thousand times.

Each flip must be found by a check, which must name exactly the images that it touches; a repair from a second
store must make every image what it was, and the store clean. Run it as a program for the whole campaign and
its report; the ordinary tests run a few dozen flips.

    python tests/campaigns/bitrot.py --flips 1000 --report docs/reports/bitrot
"""

import argparse
import json
import logging
import platform
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tests.disks import BytesDisk

from calotype.disk.base import Extent, read
from calotype.errors import CalotypeError, StoreDamaged
from calotype.store import MemoryStore, Repository
from calotype.store.check import Checker, CheckReport
from calotype.store.chunking import Chunking
from calotype.store.copy import copy
from calotype.store.ledger import MemoryLedger
from calotype.store.mend import mend_parameters
from calotype.store.pack import Kind, Pack, load

MIB = 1 << 20
ZONES = (
    "config",
    "domain",
    "ledger",
    "profile",
    "root",
    "header",
    "frame",
    "leaf",
    "footer",
    "trailer",
)
REPORT = """\
# Bit rot

Written by `tests/campaigns/bitrot.py`. One bit was flipped in one random place of a store, each time in a
fresh copy. *Found*: a check reports the object. *Named*: it names exactly the images that need the damaged
bytes. *Repaired*: after a repair from a second store a check is clean and every image is byte-identical.
*In place*: the object is again what it was; otherwise what was right of it, and the rest from the second
store, moved to a new pack. *Harmed*: before the repair, a plain read of some image failed (none ever gave
wrong bytes).

- flips: {flips}, of which everything held: **{good}** (seed {seed})
- the store: {images} images of {held} (related, captured, of two tenants), {packs} packs, {objects} objects,
  {store}; with dead and with duplicate chunks; half of the flips are in a store with a ledger
- the second store has the same packs (half of the flips), or is a copy with other packs
- half of the places are random bytes of the store, half are spread evenly over the kinds of places
- time: {seconds} s

| place | flips | found | named | repaired | in place | harmed |
|---|---|---|---|---|---|---|
"""


def text(seed: int, size: int) -> bytes:
    """Bytes that compress, as files do."""
    rng = random.Random(seed)
    words = [rng.randbytes(8).hex().encode() for _ in range(300)]
    return b" ".join(rng.choices(words, k=size // 16)).ljust(size, b".")[:size]


@dataclass(frozen=True, slots=True)
class Room:
    """A store with images, what they hold, and two second stores."""

    objects: MemoryStore
    ledger: MemoryLedger | None
    contents: Mapping[str, bytes]  # by Index
    mirror: MemoryStore  # the same objects
    replica: MemoryStore  # the same images, in other packs
    packs: Mapping[str, Pack]
    holders: Mapping[bytes, frozenset[str]]  # packs that hold a chunk
    users: Mapping[bytes, frozenset[str]]  # Indexes that name it


def clone(objects: MemoryStore) -> MemoryStore:
    """The same objects in another store; their bytes are shared."""
    other = MemoryStore()
    other._objects = dict(objects._objects)
    return other


def build(scale: int, ledger: MemoryLedger | None) -> Room:
    """Images of some ``scale`` KiB: related, captured, twice stored, of two tenants, one deleted."""
    size = scale << 10
    objects = MemoryStore()
    repository = Repository.create(objects, ledger, chunking=Chunking(region=MIB))
    repository.add_domain("tenant")
    rng = random.Random(1)
    base = rng.randbytes(size) + text(2, size) + bytes(size) + rng.randbytes(size // 3)
    sister = base[: 2 * size] + text(3, size)
    changed = bytearray(base)
    spots = [rng.randrange(0, len(base) - 9000) for _ in range(6)]
    for spot in spots:
        changed[spot : spot + 5000] = rng.randbytes(5000)
    contents: dict[str, bytes] = {}

    def keep(data: bytes, **how: Any) -> str:
        index = repository.ingest(BytesDisk(data), **how).index
        contents[index] = data
        return index

    first = keep(base)
    keep(sister)
    extents = [Extent(spot, 5000, zero=False) for spot in sorted(spots)]
    keep(bytes(changed), base=first, changed=extents)
    keep(sister, domain="tenant")
    keep(text(9, size // 4))
    keep(bytes(size))  # no data at all
    twice(repository, objects, base[:size])
    gone = repository.ingest(BytesDisk(text(11, size // 2))).index
    repository.delete_index(gone)
    repository.keep_boot_profile(
        first, [Extent(0, 8192, zero=False), Extent(65536, 4096, zero=False)]
    )
    replica = MemoryStore()
    copied = copy(repository, Repository.replica(repository, replica))
    assert copied.ok
    return room(objects, ledger, contents, replica)


def twice(repository: Repository, objects: MemoryStore, data: bytes) -> None:
    """Store chunks a second time, as two ingests at once do."""
    other = Repository.replica(repository, MemoryStore())
    other.ingest(BytesDisk(data))
    for stored in other.objects.list("packs/"):
        objects.put(stored.key, other.objects.get(stored.key))


def room(
    objects: MemoryStore,
    ledger: MemoryLedger | None,
    contents: Mapping[str, bytes],
    replica: MemoryStore,
) -> Room:
    """The room of this store: who holds and who names each chunk."""
    packs = {s.key: load(objects, s.key, s.size) for s in objects.list("packs/")}
    holders: dict[bytes, set[str]] = {}
    for key, pack in packs.items():
        for digest in pack.digests:
            holders.setdefault(digest.tobytes(), set()).add(key)
    users: dict[bytes, set[str]] = {}
    repository = Repository(objects)
    for index in contents:
        root = repository.root(index)
        for region, digest in root.leaves.items():
            users.setdefault(digest, set()).add(index)
            leaf = repository._leaf_reader(root).leaf(region)
            assert leaf is not None
            for chunk in leaf.digests:
                users.setdefault(chunk.tobytes(), set()).add(index)
    return Room(
        objects,
        ledger,
        contents,
        clone(objects),
        replica,
        packs,
        {digest: frozenset(some) for digest, some in holders.items()},
        {digest: frozenset(some) for digest, some in users.items()},
    )


@dataclass(frozen=True, slots=True)
class Spot:
    """A bit of an object, and what it belongs to."""

    key: str
    at: int
    bit: int
    zone: str
    frame: int = -1


def spots(here: Room, count: int, seed: int) -> Sequence[Spot]:
    """Random places: half of them anywhere in the store, half evenly over the kinds of places."""
    rng = random.Random(seed)
    listed = list(here.objects.list())
    sizes = [stored.size for stored in listed]
    by_zone: dict[str, list[tuple[str, int, int]]] = {zone: [] for zone in ZONES}
    for stored in listed:
        for zone, first, last in _zones(here, stored.key, stored.size):
            by_zone[zone].append((stored.key, first, last))
    zones = [zone for zone in ZONES if by_zone[zone]]
    found = []
    for number in range(count):
        if number % 2:
            stored = rng.choices(listed, sizes)[0]
            key, at = stored.key, rng.randrange(stored.size)
        else:
            runs = by_zone[zones[number // 2 % len(zones)]]
            key, first, last = rng.choices(runs, [run[2] - run[1] for run in runs])[0]
            at = rng.randrange(first, last)
        found.append(_spot(here, key, at, rng.randrange(8)))
    return found


def _zones(here: Room, key: str, size: int) -> Iterator[tuple[str, int, int]]:
    kind = key.partition("/")[0]
    if kind != "packs":
        names = {"domains": "domain", "indexes": "root", "profiles": "profile"}
        yield names.get(kind, kind), 0, size
        return
    pack = here.packs[key]
    frames = 8 + int(pack.frame_stored.sum())
    yield "header", 0, 8
    yield "frame" if pack.kind is Kind.DATA else "leaf", 8, frames
    yield "footer", frames, size - 48
    yield "trailer", size - 48, size


def _spot(here: Room, key: str, at: int, bit: int) -> Spot:
    size = here.objects.size(key)
    zone = next(z for z, first, last in _zones(here, key, size) if first <= at < last)
    frame = -1
    if zone in {"frame", "leaf"}:
        frame = int(np.searchsorted(here.packs[key].frame_offset, at, side="right")) - 1
    return Spot(key, at, bit, zone, frame)


def touched(here: Room, spot: Spot) -> frozenset[str]:
    """The Indexes that this flip touches, from the whole store: those that must be named."""
    if spot.zone == "domain":
        name = spot.key.removeprefix("domains/")
        repository = Repository(here.objects)
        return frozenset(i for i in here.contents if repository.root(i).domain == name)
    if spot.zone == "root":
        return frozenset([spot.key.removeprefix("indexes/")])
    if spot.zone in {"config", "ledger", "profile", "header"}:
        return frozenset()  # no image reads it
    pack = here.packs[spot.key]
    digests = [digest.tobytes() for digest in pack.digests]
    if spot.frame >= 0:
        first = int(pack.frame_first[spot.frame])
        lost = digests[first : first + int(pack.frame_chunks[spot.frame])]
    else:  # without its footer a pack holds nothing
        lost = [d for d in digests if here.holders[d] == {spot.key}]
    return frozenset().union(*(here.users.get(digest, frozenset()) for digest in lost))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one flip."""

    spot: Spot
    found: bool
    named: bool  # exactly the right images
    unread: int  # images that a plain reader could not read, or read wrongly
    repaired: bool
    clean: bool
    identical: bool
    in_place: bool  # the damaged object is again what it was, byte for byte
    fetched: int  # bytes from the second store's packs

    @property
    def good(self) -> bool:
        """Whether everything that must hold does."""
        return all((self.found, self.named, self.repaired, self.clean, self.identical))


def trial(here: Room, spot: Spot, source: MemoryStore) -> Outcome:
    """Flip the bit, check, repair from ``source``, check again and read everything."""
    objects = clone(here.objects)
    damaged = bytearray(objects.get(spot.key))
    damaged[spot.at] ^= 1 << spot.bit
    objects.put(spot.key, damaged)
    unread = frozenset(here.contents) - readable(here, objects)
    report = Checker(objects).run()
    must = touched(here, spot)
    found = spot.key in {d.key for d in report.damage} and not (
        spot.zone == "config" and _opens(objects)
    )
    named = frozenset(report.touched) == must and (spot.zone == "config" or unread <= must)
    if spot.zone == "config":
        mend_parameters(objects, source)
    done = Repository(objects, here.ledger).repair(source, report=report)
    after: CheckReport = Repository(objects, here.ledger).check()
    return Outcome(
        spot=spot,
        found=found,
        named=named,
        unread=len(unread),
        repaired=done.ok,
        clean=after.ok and not after.leftovers,
        identical=readable(here, objects) == frozenset(here.contents),
        in_place=objects._objects.get(spot.key) == here.objects._objects[spot.key],
        fetched=done.bytes_read,
    )


def _opens(objects: MemoryStore) -> bool:
    try:
        Repository(objects)
    except StoreDamaged:
        return False
    return True


def readable(here: Room, objects: MemoryStore) -> frozenset[str]:
    """The Indexes that a plain reader reads as they were; it must not read one wrongly."""
    good = set()
    for index, data in here.contents.items():
        try:
            disk = Repository(objects).open(index)
            same = read(disk, 0, disk.size) == data
        except CalotypeError:
            continue
        assert same, f"{index} was read wrongly"
        good.add(index)
    return frozenset(good)


def campaign(scale: int, flips: int, seed: int) -> Iterator[Outcome]:
    """The outcomes of so many flips: in a store with a ledger and one without, repaired in turns from a store
    with the same packs and from one with other packs.
    """
    rooms = [build(scale, None), build(scale, MemoryLedger())]
    places = [iter(spots(here, flips, seed + n)) for n, here in enumerate(rooms)]
    for number in range(flips):
        here = rooms[number % 2]
        source = here.replica if number // 4 % 2 else here.mirror
        yield trial(here, next(places[number % 2]), source)


def main() -> int:
    """Run a campaign and write its report; 1 when something did not hold."""
    parser = argparse.ArgumentParser(description="Flip bits in a store; find and repair them all.")
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--scale", type=int, default=1024, help="KiB of an image's pieces")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--report", type=Path, help="where to write it: without .md and .json")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    start = time.monotonic()
    outcomes = []
    for number, outcome in enumerate(campaign(options.scale, options.flips, options.seed)):
        outcomes.append(outcome)
        if not outcome.good:
            sys.stdout.write(f"flip {number}: {outcome}\n")
    seconds = time.monotonic() - start
    result = summary(options.scale, options.seed, outcomes, seconds)
    sys.stdout.write(markdown(result))
    if options.report is not None:
        options.report.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        options.report.with_suffix(".md").write_text(markdown(result))
    return 0 if all(outcome.good for outcome in outcomes) else 1


def summary(scale: int, seed: int, outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """The figures of a campaign."""
    here = build(scale, None)
    rows = {}
    for zone in ZONES:
        some = [o for o in outcomes if o.spot.zone == zone]
        rows[zone] = {
            "flips": len(some),
            "found": sum(o.found for o in some),
            "named": sum(o.named for o in some),
            "repaired": sum(o.repaired and o.clean and o.identical for o in some),
            "in_place": sum(o.in_place for o in some),
            "harmed": sum(bool(o.unread) for o in some),
        }
    return {
        "flips": len(outcomes),
        "good": sum(o.good for o in outcomes),
        "seed": seed,
        "images": len(here.contents),
        "objects": len(list(here.objects.list())),
        "packs": len(here.packs),
        "store_bytes": sum(stored.size for stored in here.objects.list()),
        "image_bytes": sum(len(data) for data in here.contents.values()),
        "fetched_bytes": sum(o.fetched for o in outcomes),
        "seconds": round(seconds, 1),
        "python": platform.python_version(),
        "rows": rows,
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The report for people."""
    figures = {
        **result,
        "store": f"{result['store_bytes'] / MIB:.1f} MiB",
        "held": f"{result['image_bytes'] / MIB:.1f} MiB",
    }
    rows = [
        f"| {zone} | {row['flips']} | {row['found']} | {row['named']} | {row['repaired']} "
        f"| {row['in_place']} | {row['harmed']} |"
        for zone, row in result["rows"].items()
    ]
    return REPORT.format(**figures) + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
