"""A real guest under the driver: its disks, its agent, its life, and captures while it writes."""

import contextlib
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

from calotype.disk.view import NbdSource
from calotype.errors import Conflict, GuestError, NotAllowed, NotFound, TimedOut, ToolFailed
from calotype.machine import Agent, DiskSpec, MachineSpec, NbdEndpoint, QemuDriver, ssh
from calotype.machine.layout import Layout
from calotype.machine.process import Process
from calotype.machine.seed import Provisioning, build_seed
from calotype.model import Caching, Consistency, Generation, PowerState
from calotype.run import run

pytestmark = pytest.mark.vm

MIB = 1 << 20
UID = 64321 if os.geteuid() == 0 else None

#: Prints the device of a data disk's LUN.
DEVICE = """
device() {
  for b in /sys/block/sd*; do
    [ -d "$b/device/scsi_disk/1:0:0:$1" ] && echo "/dev/${b##*/}"
  done
}
"""

WAIT = 'wait_for() { for n in $(seq 100); do eval "$1" && return; sleep 0.1; done; exit 9; }'


def overlay(path: Path, size: int, base: Path | None = None) -> Path:
    backing = ["-b", str(base), "-F", "raw"] if base else []
    options = ["-o", "extended_l2=on,cluster_size=128k"]
    run(["qemu-img", "create", "-q", "-f", "qcow2", *options, *backing, str(path), str(size)])
    return path


class Vm:
    """A VM with an OS disk and two data disks (LUN 0 and 5)."""

    def __init__(self, root: Path, tiny: Path) -> None:
        self.root = root
        self.driver = QemuDriver(root / "cache")
        # Longer than a socket's address may be.
        self.directory = root / ("long" * 30) / "vm"
        self.directory.mkdir(parents=True)
        base = root / "base.raw"
        run(["cp", "--sparse=always", str(tiny), str(base)])
        base.chmod(0o444)
        size = base.stat().st_size
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / "key")])
        build_seed(
            root / "seed.iso",
            Provisioning(
                instance_id="i-1",
                hostname="web1",
                admin_user="alice",
                ssh_keys=[(root / "key.pub").read_text()],
                custom_data=b"#!/bin/sh\necho ran > /root/custom\n",
            ),
        )
        os_disk = overlay(root / "os.qcow2", size, base)
        self.spec = MachineSpec(
            id="6f2a1c3e-0000-4000-8000-000000000001",
            name="web,1",
            directory=self.directory,
            vcpus=1,
            memory=256 * MIB,
            disks=(
                DiskSpec(id="os", path=os_disk, base=base, size=size),
                DiskSpec(
                    id="11111111-2222-3333-4444-555555555555",
                    path=overlay(root / "a.qcow2", 64 * MIB),
                    size=64 * MIB,
                    lun=0,
                    caching=Caching.NONE,
                ),
                DiskSpec(
                    id="data.b",
                    path=overlay(root / "b.qcow2", 64 * MIB),
                    size=64 * MIB,
                    lun=5,
                    caching=Caching.READ_ONLY,
                ),
            ),
            mac="52:54:00:12:34:56",
            seed=root / "seed.iso",
            forwards=((ssh.free_port(), 22),),
            uid=UID,
        )
        self.agent = Agent(self.directory)

    def sh(self, script: str, **options: Any) -> str:
        done = self.agent.script(DEVICE + script, **options)
        assert done.status == 0, done
        return done.stdout.decode()


@pytest.fixture(scope="module")
def vm(tmp_path_factory, tiny):
    vm = Vm(tmp_path_factory.mktemp("machine"), tiny)
    # It is started by a process that is killed as soon as it has.
    code = """
        import sys, pickle
        from calotype.machine import QemuDriver
        driver, spec = pickle.load(sys.stdin.buffer)
        driver.start(spec)
        print("started", flush=True)
        sys.stdin.close()
        import signal; signal.pause()
    """
    with starter(code, pickle.dumps((vm.driver, vm.spec))) as output:
        assert output.readline() == b"started\n"
    try:
        vm.agent.wait(120)
        yield vm
    finally:
        vm.driver.kill(vm.directory)


