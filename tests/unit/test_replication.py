"""Versions in several regions: usable at once, region by region, again after whatever interrupted it."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.published import a_definition, a_version

from calotype import wire
from calotype.catalog.replicas import Replicas
from calotype.config import SETTINGS
from calotype.disk.base import read
from calotype.engine import storage
from calotype.engine.gallery import lifecycle, replication, versions
from calotype.engine.launch import VmRequest, create_vm
from calotype.errors import InvalidInput, NotAllowed
from calotype.model import MIB, ReplicationState
from calotype.store.copy import copy as copy_indexes
from calotype.store.location import open_store
from calotype.store.repository import Repository

DEAD = "s3://images/x?endpoint=http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for setting in SETTINGS:
        monkeypatch.delenv(setting.environment, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")


def regions(context, **stores):
    """Configure stores by name."""
    lines = [f'{name} = "{url}"' for name, url in stores.items()]
    context.home.prepare().config.write_text("[stores]\n" + "\n".join(lines) + "\n")


@pytest.fixture
def here(context, tmp_path):
    """An installation with two regions, and a gallery."""
    regions(context, north=tmp_path / "north", south=tmp_path / "south", dead=DEAD)
    a_definition(context)
    return context


def states(done):
    return {replica.region: replica.state.value for replica in done.summary}


def indexes_in(path):
    found = path / "indexes"
    return sorted(p.name for p in found.iterdir()) if found.exists() else []


def own(version):
    return sorted(disk.index for disk in version.image.disks)


def content_of(repository, index):
    with closing(repository.open(index)) as disk:
        return read(disk, 0, disk.size)


def flip(directory):
    """Damage every pack of data."""
    for pack in (directory / "packs").iterdir():
        raw = bytearray(pack.read_bytes())
        raw[len(raw) // 3] ^= 1
        pack.write_bytes(raw)


def test_a_version_goes_to_its_regions_with_all_its_disks(here, tmp_path):
    disks = [os.urandom(2 * MIB), os.urandom(MIB)]
    version = a_version(here, content=disks[0], data=[disks[1]])
    done = replication.replicate(here, version, ["north", "south"])
    assert states(done) == {"north": "Completed", "south": "Completed"}
    assert done.aggregated_state == "Completed"
    assert all(r.progress == 100 and r.bytes_stored > 3 * MIB for r in done.summary)
    for region in ("north", "south"):
        assert indexes_in(tmp_path / region) == own(version)
        with storage.other_store(here, region) as other:
            assert other.check().ok
            found = [content_of(other, disk.index) for disk in version.image.disks]
            assert found == disks
    again = replication.replicate(here, version, ["north", "south"])
    assert [r.bytes_stored for r in again.summary] == [r.bytes_stored for r in done.summary]


def test_only_what_a_region_lacks_is_moved(here):
    content = os.urandom(4 * MIB)
    first = a_version(here, "1.0.0", content=content)
    second = a_version(here, "1.1.0", content=content[: 3 * MIB] + os.urandom(MIB))
    replication.replicate(here, first, ["north"])
    (replica,) = replication.replicate(here, second, ["north"]).summary
    assert replica.bytes_stored < 2 * MIB


def test_one_region_that_is_down_does_not_hinder_the_rest(here):
    version = a_version(here)
    done = replication.replicate(here, version, ["dead", "north", "south"])
    assert states(done) == {"dead": "Failed", "north": "Completed", "south": "Completed"}
    assert done.aggregated_state == "Failed"
    failed = next(r for r in done.summary if r.region == "dead")
    assert "s3://images/x" in failed.detail
    create_vm(here, VmRequest(name="vm1", image=version.reference, start=False))


def test_a_region_that_comes_back_is_tried_again(here, tmp_path):
    version = a_version(here)
    replication.replicate(here, version, ["dead", "north"])
    regions(here, north=tmp_path / "north", dead=tmp_path / "revived")
    context = wire.build(home=here.home)
    done = replication.replicate(context, version)  # the ones that it is to be in
    assert states(done) == {"dead": "Completed", "north": "Completed"}
    assert indexes_in(tmp_path / "revived") == own(version)
    context.close()


def test_a_region_that_is_full_fails_alone(here, monkeypatch):
    version = a_version(here)
    real = copy_indexes

    def full(source, target, indexes, *, progress):
        with progress.phase("copying", 100) as report:
            if progress.replica.region == "south":
                report(50)
                raise OSError(28, "No space left on device")
        return real(source, target, indexes, progress=progress)

    monkeypatch.setattr(replication, "copy_indexes", full)
    done = replication.replicate(here, version, ["south", "north"])
    assert states(done) == {"north": "Completed", "south": "Failed"}
    assert next(r for r in done.summary if r.region == "south").detail == "No space left on device"


def test_a_region_that_is_slow_does_not_hold_up_the_others(here, monkeypatch):
    """Each of two waits until the other one is at work."""
    version = a_version(here)
    real, both = copy_indexes, threading.Barrier(2, timeout=30)

    def slow(*args, progress):
        both.wait()
        return real(*args, progress=progress)

    monkeypatch.setattr(replication, "copy_indexes", slow)
    done = replication.replicate(here, version, ["south", "north"])
    assert states(done) == {"north": "Completed", "south": "Completed"}


def test_a_region_that_another_command_holds_does_not_hold_up_the_others(here, monkeypatch):
    version = a_version(here)
    real, copied = copy_indexes, threading.Event()

    def told(*args, progress):
        report = real(*args, progress=progress)
        copied.set()
        return report

    monkeypatch.setattr(replication, "copy_indexes", told)
    with ThreadPoolExecutor(1) as pool:
        with replication._held(here, "north"):
            done = pool.submit(replication.replicate, here, version, ["north", "south"])
            assert copied.wait(30)
        assert states(done.result()) == {"north": "Completed", "south": "Completed"}


def test_ctrl_c_ends_the_copies_to_all_regions(here, tmp_path, monkeypatch):
    version = a_version(here, content=os.urandom(3 * MIB))
    real, at_work, stopped = copy_indexes, threading.Barrier(3, timeout=30), threading.Event()

    def slow(*args, progress):
        at_work.wait()
        assert stopped.wait(30)
        return real(*args, progress=progress)

    class Stop(threading.Event):
        def set(self):
            super().set()
            stopped.set()

    def interrupted(_jobs):
        at_work.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(replication, "copy_indexes", slow)
    monkeypatch.setattr(replication, "Event", Stop)
    monkeypatch.setattr(replication, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replication.replicate(here, version, ["north", "south"])
    status = replication.status(here, version)
    assert states(status) == {"north": "Failed", "south": "Failed"}
    assert {replica.detail for replica in status.summary} == {replication._INTERRUPTED}
    assert indexes_in(tmp_path / "north") == indexes_in(tmp_path / "south") == []


def test_what_nobody_foresaw_in_one_region_does_not_hinder_the_rest(here, monkeypatch):
    version = a_version(here)
    real = copy_indexes

    def surprised(*args, progress):
        if progress.replica.region == "north":
            raise RuntimeError("a bug")
        return real(*args, progress=progress)

    monkeypatch.setattr(replication, "copy_indexes", surprised)
    with pytest.raises(RuntimeError, match="a bug"):
        replication.replicate(here, version, ["north", "south"])
    assert states(replication.status(here, version)) == {"north": "Failed", "south": "Completed"}


def test_a_version_is_usable_while_it_is_replicated_and_says_how_far_that_is(here, monkeypatch):
    version = a_version(here, content=os.urandom(3 * MIB))
    real, seen = copy_indexes, []

    def slow(source, target, indexes, *, progress):
        with progress.phase("copying", 100) as report:
            report(40)
            seen.append(replication.status(wire.build(home=here.home), version))
        create_vm(here, VmRequest(name="vm1", image=version.reference, start=False))
        return real(source, target, indexes, progress=progress)

    monkeypatch.setattr(replication, "copy_indexes", slow)
    replication.replicate(here, version, ["north"])
    assert seen[0].aggregated_state == "InProgress"
    (replica,) = seen[0].summary
    assert (replica.state, replica.progress) == (ReplicationState.REPLICATING, 40)
    assert here.catalog.vm("vm1")


KILLED = """
import os, signal, sys
from calotype import wire
from calotype.config import Home
from calotype.engine import references
from calotype.engine.gallery import replication
from calotype.store.transfer import Mover
from pathlib import Path
context = wire.build(home=Home(Path(sys.argv[1])))
move = Mover.move
def half(self, kind, marked, report):
    def then_killed(n):
        report(n)
        os.kill(os.getpid(), signal.SIGKILL)
    move(self, kind, marked, then_killed)
