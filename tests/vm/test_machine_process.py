"""QEMU under the driver without an operating system: what fails, and what must not be confused."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from calotype.errors import Conflict, GuestError, InvalidInput, NotAllowed, NotFound, ToolFailed
from calotype.machine import DiskSpec, MachineSpec, QemuDriver, probe
from calotype.machine.layout import Layout
from calotype.machine.process import Process
from calotype.model import Consistency, Generation, PowerState
from calotype.run import run

pytestmark = pytest.mark.vm

MIB = 1 << 20


def disk(root: Path, name: str, lun: int | None = None) -> DiskSpec:
    path = root / f"{name}.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M"])
    return DiskSpec(id=name, path=path, size=MIB, lun=lun)


@pytest.fixture
def spec(tmp_path: Path) -> MachineSpec:
    return MachineSpec(
        id="6f2a1c3e-0000-4000-8000-00000000000a",
        name="empty",
        directory=tmp_path / "vm",
        vcpus=1,
        memory=64 * MIB,
        disks=(disk(tmp_path, "os"),),
        mac="52:54:00:12:34:57",
        uid=64322 if os.geteuid() == 0 else None,
        accel="tcg",
    )


@pytest.fixture
def driver(tmp_path: Path, spec: MachineSpec) -> Iterator[QemuDriver]:
    driver = QemuDriver(tmp_path / "cache")
    yield driver
    driver.kill(spec.directory)


def test_emulation_runs_the_probe() -> None:
    probe.boot("tcg")


def test_the_acceleration_found_is_one_that_runs(driver: QemuDriver) -> None:
    found = driver.acceleration()
    assert (found.name == "kvm") == (found.reason == "")
    probe.boot(found.name)


def test_a_taken_port_is_named(driver: QemuDriver, spec: MachineSpec) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ToolFailed, match=f"did not start the VM empty: .*{port}"):
            driver.start(replace(spec, forwards=((port, 22),)))
    assert driver.state(spec.directory) is PowerState.STOPPED
    driver.start(replace(spec, forwards=((port, 22),)))
    assert driver.state(spec.directory) is PowerState.RUNNING


def test_a_damaged_disk_is_named(driver: QemuDriver, spec: MachineSpec) -> None:
    spec.disks[0].path.write_bytes(bytes(MIB))
    with pytest.raises(ToolFailed, match="qcow2"):
        driver.start(spec)
    assert driver.state(spec.directory) is PowerState.STOPPED


def test_missing_files_are_named(driver: QemuDriver, spec: MachineSpec, tmp_path: Path) -> None:
    lost = replace(spec.disks[0], base=tmp_path / "none.raw")
    with pytest.raises(NotFound, match=r"none\.raw"):
        driver.start(replace(spec, disks=(lost,)))


def test_a_backing_file_in_the_header_is_not_followed(
    driver: QemuDriver, spec: MachineSpec, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    canary.write_bytes(b"canary " * 20_000)
    path = spec.disks[0].path
    path.unlink()
    run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(canary), "-F", "raw", str(path), "1M"]
    )
    driver.start(spec)
    found = Process.find(Layout(spec.directory))
    assert found is not None
    with found:
        opened = [os.readlink(p) for p in Path(f"/proc/{found.pid}/fd").iterdir()]
    assert not [name for name in opened if "canary" in name]
    with driver.point_in_time(spec.directory, ["os"], freeze="never") as moment:
        source = "driver=nbd,server.type=unix,server.path=nbd.sock,export=os"
        argv = ["qemu-img", "convert", "--image-opts", source, "-O", "raw", str(tmp_path / "out")]
        subprocess.run(argv, cwd=moment.exports["os"].path.parent, check=True)
    assert (tmp_path / "out").read_bytes() == bytes(MIB)


def test_two_starts_at_once_make_one_vm(driver: QemuDriver, spec: MachineSpec) -> None:
    outcomes: list[str] = []

    def start() -> None:
        try:
            QemuDriver(driver._cache).start(spec)
            outcomes.append("started")
        except (NotAllowed, Conflict):
            outcomes.append("refused")

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused", "refused", "started"]


def test_one_disk_is_not_written_by_two_vms(
    driver: QemuDriver, spec: MachineSpec, tmp_path: Path
) -> None:
    driver.start(spec)
    other = replace(spec, directory=tmp_path / "other", id=spec.id.replace("a", "b"))
    with pytest.raises(ToolFailed, match="lock"):
        driver.start(other)


def test_without_an_agent(driver: QemuDriver, spec: MachineSpec) -> None:
    driver.start(spec)
    with (
        pytest.raises(GuestError),
        driver.point_in_time(spec.directory, ["os"], freeze="require"),
    ):
        pass
    with driver.point_in_time(spec.directory, ["os"]) as moment:
        assert moment.consistency is Consistency.CRASH
        assert moment.note
        assert moment.frozen_seconds == 0
    with pytest.raises(NotFound), driver.point_in_time(spec.directory, ["none"]):
        pass
    assert not list((spec.directory / "run").glob("pit-*"))
    assert driver.restart(spec.directory) is False
    with pytest.raises(NotAllowed):
        driver.attach(spec.directory, spec.disks[0])


def test_a_capture_of_a_vm_that_ends_meanwhile(driver: QemuDriver, spec: MachineSpec) -> None:
    driver.start(spec)
    with driver.point_in_time(spec.directory, ["os"], freeze="never"):
        driver.kill(spec.directory)
    assert driver.state(spec.directory) is PowerState.STOPPED
    assert not list((spec.directory / "run").glob("pit-*"))


def test_stale_sockets_are_no_vm(driver: QemuDriver, spec: MachineSpec) -> None:
    driver.start(spec)
    found = Process.find(Layout(spec.directory))
    assert found is not None
    with found:
        found.kill()
    assert (spec.directory / "run" / "query.sock").exists()
    assert driver.state(spec.directory) is PowerState.STOPPED
    driver.start(spec)
    assert driver.state(spec.directory) is PowerState.RUNNING


def test_uefi_variables_are_the_vms_own(driver: QemuDriver, spec: MachineSpec) -> None:
    driver.firmware()
    driver.start(replace(spec, generation=Generation.V2))
    variables = spec.directory / "disks" / "uefi-vars.fd"
    assert variables.stat().st_uid == (spec.uid or os.geteuid())
    driver.kill(spec.directory)
    driver.release(spec.directory)
    assert variables.exists()


def test_a_disk_of_the_vm_belongs_to_it_only_meanwhile(
    driver: QemuDriver, spec: MachineSpec, tmp_path: Path
) -> None:
    data = disk(tmp_path, "data", 3)
    driver.start(spec)
    driver.attach(spec.directory, data)
    assert data.path.stat().st_uid == (spec.uid or os.geteuid())
    driver.detach(spec.directory, "data")
    assert data.path.stat().st_uid == os.geteuid()
    assert data.path.stat().st_nlink == 1
    with pytest.raises(InvalidInput, match="regular"):
        driver.attach(spec.directory, replace(data, path=tmp_path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_can_run_vms(tmp_path: Path) -> None:
    """The same as a user without any right."""
    major, minor = sys.version_info[:2]
    python = f"/usr/bin/python{major}.{minor}"
    if not Path(python).exists():
        pytest.skip("there is no such Python for every user")
    home = Path("/var/tmp", f"calotype-test-{os.getpid()}")
    home.mkdir()
    os.chown(home, 64323, 64323)
    code = f"""
