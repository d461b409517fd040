"""Operations: what was claimed and is not in the catalogue goes, in whatever way the command ended."""

import os
import signal
import threading

import pytest

from calotype.config import Home
from calotype.engine import operation as module


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home").prepare()


class World:
    """Files of resources, and the catalogue's rows."""

    def __init__(self, home):
        self.home, self.rows = home, set()

    def operation(self):
        return module.operation(self.home, known=self.known, discard=self.discard)

    def known(self, kind, identifier):
        return (kind, identifier) in self.rows

    def discard(self, _kind, identifier):
        (self.home.disks / identifier).unlink(missing_ok=True)

    def make(self, operation, identifier):
        operation.claim("disk", identifier)
        (self.home.disks / identifier).write_text("content")

    def files(self):
        return sorted(path.name for path in self.home.disks.iterdir())


def test_what_is_committed_stays(home):
    world = World(home)
    with world.operation() as operation:
        world.make(operation, "a")
        world.rows.add(("disk", "a"))
    assert world.files() == ["a"]
    assert not operation.directory.exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_is_not_committed_goes(home, error):
    world = World(home)

    def fail():
        with world.operation() as operation:
            world.make(operation, "a")
            raise error

    with pytest.raises(error):
        fail()
    assert world.files() == []
    assert list(home.tmp.glob("op-*")) == []


def test_the_next_command_cleans_up_after_a_killed_one(home):
    world = World(home)
    child = os.fork()
    if child == 0:
        with world.operation() as operation:
            world.make(operation, "lost")
            world.make(operation, "kept")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert world.files() == ["kept", "lost"]
    world.rows.add(("disk", "kept"))
    with world.operation():
        assert world.files() == ["kept"]


def test_a_command_that_lives_is_left_alone(home):
    world = World(home)
    inside, go_on = threading.Event(), threading.Event()

    def slow():
        with world.operation() as operation:
            world.make(operation, "slow")
            inside.set()
            go_on.wait()
            world.rows.add(("disk", "slow"))

    thread = threading.Thread(target=slow)
    thread.start()
    inside.wait()
    with world.operation():
        assert world.files() == ["slow"]
    go_on.set()
    thread.join()
    assert world.files() == ["slow"]


def test_deletion_is_the_same_in_reverse(home):
    world = World(home)
    world.rows.add(("disk", "a"))
    (home.disks / "a").write_text("content")
    with world.operation() as operation:
        operation.claim("disk", "a")
        world.rows.discard(("disk", "a"))
    assert world.files() == []


def test_a_lock_holds_across_processes(home):
    with module.lock(home, "x"):
        child = os.fork()
        if child == 0:
            signal.alarm(1)  # ends the child when the lock holds
            with module.lock(home, "x"):
                os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGALRM
