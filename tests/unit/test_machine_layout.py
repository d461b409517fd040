"""The VM's directory and process: locks, links, liveness, and what a hostile QEMU could lay there."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from calotype.errors import Conflict, InvalidInput, NotFound
from calotype.machine import QemuDriver
from calotype.machine.layout import Layout, link, read_guarded
from calotype.machine.process import Process, alive, hold
from calotype.model import PowerState


def test_only_one_holds_a_lock(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with layout.lock():
        with pytest.raises(Conflict, match="another command"), layout.lock(0.05):
            pass
        with layout.lock(0.05, "other.lock"):
            pass
    with layout.lock(0.05):
        pass
    with pytest.raises(NotFound), Layout(tmp_path / "none").lock():
        pass


def test_links_follow_their_source(tmp_path: Path) -> None:
    first, second, target = tmp_path / "1", tmp_path / "2", tmp_path / "t"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    for source in (first, first, second):
        link(source, target)
        assert target.samefile(source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "t"]


def test_only_regular_files_are_linked(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(InvalidInput, match="regular"):
        link(tmp_path / "link", tmp_path / "t")
    with pytest.raises(InvalidInput, match="regular"):
        link(tmp_path, tmp_path / "t")
    with pytest.raises(NotFound):
        link(tmp_path / "none", tmp_path / "t")
    assert not (tmp_path / "t").exists()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no second file system")
def test_another_file_system_is_refused_with_the_cure(tmp_path: Path) -> None:
    other = Path("/dev/shm", f"calotype-{os.getpid()}")
    other.touch()
    try:
        if other.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is no second file system")
        with pytest.raises(InvalidInput) as raised:
            link(other, tmp_path / "t")
        assert raised.value.hint is not None
        assert "one file system" in raised.value.hint
    finally:
        other.unlink()


def test_no_link_pipe_or_directory_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "link").symlink_to("secret")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", ".", "none"):
        with pytest.raises(NotFound):
            read_guarded(tmp_path / name)
    assert read_guarded(tmp_path / "secret") == b"secret"
    assert read_guarded(tmp_path / "secret", 3) == b"ret"
    assert read_guarded(tmp_path / "secret", 100) == b"secret"


def test_a_serial_log_that_became_a_link_is_empty(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.prepare()
    layout.serial_log.symlink_to("/etc/passwd")
    assert QemuDriver(tmp_path / "cache").serial_log(tmp_path) == b""


def test_what_never_ran_is_stopped(tmp_path: Path) -> None:
    driver = QemuDriver(tmp_path / "cache")
    for path in (tmp_path, tmp_path / "none"):
        assert driver.state(path) is PowerState.STOPPED
        driver.kill(path)
        driver.clear_point_in_time(path)


def test_a_pid_without_the_lock_is_nobody(tmp_path: Path) -> None:
    """After a reboot the number may be anyone's: here it is this process's."""
    layout = Layout(tmp_path)
    layout.pid.write_text(str(os.getpid()))
    assert Process.find(layout) is None
    layout.alive.touch()
    assert Process.find(layout) is None
    QemuDriver(tmp_path / "cache").kill(tmp_path)  # and is not killed


def test_a_process_that_hangs_is_found_and_killed(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    held = hold(layout)
    with subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pause()"], pass_fds=(held,)
    ) as sleeper:
        os.close(held)
        layout.pid.write_text(str(sleeper.pid))
        assert alive(layout)
        sleeper.send_signal(signal.SIGSTOP)
        assert QemuDriver(tmp_path / "cache").state(tmp_path) is PowerState.RUNNING
        found = Process.find(layout)
        assert found is not None
        with found:
            assert found.pid == sleeper.pid
            assert not found.wait(0.01)
            found.kill()
        assert sleeper.wait() == -signal.SIGKILL
    assert not alive(layout)
    assert Process.find(layout) is None


def test_the_inherited_descriptor_cannot_be_written(tmp_path: Path) -> None:
    held = hold(Layout(tmp_path))
    try:
        assert fcntl.fcntl(held, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    finally:
        os.close(held)


def test_a_process_that_is_not_found_yet_holds_its_disks_and_is_killed(tmp_path: Path) -> None:
    """The command that started it was killed before QEMU listened."""
    driver, layout = QemuDriver(tmp_path / "cache"), Layout(tmp_path)
    held = hold(layout)
    with subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pause()"], pass_fds=(held,)
    ) as sleeper:
        os.close(held)
        assert driver.state(tmp_path) is PowerState.RUNNING
        found = threading.Timer(0.1, layout.pid.write_text, [str(sleeper.pid)])
        found.start()
        driver.kill(tmp_path)
        assert sleeper.wait() == -signal.SIGKILL
        found.join()
    assert driver.state(tmp_path) is PowerState.STOPPED