import os
from pathlib import Path
from calotype.machine import *
from calotype.run import run
home = Path({str(home)!r})
run(["qemu-img", "create", "-q", "-f", "qcow2", str(home / "os"), "1M"])
(home / "base").write_bytes(bytes(1 << 20)); (home / "base").chmod(0o444)
disk = DiskSpec(id="os", path=home / "os", base=home / "base", size=1 << 20)
spec = MachineSpec(id="6f2a1c3e-0000-4000-8000-00000000000c", name="u", directory=home / "vm",
    vcpus=1, memory=64 << 20, disks=(disk,), mac="52:54:00:12:34:58", accel="tcg")
driver = QemuDriver(home / "cache")
driver.start(spec)
try:
    with driver.point_in_time(spec.directory, ["os"], freeze="never") as moment:
        print(driver.state(spec.directory), os.geteuid(), len(moment.exports))
finally:
    driver.kill(spec.directory)
print(driver.state(spec.directory))
"""
    site = os.pathsep.join(p for p in sys.path if p)
    argv = ["setpriv", "--reuid=64323", "--regid=64323", "--clear-groups", "--no-new-privs"]
    argv += ["env", f"PYTHONPATH={site}", f"HOME={home}", python, "-c", code]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=home)
    finally:
        shutil.rmtree(home)
    assert done.stdout.split() == ["running", "64323", "1", "stopped"], done.stderr