@contextlib.contextmanager
def starter(code: str, data: bytes = b"") -> Iterator[IO[bytes]]:
    """What a Python process prints, which is killed hard at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(data)
        process.stdin.close()
        try:
            yield process.stdout
        finally:
            process.kill()


def test_outlives_a_killed_starter_and_is_found_again(vm):
    assert vm.driver.state(vm.directory) is PowerState.RUNNING
    with pytest.raises(NotAllowed, match="runs already"):
        vm.driver.start(vm.spec)


def test_provisioned(vm):
    assert vm.sh("hostname").strip() == "web1"
    assert vm.sh("cat /root/custom").strip() == "ran"
    port = vm.spec.forwards[0][0]
    assert ssh.answers(port, timeout=30)
    argv = ssh.command(
        vm.directory, port, user="alice", identity=vm.root / "key", command=["whoami"]
    )
    assert subprocess.run(argv, capture_output=True, check=True).stdout == b"alice\n"
    assert (vm.directory / "known_hosts").exists()


def test_luns_and_serial_numbers(vm):
    script = """
        for b in /sys/block/sd*; do
            serial=$(dd if=$b/device/vpd_pg80 bs=1 skip=4 2>/dev/null)
            echo "$(ls $b/device/scsi_disk) $serial $(cat $b/queue/write_cache | tr ' ' -)"
        done
    """
    lines = sorted(vm.sh(script).splitlines())
    assert lines == [
        "0:0:0:0 os write-back",
        "1:0:0:0 11111111-2222-3333-4444-555555555555 write-back",
        "1:0:0:5 data.b write-through",
    ]


def test_the_guest_reaches_neither_the_host_nor_beyond(vm):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        vm.sh(f"! nc -w 3 10.0.2.2 {port} </dev/null")
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_agent_runs_commands_and_moves_files(vm):
    assert vm.agent.ping()
    done = vm.agent.run(["/bin/sh", "-c", "cat; echo err >&2; exit 3"], stdin=b"\x00in")
    assert done == (3, b"\x00in", b"err\n")
    with pytest.raises(GuestError):
        vm.agent.run(["/no/such/command"])
    with pytest.raises(TimedOut):
        vm.agent.run(["/bin/sleep", "5"], timeout=0.2)
    content = os.urandom(3_000_001)
    vm.agent.write_file("/root/file", content)
    assert vm.agent.read_file("/root/file") == content
    with pytest.raises(GuestError, match="longer"):
        vm.agent.read_file("/root/file", limit=1000)
    with pytest.raises(GuestError):
        vm.agent.read_file("/no/such/file")


def test_confined(vm):
    found = Process.find(Layout(vm.directory))
    assert found is not None
    with found as process:
        proc = Path("/proc", str(process.pid))
        status = dict(re.findall(r"(\w+):\s*(.*)", (proc / "status").read_text()))
        assert status["Uid"].split()[0] == str(UID or os.geteuid()) != "0"
        assert status["Seccomp"] == "2"
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert sorted(os.listdir(proc / "root")) == sorted(
            ["base", "bin", "dev", "disks", "lib", "lib64", "proc", "run", "sbin", "tmp", "usr"]
        )
        assert not (proc / "root" / "etc" / "passwd").exists()
        assert os.readlink(proc / "ns" / "pid") != os.readlink("/proc/self/ns/pid")
        opened = {os.path.realpath(p) for p in (proc / "fd").iterdir()}
        assert not any(p.startswith(("/etc", "/root", "/home")) for p in opened)


def test_hot_attach_and_detach(vm):
    path = overlay(vm.root / "hot.qcow2", 32 * MIB)
    hot = DiskSpec(id="hot", path=path, size=32 * MIB, lun=9)
    for _ in range(2):
        vm.driver.attach(vm.directory, hot)
        vm.sh(f"{WAIT}; wait_for '[ -b \"$(device 9)\" ]'; echo hello > $(device 9); sync")
        with pytest.raises(NotAllowed, match="attached already"):
            vm.driver.attach(vm.directory, hot)
        same_lun = DiskSpec(id="other", path=overlay(vm.root / "o.qcow2", MIB), size=MIB, lun=9)
        with pytest.raises(ToolFailed, match="lun"):
            vm.driver.attach(vm.directory, same_lun)
        vm.driver.detach(vm.directory, "hot")
        vm.sh(f"{WAIT}; wait_for '[ -z \"$(device 9)\" ]'")
    with pytest.raises(NotFound):
        vm.driver.detach(vm.directory, "hot")
    assert not [p for p in (vm.directory / "disks").iterdir() if p.stem in {"hot", "other"}]
    raw = vm.root / "hot.raw"
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(raw)])
    assert raw.read_bytes()[:6] == b"hello\n"


def test_screenshot_and_serial_log(vm):
    picture = vm.root / "screen.png"
    vm.driver.screenshot(vm.directory, picture)
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert b"READY web1" in vm.driver.serial_log(vm.directory)
    assert not list((vm.directory / "run").glob("screen*"))


def contents(endpoint: NbdEndpoint, target: Path) -> Path:
    """The whole disk behind an export, as a file."""
    source = f"driver=nbd,server.type=unix,server.path=nbd.sock,export={endpoint.export}"
    argv = ["qemu-img", "convert", "--image-opts", source, "-O", "raw", str(target.absolute())]
    subprocess.run(argv, cwd=endpoint.path.parent, check=True)
    return target


def writer(vm: Vm, body: str) -> None:
    """Run ``body`` for i = 1, 2, … in the guest, beside us."""
    loop = f"i=0; while [ ! -e /run/stop ]; do i=$((i+1)); {body}; done"
    vm.sh(f"rm -f /run/stop; (\n{loop}\necho $i > /run/last\n) </dev/null >/dev/null 2>&1 &")


def stop_writer(vm: Vm) -> int:
    script = f"{WAIT}; touch /run/stop; wait_for '[ -s /run/last ]'; cat /run/last; rm /run/last"
    return int(vm.sh(script))


DISKS = ["os", "11111111-2222-3333-4444-555555555555", "data.b"]


def test_frozen_capture_is_one_clean_moment(vm):
    mount = "d=$(device {lun}); mkfs.ext2 -q $d 2>/dev/null || mke2fs -q $d; mkdir -p {at}; mount $d {at}"
    vm.sh(mount.format(lun=0, at="/a") + "; " + mount.format(lun=5, at="/b"))
    writer(vm, "echo $i >> /a/log; sync; echo $i >> /b/log; sync")
    for _ in range(2):
        with vm.driver.point_in_time(vm.directory, DISKS, freeze="require") as moment:
            assert moment.consistency is Consistency.FILESYSTEM
            assert 0 < moment.frozen_seconds < 10
            first, second = (
                contents(moment.exports[i], vm.root / f"{n}.raw") for n, i in enumerate(DISKS[1:])
            )
            again = contents(moment.exports["data.b"], vm.root / "again.raw")
            assert again.read_bytes() == second.read_bytes()  # while the guest goes on writing
        logs = []
        for disk in (first, second):
            run(["e2fsck", "-fn", str(disk)])
            log = run(["debugfs", "-R", "cat /log", str(disk)]).stdout.split()
            assert log == [str(n + 1).encode() for n in range(len(log))]
            logs.append(len(log))
        assert logs[0] - logs[1] in {0, 1}
    assert stop_writer(vm) > logs[0] > 0
    vm.sh("umount /a /b")


def test_unfrozen_capture_is_one_moment_of_all_disks(vm):
    record = "printf %08d $i | dd of={d} conv=notrunc,fsync 2>/dev/null"
    both = "; ".join(record.format(d=f"$(device {lun})") for lun in (0, 5))
    writer(vm, both)
    seen = []
    for _ in range(5):
        with vm.driver.point_in_time(vm.directory, DISKS, freeze="never") as moment:
            assert moment.consistency is Consistency.CRASH
            pair = [
                int(contents(moment.exports[i], vm.root / "x.raw").read_bytes()[:8] or 0)
                for i in DISKS[1:]
            ]
        assert pair[0] - pair[1] in {0, 1}
        seen.append(pair[0])
    assert seen == sorted(seen)
    assert stop_writer(vm) >= seen[-1] > seen[0]


def test_the_view_tells_what_differs_from_the_base(vm):
    vm.sh("head -c 1000000 /dev/urandom > /root/changed; sync")
    with vm.driver.point_in_time(vm.directory, ["os"]) as moment:
        end = moment.exports["os"]
        vm.sh("rm /root/changed; head -c 1000000 /dev/urandom > /root/later; sync")
        with contextlib.closing(NbdSource(end.path, end.export).open()) as disk:
            changed = disk.changed()
        now = bytearray(contents(end, vm.root / "now.raw").read_bytes())
    base = (vm.root / "base.raw").read_bytes()
    assert len(now) == len(base) == end.size
    assert now != base
    assert 1_000_000 < sum(extent.length for extent in changed) < 16 * MIB
    for extent in changed:
        now[extent.offset : extent.end] = base[extent.offset : extent.end]
    assert now == base


def test_leftovers_of_a_killed_capture_are_cleared(vm):
    code = f"""
        import signal
        from pathlib import Path
        from calotype.machine.point_in_time import point_in_time
        with point_in_time(Path({str(vm.directory)!r}), {DISKS!r}, "never"):
            print("held", flush=True)
            signal.pause()
    """
    with starter(code) as output:
        assert output.readline() == b"held\n"
        with pytest.raises(Conflict), Layout(vm.directory).lock(0.1):
            pass
    vm.driver.clear_point_in_time(vm.directory)
    assert not list((vm.directory / "run").glob("pit-*"))
    vm.driver.clear_point_in_time(vm.directory)
    with vm.driver.point_in_time(vm.directory, DISKS) as moment:
        assert set(moment.exports) == set(DISKS)


def test_the_guest_is_thawed_when_its_freezer_is_killed(vm):
    code = f"""
        import signal
        from pathlib import Path
        from calotype.machine.layout import Layout
        from calotype.machine.point_in_time import _while_frozen
        def begin():
            print("frozen", flush=True)
            signal.pause()
        _while_frozen(Layout(Path({str(vm.directory)!r})), begin)
    """
    with starter(code) as output:
        assert output.readline() == b"frozen\n"
    deadline = time.monotonic() + 30
    while True:
        with vm.agent.conversation() as talk:
            if talk.execute("guest-fsfreeze-status") == "thawed":
                break
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_no_frozen_capture_without_an_agent(vm):
    with (
        vm.agent.conversation() as talk,
        Agent(vm.directory)._layout.lock(0.1, "console.lock"),
    ):
        assert talk.execute("guest-ping") == {}
    # The channel is held by somebody else: the agent cannot be asked.
    held = socket.socket(socket.AF_UNIX)
    directory = os.open(vm.directory / "run", os.O_PATH)
    held.connect(f"/proc/self/fd/{directory}/agent.sock")
    try:
        assert not vm.agent.ping(0.5)
        with (
            pytest.raises(GuestError),
            vm.driver.point_in_time(vm.directory, DISKS, freeze="require"),
        ):
            pass
        with vm.driver.point_in_time(vm.directory, DISKS, freeze="auto") as moment:
            assert moment.consistency is Consistency.CRASH
            assert "does not answer" in moment.note
    finally:
        held.close()
        os.close(directory)


def test_restart_shutdown_and_start(vm):
    vm.sh("echo 1 > /run/before")
    assert vm.driver.restart(vm.directory) is True
    vm.agent.wait(120)
    vm.sh("[ ! -e /run/before ]")
    with pytest.raises(NotAllowed):
        vm.driver.release(vm.directory)
    vm.driver.shutdown(vm.directory, 60)
    assert vm.driver.state(vm.directory) is PowerState.STOPPED
    for use in (vm.driver.shutdown, vm.driver.restart, vm.driver.console):
        with pytest.raises(NotAllowed):
            use(vm.directory)
    assert not vm.agent.ping()
    vm.driver.kill(vm.directory)
    vm.driver.clear_point_in_time(vm.directory)
    vm.driver.release(vm.directory)
    assert not list((vm.directory / "disks").iterdir())
    assert os.stat(vm.root / "base.raw").st_nlink == 1
    vm.driver.start(vm.spec)
    vm.agent.wait(120)
    assert vm.driver.serial_log(vm.directory).count(b"READY web1") >= 2


def test_stopped_after_a_kill_of_qemu(vm):
    found = Process.find(Layout(vm.directory))
    assert found is not None
    with found as process:
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(30)
    assert vm.driver.state(vm.directory) is PowerState.STOPPED
    assert (vm.directory / "run" / "query.sock").exists()


def test_a_guest_starts_by_uefi(vm):
    vm.driver.start(replace(vm.spec, generation=Generation.V2))
    vm.agent.wait(120)
    assert vm.sh("hostname").strip() == "web1"
    assert b"BdsDxe: starting" in vm.driver.serial_log(vm.directory)
