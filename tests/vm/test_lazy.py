"""Guests that start before their base is whole: one fetch for all, a hand-over that none of them notices."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from calotype.config import Home
from calotype.engine.base.partial import Partial
from calotype.machine.layout import Layout
from calotype.machine.qmp import Qmp

pytestmark = pytest.mark.vm


@pytest.fixture
def lazy(cli, monkeypatch):
    """The installation, in which no base is too small for a server."""
    monkeypatch.setitem(cli.env, "CALOTYPE_LAZY_ABOVE", "0")
    yield cli
    cli.delete_vms()
    for partial in Partial.all(Home(Path(cli.home))):
        partial.remove()


@pytest.fixture
def index(lazy, tiny):
    """The Index of a fresh image of the tiny guest: no base, no boot profile."""
    lazy.run("image", "create", "tiny", "--source", tiny, "--os-state", "Generalized")
    yield lazy("image", "show", "tiny")["osDisk"]["index"]
    lazy.delete_vms()
    lazy.run("image", "delete", "tiny")


@pytest.fixture
def partial(lazy, index):
    return Partial.of(Home(Path(lazy.home)), index)


def create(lazy, name, *options):
    made = lazy("vm", "create", name, "--image", "tiny", "--memory", "128M", *options)
    return Path(lazy.home) / "vms" / made["id"]


def wait(condition, seconds=300.0):  # other guests may have the processors
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)  # processes of other sessions have no event that we could await


def nodes(directory):
    with Qmp.open(Layout(directory).query) as qmp:
        found = qmp.execute("query-named-block-nodes", {"flat": True})
    return {node["drv"] for node in found}


def keeper(partial):
    """The number of the keeper's process, once it knows it."""
    server = partial.root / "server"
    wait(server.read_text)
    return int(server.read_text())


@contextmanager
def not_yet(partial):
    """Within the block nothing is handed over: the keeper stands still, the filler serves."""
    wait((partial.root / "stats.json").exists)
    number = keeper(partial)
    os.kill(number, signal.SIGSTOP)
    try:
        yield number
    finally:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGCONT)


def hand_over(partial):
    """Have the base fetched, and wait until all is done."""
    with suppress(FileNotFoundError):  # it was quicker
        (partial.root / "hurry").touch()
    wait(lambda: not partial.exists())


def test_a_guest_boots_is_handed_over_and_writes_on(lazy, index, partial):
    directory = create(lazy, "cold")
    assert "nbd" in nodes(directory)
    with not_yet(partial):
        lazy.run("vm", "wait", "cold", "--for", "agent")
        writer = (
            "(i=0; while [ $i -lt 400 ]; do echo $i >> /root/lines; sync; i=$((i+1)); done;"
            " touch /root/done) > /dev/null 2>&1 &"
        )
        lazy.guest("cold", writer)
        assert "nbd" in nodes(directory)
    hand_over(partial)
    assert "nbd" not in nodes(directory)
    base = Path(lazy.home) / "bases" / f"{index}.raw"
    assert base.stat().st_nlink == 2
    assert not list(directory.glob("base/*.nbd"))
    lazy.guest("cold", "while [ ! -e /root/done ]; do sleep 1; done")
    assert lazy.guest("cold", "wc -l < /root/lines; tail -n 1 /root/lines") == "400\n399"
    lazy.run("vm", "stop", "cold")
    lazy.run("vm", "start", "cold")
    lazy.run("vm", "wait", "cold", "--for", "agent")
    assert lazy.guest("cold", "wc -l < /root/lines") == "400"


def test_a_guest_lives_on_when_its_servers_are_killed(lazy, index, partial):
    directory = create(lazy, "cold")
    os.kill(keeper(partial), signal.SIGKILL)
    wait(lambda: not partial.alive())
    create(lazy, "second")  # any command that starts a VM starts the server
    assert partial.alive()
    with not_yet(partial) as number:
        lazy.run("vm", "wait", "cold", "--for", "agent")
        lazy.run("vm", "wait", "second", "--for", "agent")
        os.kill(number, signal.SIGKILL)
        wait(lambda: not partial.alive())
    lazy.run("vm", "start", "cold")  # it runs: its server is what starts
    assert lazy.guest("cold", "cat /bin/* /sbin/* > /dev/null 2>&1; echo read") == "read"
    hand_over(partial)
    assert "nbd" not in nodes(directory)
    assert lazy.guest("second", "echo on") == "on"


def test_a_guest_on_a_partial_base_is_captured_stopped_and_started(lazy, index, partial):
    create(lazy, "cold")
    with not_yet(partial):
        lazy.run("vm", "wait", "cold", "--for", "agent")
        lazy.guest("cold", "echo kept > /root/kept; sync")
        done = lazy("vm", "capture", "cold", "--image", "running")
        assert done["capture"]["consistency"] == "filesystem"
        lazy.run("vm", "stop", "cold")
        lazy.run("vm", "capture", "cold", "--image", "stopped", "--generalize")
        assert partial.exists()
        lazy.run("vm", "start", "cold")
        lazy.run("vm", "wait", "cold", "--for", "agent")
        assert lazy.guest("cold", "cat /root/kept") == "kept"
    lazy.run("vm", "delete", "cold")
    wait(lambda: not partial.alive())
    assert lazy("store", "check")["ok"]
    lazy.run("vm", "create", "copy", "--image", "running", "--memory", "128M")
    lazy.run("vm", "wait", "copy", "--for", "agent")
    assert lazy.guest("copy", "cat /root/kept") == "kept"
    lazy.run("vm", "delete", "copy")
    for name in ("running", "stopped"):
        lazy.run("image", "delete", name)


def test_guests_at_once_are_served_by_one(lazy, index, partial):
    with ThreadPoolExecutor(4) as pool:
        directories = list(pool.map(lambda n: create(lazy, f"clone{n}"), range(4)))
    assert partial.alive()
    for number in range(4):
        lazy.run("vm", "wait", f"clone{number}", "--for", "agent")
    hand_over(partial)
    assert all("nbd" not in nodes(directory) for directory in directories)
    base = Path(lazy.home) / "bases" / f"{index}.raw"
    assert base.stat().st_nlink == 5


def status(directory):
    with Qmp.open(Layout(directory).query) as qmp:
        return qmp.execute("query-status")["status"]


def test_a_guest_waits_while_the_store_fails(lazy, index, partial):
    directory = create(lazy, "cold")
    packs = Path(lazy.home) / "store" / "packs"
    away = packs.with_name("away")
    packs.rename(away)
    wait(lambda: status(directory) == "io-error")
    assert lazy("vm", "show", "cold")["powerState"] == "paused"
    away.rename(packs)
    lazy.run("vm", "wait", "cold", "--for", "agent")
    assert lazy.guest("cold", "dmesg | grep -c 'I/O error' || true") == "0"