Mover.move = half
replication.replicate(context, references.find_version(context, "gal/web/1.0.0"), ["north"])
"""


def test_a_replication_that_was_killed_says_so_and_goes_on(here, tmp_path):
    version = a_version(here, content=os.urandom(8 * MIB))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, here.home.root],
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == -signal.SIGKILL
    status = replication.status(here, version)
    assert states(status) == {"north": "Failed"}
    assert "interrupted" in status.summary[0].detail
    assert states(replication.replicate(here, version)) == {"north": "Completed"}
    with storage.other_store(here, "north") as other:
        assert other.check().ok


def test_what_is_done_while_somebody_asks_was_not_interrupted(here, monkeypatch):
    version = a_version(here)
    done = replication.replicate(here, version, ["north"]).summary[0]
    here.system.replicas.note(version.image.id, replace(done, state=ReplicationState.REPLICATING))
    real = replication._held

    def held(*args, **more):
        here.system.replicas.note(version.image.id, done)
        return real(*args, **more)

    monkeypatch.setattr(replication, "_held", held)
    assert states(replication.status(here, version)) == {"north": "Completed"}


class KilledError(BaseException):
    """As kill -9 ends a command, but for the locks: those fall here too."""


@pytest.fixture
def dying(monkeypatch):
    """Sets after how many steps a command dies: before and after what it writes down, and each Index."""
    left = -1

    def after(steps):
        nonlocal left
        left = steps

    def step():
        if left == 0:
            raise KilledError
        after(left - 1)

    def deadly(real):
        def call(*args, **more):
            step()
            done = real(*args, **more)
            step()
            return done

        return call

    for name in ("add", "interrupt", "note", "claim"):
        monkeypatch.setattr(Replicas, name, deadly(getattr(Replicas, name)))
    monkeypatch.setattr(Repository, "accept", deadly(Repository.accept))
    return after


def test_wherever_it_is_killed_the_state_is_right_and_it_goes_on(here, tmp_path, dying):
    made = []
    for steps in range(99):
        made.append(a_version(here, f"1.{steps}.0"))
        dying(steps)
        try:
            replication.replicate(here, made[-1], ["north"])
        except KilledError:
            dying(-1)
        else:
            break
        there = states(replication.status(here, made[-1]))
        whole = set(own(made[-1])) <= set(indexes_in(tmp_path / "north"))
        assert there in ({}, {"north": "Unknown"}, {"north": "Failed"}, {"north": "Completed"})
        assert whole or there != {"north": "Completed"}
        assert states(replication.replicate(here, made[-1], ["north"])) == {"north": "Completed"}
        assert set(own(made[-1])) <= set(indexes_in(tmp_path / "north"))
    assert 10 < steps < 98
    dying(-1)
    for version in made:
        replication.withdraw(here, version, ["north"])
    assert indexes_in(tmp_path / "north") == []


def test_a_region_is_named_and_not_one_of_those_that_are_excluded(here):
    version = a_version(here)
    with pytest.raises(InvalidInput, match="no region 'west'") as caught:
        replication.replicate(here, version, ["west"])
    assert "[stores]" in str(caught.value.hint)
    with pytest.raises(InvalidInput, match="no region 'west'"):
        replication.withdraw(here, version, ["west"])
    assert "north" in str(caught.value.hint)
    with pytest.raises(NotAllowed, match="excluded from region 'south'"):
        replication.require_regions(here, ["north", "south"], ["south"])
    assert replication.require_regions(here, [here.region, "north", "north"]) == ("north",)
    assert replication.status(here, version).summary == ()


def test_a_store_that_names_chunks_otherwise_is_no_region(here, tmp_path):
    Repository.create(open_store(str(tmp_path / "north")))
    (replica,) = replication.replicate(here, a_version(here), ["north"]).summary
    assert replica.state is ReplicationState.FAILED
    assert "was not made for this installation" in replica.detail


def test_the_installations_own_store_is_no_region(here):
    regions(here, own=here.home.store)
    context = wire.build(home=here.home)
    (replica,) = replication.replicate(context, a_version(context), ["own"]).summary
    assert replica.state is ReplicationState.FAILED
    assert "is this installation's own" in replica.detail
    context.close()


def test_what_is_damaged_here_comes_back_from_a_region(here):
    content = os.urandom(3 * MIB)
    version = a_version(here, content=content)
    replication.replicate(here, version, ["south"])
    flip(here.home.store)
    here.close()
    context = wire.build(home=here.home)
    assert not storage.check(context).ok
    assert storage.repair(context, "south").ok
    assert content_of(context.repository, version.image.os_disk.index) == content
    create_vm(context, VmRequest(name="vm1", image=version.reference, start=False))
    context.close()


def test_what_cannot_be_read_here_is_not_called_replicated(here):
    version = a_version(here, content=os.urandom(3 * MIB))
    flip(here.home.store)
    here.close()
    (replica,) = replication.replicate(here, version, ["north"]).summary
    assert replica.state is ReplicationState.FAILED
    assert "cannot be read here" in replica.detail


# -- what goes when a version goes


def test_a_purged_version_leaves_its_regions_and_what_others_need_stays(here, tmp_path):
    shared, content = os.urandom(MIB), os.urandom(MIB)
    first = a_version(here, "1.0.0", content=content, data=[shared])
    second = a_version(here, "2.0.0", data=[shared])
    for version in (first, second):
        replication.replicate(here, version, ["north"])
    lifecycle.delete(here, first.reference, force=True, purge=True)
    assert indexes_in(tmp_path / "north") == own(second)


def test_a_deleted_version_that_can_come_back_keeps_its_replicas(here, tmp_path):
    version = a_version(here)
    replication.replicate(here, version, ["north"])
    lifecycle.delete(here, version.reference, force=True)
    assert replication.clean(here).removed == 0
    assert indexes_in(tmp_path / "north") == own(version)


def test_what_cannot_be_removed_now_is_remembered(here, tmp_path):
    version = a_version(here)
    replication.replicate(here, version, ["north"])
    shutil.move(tmp_path / "north", tmp_path / "away")
    lifecycle.delete(here, version.reference, force=True, purge=True)
    assert list(replication.clean(here).waiting) == ["north"]
    shutil.move(tmp_path / "away", tmp_path / "north")
    storage.prune(here, grace=timedelta(0), empty=True)
    assert indexes_in(tmp_path / "north") == []
    assert here.system.replicas.unneeded() == {}


def test_what_somebody_else_put_into_a_region_stays(here, tmp_path):
    version = a_version(here)
    storage.copy(here, "north", [version.image.id])
    replication.replicate(here, version, ["north"])
    replication.withdraw(here, version, ["north"])
    assert replication.status(here, version).summary == ()
    assert indexes_in(tmp_path / "north") == own(version)


def test_a_version_is_taken_out_of_a_region(here, tmp_path):
    version = a_version(here)
    replication.replicate(here, version, ["north", "south"])
    assert replication.withdraw(here, version, ["north"]).removed == 1
    assert states(replication.status(here, version)) == {"south": "Completed"}
    assert indexes_in(tmp_path / "north") == []
    assert indexes_in(tmp_path / "south") == own(version)


def test_a_version_leaves_the_regions_that_it_is_excluded_from(here, tmp_path):
    version = a_version(here)
    replication.replicate(here, version, ["north", "south"])
    changed = versions.update_version(here, version.reference, excluded_regions=("north",))
    assert states(replication.status(here, changed)) == {"south": "Completed"}
    assert indexes_in(tmp_path / "north") == []
    with pytest.raises(NotAllowed, match="excluded from region 'north'"):
        replication.replicate(here, changed, ["north"])


def test_a_version_that_was_excluded_meanwhile_is_not_brought_there(here, tmp_path):
    version = a_version(here)
    versions.update_version(here, version.reference, excluded_regions=("north",))
    done = replication.replicate(here, version, ["north", "south"])  # as it was before
    assert states(done) == {"south": "Completed"}
    assert not (tmp_path / "north").exists()


def test_a_copy_ends_when_the_version_is_taken_out_of_the_region(here, tmp_path, monkeypatch):
    version = a_version(here, content=os.urandom(3 * MIB))
    real = copy_indexes

    def withdrawn(*args, progress):
        versions.update_version(here, version.reference, excluded_regions=("north",))
        return real(*args, progress=progress)

    monkeypatch.setattr(replication, "copy_indexes", withdrawn)
    done = replication.replicate(here, version, ["north"])
    assert done.summary == ()
    assert indexes_in(tmp_path / "north") == []
    assert here.system.replicas.unneeded() == {}


def test_a_region_that_another_command_holds_is_cleaned_next_time(here, tmp_path):
    version = a_version(here)
    replication.replicate(here, version, ["north"])
    with replication._held(here, "north"):
        lifecycle.delete(here, version.reference, force=True, purge=True)
        assert "north" in replication.clean(here).waiting
        assert indexes_in(tmp_path / "north") == own(version)
    assert replication.clean(here).removed == 1


def test_the_audit_tells_where_a_version_went(here):
    version = a_version(here)
    replication.replicate(here, version, ["north"])
    entry = here.catalog.audit.list()[0]
    assert (entry.action, entry.resource) == (
        "version.replicate",
        "image version gal/web/1.0.0",
    )
    assert entry.detail["regions"] == ["north"]
