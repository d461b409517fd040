"""The benches' own sums: what is kept after a crash, and whether a target holds."""

import hashlib
import math
import os
import sys

import pytest
from bench import catalogue, targets
from bench.log import Log
from bench.measure import Command, cpu_of, data_runs, run, tree
from bench.summary import Summary
from bench.works import sha256


def _sample(tool, seconds, **about):
    figures = {"seconds": seconds, "returned": seconds, "cpu": seconds, "memory": 50.0}
    return {"tool": tool, "row": "ingest", "caches": "warm", **figures, "stored": 1, **about}


def test_a_campaign_goes_on_and_another_one_begins_anew(tmp_path):
    log = Log(tmp_path / "log", {"sources": "a"})
    log.add("image", [_sample("restic", 3.0, run=0)])
    again = Log(tmp_path / "log", {"sources": "a"})
    assert again.has("image", tool="restic", run=0)
    assert not again.has("image", tool="restic", run=1)
    assert again.started == log.started
    assert not Log(tmp_path / "log", {"sources": "b"}).has("image", tool="restic")


def test_targets_tell_what_is_lost(tmp_path):
    log = Log(tmp_path / "log", {})
    seconds = {"calotype": 2.0, "restic": 6.0, "borg lz4": 2.2, "qemu-img convert": 1.0}
    log.add("image", [_sample(tool, s, run=n) for n in range(3) for tool, s in seconds.items()])
    log.add(
        "stored", [{"tool": "calotype", "sizes": [1, 56]}, {"tool": "restic", "sizes": [1, 100]}]
    )
    summary = Summary.of(log, {})
    found = {(row.work, row.target): row.holds for row in targets.rows(summary, {})}
    assert found["first ingest, warm", "≥ 3 x restic"] is True
    assert found["first ingest, warm", "≥ 1.2 x borg lz4"] is False
    assert found["stored bytes, the six images", "≤ 0.55 x restic"] is False
    assert found["memory, all of the above", "≤ 300 MiB"] is True
    assert targets.losses(summary) == [
        "ingest, warm: qemu-img convert takes 1.00 s, we take 2.00 s"
    ]


def test_memory_is_that_of_the_whole_tree_and_not_of_the_bench(tmp_path):
    held = bytearray(os.urandom(1)) * (150 << 20)
    child = "import subprocess, sys; a = b'x' * (40 << 20)\n"
    child += "subprocess.run([sys.executable, '-c', sys.argv[1]])"
    argv = [sys.executable, "-c", child, "a = b'x' * (60 << 20); import time; time.sleep(0.3)"]
    found = run(Command(argv=argv), tmp_path, tmp_path / "log")
    assert 100 < found.memory < 145
    assert found.seconds >= found.returned >= 0.3
    del held


def test_a_command_that_fails_is_told_of_in_its_own_words(tmp_path):
    command = Command(argv=["sh", "-c", "echo no such image >&2; exit 3"])
    with pytest.raises(SystemExit, match="no such image"):
        run(command, tmp_path, tmp_path / "log")


def test_the_digest_of_a_sparse_file_is_that_of_all_its_bytes(tmp_path):
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.write(b"a" * 5000)
        file.seek(3 << 20)
        file.write(b"b" * 100)
        file.truncate((5 << 20) + 17)
    with path.open("rb") as file:
        assert len(data_runs(file.fileno())) >= 1
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert os.getpid() in tree([os.getpid()])
    assert cpu_of([os.getpid()]) > 0


def test_every_version_of_the_catalogue_has_a_place_of_its_own():
    places = [catalogue.place(number) for number in range(20_000)]
    assert len(set(places)) == len(places)
    assert sum(definition == 0 for definition, _nth in places) == 2_000
    assert max(definition for definition, _nth in places) == catalogue.DEFINITIONS - 1
    ordered = [catalogue.numbered(nth) for nth in range(100_000)]
    assert ordered == sorted(set(ordered))


def test_growth_tells_a_scan_from_a_step_in_an_index():
    scales = (1_000, 10_000, 100_000)
    assert catalogue.growth({n: n / 1_000 for n in scales})["exponent"] == 1
    flat = catalogue.growth({n: 1 + math.log10(n) / 100 for n in scales})
    assert flat["each_tenfold_ms"] == 0.01
    assert flat["exponent"] < 0.01
