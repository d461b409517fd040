"""A machine is provisioned, used and stopped; a copy is generalized; two clones provision anew."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.disks import write_raw

from calotype.disk import overlay
from calotype.disk.base import read
from calotype.disk.view import OverlaySource, RawSource, writable
from calotype.guest import GeneralizeReport, generalize, inspect, prove_disk
from calotype.machine import Agent, DiskSpec, MachineSpec, QemuDriver, ssh
from calotype.machine.seed import Provisioning, build_seed
from calotype.model import Verdict
from calotype.run import run

pytestmark = pytest.mark.vm

MIB = 1 << 20
UID = 64322 if os.geteuid() == 0 else None
CANARY = "CANARY-of-web1-xyzzy"

USE = f"""
set -e
echo "{CANARY}" > /home/alice/notes
echo "{CANARY}" > /root/.ash_history
echo "{CANARY}" > /var/log/app.log
echo "{CANARY}" > /tmp/deleted; sync; rm /tmp/deleted
mkdir -p /srv/{CANARY}; sync; rmdir /srv/{CANARY}
mkdir -p /etc/acme /srv/www
echo "setting=KEEP" > /etc/acme/agent.conf
echo "KEEP" > /srv/www/index.html
sync
"""
IDENTITY = """
for n in $(seq 300); do
    [ -s /etc/dropbear/dropbear_ed25519_host_key ] && break
    sleep 0.1
done
hostname
cat /etc/machine-id
cat /etc/dropbear/dropbear_ed25519_host_key | md5sum
"""


class Room:
    """Where the VMs of this test live."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.driver = QemuDriver(root / "cache")
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / "key")])

    @contextlib.contextmanager
    def vm(self, name: str, user: str, base: Path) -> Iterator[Agent]:
        """A VM over ``base``, provisioned for ``user``; powered off in an orderly way at the end."""
        directory = self.root / name
        directory.mkdir()
        disk, size = directory / "os.qcow2", base.stat().st_size
        overlay.create(disk, size)
        seed = directory / "seed.iso"
        key = (self.root / "key.pub").read_text()
        who = Provisioning(instance_id=f"i-{name}", hostname=name, admin_user=user, ssh_keys=[key])
        build_seed(seed, who)
        spec = MachineSpec(
            id=str(uuid.uuid4()),
            name=name,
            directory=directory,
            vcpus=1,
            memory=256 * MIB,
            disks=(DiskSpec(id="os", path=disk, base=base, size=size),),
            mac=f"52:54:00:00:00:{len(name):02x}",
            seed=seed,
            forwards=((ssh.free_port(), 22),),
            uid=UID,
        )
        self.driver.start(spec)
        try:
            agent = Agent(directory)
            agent.wait(120)
            yield agent
            self.driver.shutdown(directory)
        finally:
            self.driver.kill(directory)
            self.driver.release(directory)


def _script(agent: Agent, script: str) -> str:
    done = agent.script(script)
    assert done.status == 0, done
    return done.stdout.decode()


def _identity(agent: Agent) -> list[str]:
    """Host name, machine-id, host key; made at the first start, so they are awaited."""
    return _script(agent, IDENTITY).splitlines()


def _generalized(source: OverlaySource, room: Path, target: Path) -> GeneralizeReport:
    """Generalize a copy and write it out as a raw file."""
    with writable(source, room / "throw-away.qcow2", room) as view:
        report = generalize(view)
    with contextlib.closing(view.disk()) as disk:
        write_raw(disk, target)
        assert prove_disk(disk).verdict is Verdict.GENERALIZED
    target.chmod(0o444)
    return report


def test_two_clones_of_a_generalized_copy(tmp_path: Path, tiny: Path) -> None:
    room = Room(tmp_path)
    base = tmp_path / "base.raw"
    run(["cp", "--sparse=always", str(tiny), str(base)])
    base.chmod(0o444)
    with room.vm("web1", "alice", base) as agent:
        first = _identity(agent)
        _script(agent, USE)
    source = OverlaySource(tmp_path / "web1/os.qcow2", base)
    before = source.path.read_bytes()
    with contextlib.closing(source.open()) as disk:
        found = prove_disk(disk)
        assert found.verdict is Verdict.SPECIALIZED
        assert found.seen.users == ("alice",)
        assert CANARY.encode() in read(disk, 0, disk.size)

    golden = tmp_path / "golden.raw"
    report = _generalized(source, tmp_path, golden)
    assert source.path.read_bytes() == before
    assert {"users", "ssh-host-keys", "machine-id", "logs"} <= {
        step.name for step in report.steps if step.edits
    }
    raw = golden.read_bytes()
    key = (tmp_path / "key.pub").read_bytes().split()[1]
    for leaving in (CANARY.encode(), b"alice", b"web1", first[1].encode(), key):
        assert leaving not in raw, leaving
    with contextlib.closing(RawSource(golden).open()) as disk:
        assert inspect(disk).users == ()

    identities = [first]
    for name, user in (("clone", "carol"), ("clone-2", "dave")):
        with room.vm(name, user, golden) as agent:
            identities.append(_identity(agent))
            accounts = _script(agent, "cut -d: -f1 /etc/passwd").split()
            assert user in accounts
            assert not {"alice", "carol", "dave"} - {user} & set(accounts)
            assert "KEEP" in _script(agent, "cat /etc/acme/agent.conf /srv/www/index.html")
            assert (
                _script(agent, f"test -s /home/{user}/.ssh/authorized_keys && echo yes") == "yes\n"
            )
    for place in range(3):
        values = [identity[place] for identity in identities]
        assert all(values)
        assert len(set(values)) == 3, values
