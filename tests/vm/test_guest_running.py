"""The guest of a running VM, looked at and changed by its agent."""

import os
import stat
import uuid
from pathlib import Path

import pytest

from calotype.disk import overlay
from calotype.engine.generalize.appliance import AgentShell, agent_guest
from calotype.errors import GuestError
from calotype.guest.guest import text, walk
from calotype.guest.inspect import inspect_guest
from calotype.guest.locate import DiskMap
from calotype.guest.remote import Outcome, Shell
from calotype.machine import Agent, DiskSpec, MachineSpec, QemuDriver
from calotype.machine.seed import Provisioning, build_seed
from calotype.run import run

pytestmark = pytest.mark.vm

MIB = 1 << 20
UID = 64323 if os.geteuid() == 0 else None


class Counting:
    """A shell that counts its calls."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.calls = 0

    def run(self, script: bytes, stdin: bytes = b"", *, timeout: float = 60.0) -> Outcome:
        self.calls += 1
        return self.shell.run(script, stdin, timeout=timeout)


def test_a_running_guest(tiny: Path, tmp_path: Path) -> None:
    driver = QemuDriver(tmp_path / "cache")
    directory = tmp_path / "vm"
    directory.mkdir()
    base = tmp_path / "base.raw"
    run(["cp", "--sparse=always", str(tiny), str(base)])
    base.chmod(0o444)
    disk = tmp_path / "disk.qcow2"
    overlay.create(disk, base.stat().st_size)
    seed = tmp_path / "seed.iso"
    build_seed(seed, Provisioning(instance_id="i-1", hostname="web1", admin_user="alice"))
    spec = MachineSpec(
        id=str(uuid.uuid4()),
        name="web1",
        directory=directory,
        vcpus=1,
        memory=256 * MIB,
        disks=(DiskSpec(id="os", path=disk, base=base, size=base.stat().st_size),),
        mac="52:54:00:00:00:01",
        seed=seed,
        uid=UID,
    )
    driver.start(spec)
    try:
        agent = Agent(directory)
        agent.wait(240)
        shell = Counting(AgentShell(agent))
        guest = agent_guest(shell)
        etc = {path: guest.read(path) for path, found in walk(guest, "/etc") if found.is_file}
        assert len(etc) > 10
        assert b"root:x:0:0:" in (etc["/etc/passwd"] or b"")
        assert shell.calls <= 6, "a tree is to be fetched, not each of its files"
        assert guest.list("/proc") == []
        assert inspect_guest(guest, DiskMap(None, (), boot_code=False)).os_id == "debian"
        name = "/root/new\nline \udcff"
        guest.write(name, b"\0binary\xff" * 1000, 0o640)
        guest.write("/etc/motd", b"changed\n")
        guest.flush()
        found = guest.stat(name)
        assert found is not None
        assert (found.mode, found.uid) == (stat.S_IFREG | 0o640, 0)
        assert guest.read(name) == b"\0binary\xff" * 1000
        assert text(guest, "/etc/motd") == "changed\n"
        assert guest.execute(["touch", "/root/by itself"])
        assert guest.stat("/root/by itself") is not None
        assert not guest.execute(["no-such-program"])
        with pytest.raises(GuestError, match="failed in the guest"):
            guest.execute(["false"])
        guest.remove(name)
        guest.flush()
        assert guest.stat(name) is None
    finally:
        driver.kill(directory)
