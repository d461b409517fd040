"""The door to subprocesses: limits, the clock, the sandbox; and that nobody else starts a process."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

import calotype
from calotype.errors import TimedOut, ToolFailed, ToolMissing
from calotype.run import Limits, Sandbox, run, spawn, which


def test_output_and_input():
    assert run(["cat"], data=b"hello").stdout == b"hello"


def test_a_failure_carries_the_last_words():
    with pytest.raises(ToolFailed, match="status 3: so it goes"):
        run(["sh", "-c", "echo so it goes >&2; exit 3"])
    assert run(["sh", "-c", "exit 3"], check=False).returncode == 3


def test_the_clock_kills_the_whole_group(tmp_path):
    script = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(TimedOut):
        run(["sh", "-c", script], limits=Limits(wall=0.5))
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _alive(pid)


def _alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_limits_hold(tmp_path):
    with pytest.raises(ToolFailed):
        run(
            ["dd", "if=/dev/zero", f"of={tmp_path}/f", "bs=1M", "count=10"],
            limits=Limits(file_size=1 << 20),
        )
    assert (tmp_path / "f").stat().st_size <= 1 << 20


def test_a_missing_program_names_its_package(monkeypatch):
    which.cache_clear()
    monkeypatch.setattr("calotype.run.shutil.which", lambda *_a, **_k: None)
    with pytest.raises(ToolMissing) as caught:
        which("qemu-img")
    assert caught.value.hint == "install it: apt-get install qemu-utils"
    which.cache_clear()


def test_without_a_sandbox_nothing_runs(monkeypatch):
    which.cache_clear()
    monkeypatch.setattr("calotype.run.shutil.which", lambda *_a, **_k: None)
    with pytest.raises(ToolMissing, match="bwrap"):
        run(["/bin/true"], sandbox=Sandbox())
    which.cache_clear()


def test_the_sandbox_shows_what_it_was_given_and_nothing_else(tmp_path):
    (tmp_path / "given").write_text("given")
    (tmp_path / "other").write_text("other")
    sandbox = Sandbox(read_only={"/in": str(tmp_path / "given")})
    script = f"cat /in; cat {tmp_path}/other || true; ls /home /root /etc/shadow || true; ls /"
    out = run(["sh", "-c", script], sandbox=sandbox).stdout.decode()
    assert out.startswith("given")
    assert "other" not in out
    assert set(out.split()[1:]) <= {
        "bin",
        "dev",
        "etc",
        "in",
        "lib",
        "lib64",
        "proc",
        "sbin",
        "tmp",
        "usr",
    } | {"given"}


def test_the_sandbox_has_no_network_and_no_other_process(tmp_path):
    out = run(["sh", "-c", "cat /proc/net/dev; ls /proc"], sandbox=Sandbox()).stdout.decode()
    interfaces = re.findall(r"^\s*(\w+):", out, re.MULTILINE)
    assert interfaces == ["lo"]
    assert len([word for word in out.split() if word.isdigit() and int(word) > 50]) < 20


def test_read_only_is_read_only(tmp_path):
    (tmp_path / "given").write_text("given")
    sandbox = Sandbox(read_only={"/in": str(tmp_path / "given")})
    assert run(["sh", "-c", "echo x > /in"], sandbox=sandbox, check=False).returncode != 0
    assert (tmp_path / "given").read_text() == "given"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_uid_drops_every_power():
    sandbox = Sandbox(uid=1_912_345_678)
    out = run(["cat", "/proc/self/status"], sandbox=sandbox).stdout.decode()
    assert re.search(r"^Uid:\s+1912345678\s+1912345678", out, re.MULTILINE)
    assert re.search(r"^CapEff:\s+0+$", out, re.MULTILINE)
    assert re.search(r"^CapBnd:\s+0+$", out, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", out, re.MULTILINE)


def test_a_spawned_command_can_outlive_us_only_when_it_may():
    with spawn(["sleep", "60"], sandbox=Sandbox()) as process:
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(timeout=10) == -signal.SIGKILL


def test_only_run_starts_processes():
    """No other module of the package calls subprocess, os.system or os.exec (ssh excepted)."""
    root = Path(calotype.__file__).parent
    pattern = re.compile(
        r"subprocess\.(run|Popen|call|check_\w+)\(|os\.(system|popen|exec\w*|spawn\w*)\("
    )
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if path.name != "run.py" and pattern.search(path.read_text())
    }
    assert found <= {"cli/vm.py"}


def test_nothing_is_ever_mounted():
    """No module calls mount or losetup on the host; one writes the appliance's script."""
    root = Path(calotype.__file__).parent
    pattern = re.compile(r"""["'](mount|umount|losetup|qemu-nbd|guestmount|kpartx)["']""")
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if pattern.search(path.read_text())
    }
    assert found <= {"guest/mounts.py"}


def test_no_shell():
    root = Path(calotype.__file__).parent
    assert [str(p) for p in root.rglob("*.py") if "shell=True" in p.read_text()] == []
