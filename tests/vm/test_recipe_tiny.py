"""The tiny guest: starts by BIOS and by UEFI, becomes who its seed says, and goes down cleanly."""

import dataclasses
import os
import subprocess
import uuid

import pytest

from calotype.machine import Agent, DiskSpec, MachineSpec, QemuDriver, ssh
from calotype.machine.seed import Provisioning, build_seed
from calotype.model import MIB, Generation, PowerState
from calotype.run import run

pytestmark = pytest.mark.vm

UID = 64322 if os.geteuid() == 0 else None
CUSTOM = b'#!/bin/sh\necho "custom data ran as $(id -un)" > /root/custom\n'
HASH = "$6$saltsalt$" + "a" * 86


class Vm:
    """One VM of the tiny guest, provisioned for ``alice``."""

    def __init__(self, root, tiny, generation):
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.directory = root, root / "vm"
        self.directory.mkdir()
        self.driver = QemuDriver(root / "cache")
        self.agent = Agent(self.directory)
        base = root / "base.raw"
        run(["cp", "--sparse=always", str(tiny), str(base)])
        base.chmod(0o444)
        self.disk = root / "os.qcow2"
        run(
            [
                "qemu-img",
                "create",
                "-q",
                "-f",
                "qcow2",
                "-b",
                str(base),
                "-F",
                "raw",
                str(self.disk),
            ]
        )
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / "key")])
        self.port = ssh.free_port(23000)
        size = base.stat().st_size
        self.spec = MachineSpec(
            id=str(uuid.uuid4()),
            name="tiny",
            directory=self.directory,
            vcpus=1,
            memory=256 * MIB,
            disks=(DiskSpec(id="os", path=self.disk, base=base, size=size),),
            mac="52:54:00:12:34:57",
            generation=generation,
            seed=self.seed("i-1", "first"),
            forwards=((self.port, 22),),
            uid=UID,
        )

    def seed(self, instance, hostname, user="alice"):
        path = self.root / f"{instance}.iso"
        keys = [(self.root / "key.pub").read_text().strip()]
        provisioning = Provisioning(
            instance_id=instance,
            hostname=hostname,
            admin_user=user,
            ssh_keys=keys,
            password_hash=HASH,
            timezone="Europe/Berlin",
            custom_data=CUSTOM,
        )
        build_seed(path, provisioning)
        return path

    def start(self):
        self.driver.start(self.spec)
        self.agent.wait(120)
        assert self.sh("cloud-init status --wait").strip() == "status: done"

    def sh(self, script):
        done = self.agent.script(script)
        assert done.status == 0, done
        return done.stdout.decode()

    def ssh(self, *command, user="alice"):
        identity = self.root / "key"
        argv = ssh.command(self.directory, self.port, user=user, identity=identity, command=command)
        done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
        return done.returncode, done.stdout.decode()


@pytest.fixture(scope="module", params=list(Generation))
def vm(request, tmp_path_factory, tiny):
    vm = Vm(tmp_path_factory.mktemp("tiny") / request.param, tiny, request.param)
    try:
        vm.start()
        yield vm
    finally:
        vm.driver.kill(vm.directory)


def test_becomes_who_the_seed_says(vm):
    firmware = vm.sh("[ -d /sys/firmware/efi ] && echo V2 || echo V1").strip()
    assert firmware == vm.spec.generation
    assert vm.sh("hostname; cat /etc/hostname /etc/timezone").split() == [
        "first",
        "first",
        "Europe/Berlin",
    ]
    assert vm.sh("cat /root/custom") == "custom data ran as root\n"
    assert HASH in vm.sh("grep ^alice: /etc/shadow")
    assert len(vm.sh("cat /etc/machine-id").strip()) == 32
    assert "READY first" in vm.driver.serial_log(vm.directory).decode("utf-8", "replace")


def test_lets_the_admin_in(vm):
    assert vm.ssh("id", "-un") == (0, "alice\n")
    assert vm.ssh("sudo", "id", "-u") == (0, "0\n")
    assert vm.ssh("id", "-un", user="root")[0] == 255
    argv = ssh.command(
        vm.directory,
        vm.port,
        user="alice",
        identity=vm.root / "key",
        options=("-s",),
        command=("sftp",),
    )
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sftp:
        assert sftp.stdin is not None
        assert sftp.stdout is not None
        # SSH_FXP_INIT of version 3, answered by SSH_FXP_VERSION.
        sftp.stdin.write(b"\0\0\0\5\1\0\0\0\3")
        sftp.stdin.flush()
        assert sftp.stdout.read(9)[4:] == b"\2\0\0\0\3"
        sftp.stdin.close()


def test_is_a_debian_of_which_dpkg_knows(vm):
    assert "ID=debian" in vm.sh("cat /etc/os-release")
    status = vm.sh("cat /var/lib/dpkg/status")
    assert "Package: qemu-guest-agent\nStatus: install ok" in status


def test_goes_down_by_its_power_button_and_comes_back_as_another(vm):
    if vm.spec.generation is Generation.V2:
        pytest.skip("once is enough: nothing here depends on the firmware")
    keys = vm.sh("cd /etc/dropbear; for k in *; do dropbearkey -y -f $k; done")
    vm.driver.shutdown(vm.directory, timeout=60)
    assert vm.driver.state(vm.directory) is PowerState.STOPPED
    raw = vm.root / "after.raw"
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(vm.disk), str(raw)])
    run(["e2fsck", "-fn", f"{raw}?offset={8 * MIB}"])  # fails on a file system with any fault
    state = run(["dumpe2fs", "-h", f"{raw}?offset={8 * MIB}"]).stdout
    assert b"needs_recovery" not in state
    vm.spec = dataclasses.replace(vm.spec, seed=vm.seed("i-2", "second", "bob"))
    (vm.directory / "known_hosts").unlink(missing_ok=True)
    vm.start()
    assert vm.ssh("hostname", user="bob") == (0, "second\n")
    assert vm.sh("cd /etc/dropbear; for k in *; do dropbearkey -y -f $k; done") != keys
