"""Laid-out roots of each family: fresh is general, used is one machine, and nothing is left afterwards.

The roots are laid out as the distributions lay them out (``tests/roots``); no package manager ran.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from tests import roots

from calotype import run
from calotype.disk.base import read
from calotype.disk.view import RawSource, writable
from calotype.guest import Concern, GeneralizeReport, Proof, generalize, select
from calotype.guest.ext4 import Ext4
from calotype.guest.offline import offline
from calotype.guest.proof import prove_disk
from calotype.guest.steps import STEPS
from calotype.model import OsState, Verdict

FAMILIES = list(roots.FAMILIES)


def proof_of(path: Path) -> Proof:
    with closing(RawSource(path).open()) as disk:
        return prove_disk(disk)


class General:
    """A generalized copy: its bytes, its report, its proof."""

    def __init__(self, source: Path, room: Path, enable: Sequence[str] = ()) -> None:
        with writable(RawSource(source), room / "overlay", room) as view:
            self.report: GeneralizeReport = generalize(view, enable=enable)
        with closing(view.disk()) as disk:
            self.raw = read(disk, 0, disk.size)
            self.proof = prove_disk(disk)
        (room / "overlay").unlink()


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def used(family: str, room: Path) -> tuple[Path, tuple[str, ...]]:
    path = room / f"{family}-used.raw"
    return path, roots.build(family, "used", path)


@pytest.fixture(scope="module")
def general(used: tuple[Path, tuple[str, ...]], room: Path) -> General:
    return General(used[0], room)


def test_a_fresh_cloud_image_is_general(family: str, tmp_path: Path) -> None:
    path = tmp_path / "fresh.raw"
    assert roots.build(family, "fresh", path) == ()
    proof = proof_of(path)
    assert proof.verdict is Verdict.GENERALIZED
    assert proof.reasons == ()
    assert proof.of(Concern.IDENTITY, Concern.CREDENTIAL) == ()
    assert proof.secrets == ()
    assert proof.contradicts(OsState.GENERALIZED) == ()
    assert proof.contradicts(OsState.SPECIALIZED) != ()


def test_a_used_vm_is_one_machine(used: tuple[Path, tuple[str, ...]]) -> None:
    path, canaries = used
    raw = path.read_bytes()
    assert [name for name in canaries if name.encode() not in raw] == []
    assert len(canaries) >= 100
    proof = proof_of(path)
    assert proof.verdict is Verdict.SPECIALIZED
    assert len(proof.findings) > 20
    assert proof.contradicts(OsState.GENERALIZED) == proof.reasons != ()
    assert proof.contradicts(OsState.SPECIALIZED) == ()


def test_no_canary_is_left(used: tuple[Path, tuple[str, ...]], general: General) -> None:
    assert [name for name in used[1] if name.encode() in general.raw] == []
    assert [name for name in roots.KEPT if name.encode() not in general.raw] == []
    assert general.proof.verdict is Verdict.GENERALIZED
    assert general.proof.findings == ()


def test_the_secrets_of_applications_are_reported(general: General) -> None:
    paths = {secret.path for secret in general.proof.secrets}
    assert paths == {
        "/etc/acme/agent.conf",
        "/etc/cron.d/acme",
        "/etc/environment",
        "/etc/krb5.keytab",
        "/etc/ssl/private/web.key",
        "/etc/systemd/system/acme.service",
        "/etc/wireguard/wg0.conf",
    }


def test_the_secrets_of_applications_go_when_asked(
    used: tuple[Path, tuple[str, ...]], tmp_path: Path
) -> None:
    asked = General(used[0], tmp_path, enable=["application-secrets"])
    left = [name for name in roots.KEPT if name.encode() in asked.raw]
    assert left == ["KEEP-records"]  # data, and no secret
    assert asked.proof.secrets == ()


def test_labels_stay(used: tuple[Path, tuple[str, ...]], family: str, general: General) -> None:
    if family != "alma":
        pytest.skip("only this family has SELinux")
    raw = general.raw
    fs = Ext4(lambda at, length: raw[at : at + length], len(raw))
    names = {entry.name: entry.inode for entry in fs.entries(fs.inode(2))}
    etc = {entry.name: entry.inode for entry in fs.entries(fs.inode(names[b"etc"]))}
    for name in (b"passwd", b"shadow", b"group", b"hosts", b"hostname", b"machine-id"):
        label = fs.attributes(fs.inode(etc[name])).get(b"security.selinux")
        assert label == b"system_u:object_r:etc_t:s0", name


@pytest.mark.parametrize("name", [s.name for s in STEPS if s.default and not s.command])
def test_a_step_that_was_left_out_is_named(name: str, room: Path, tmp_path: Path) -> None:
    """Each on one of the families that it has something to do on, in turn."""
    step = next(step for step in STEPS if step.name == name)
    having = [family for family in FAMILIES if name in _found(room, family)]
    family = having[STEPS.index(step) % len(having)]
    path = tmp_path / "left.raw"
    path.write_bytes((room / f"{family}-used.raw").read_bytes())
    with offline(path) as guest:
        for other in select(proof_of(path).seen.distribution, disable=[name]):
            other.perform(guest)
    proof = proof_of(path)
    trace = step.concern is Concern.TRACE
    assert [finding.step for finding in proof.findings] == [name], family
    assert proof.verdict is (Verdict.GENERALIZED if trace else Verdict.MIXED)
    assert bool(proof.contradicts(OsState.GENERALIZED)) is not trace


def _found(room: Path, family: str) -> set[str]:
    """The steps that have something to do on a used machine of a family."""
    path = room / f"{family}-used.raw"
    if not path.exists():
        roots.build(family, "used", path)
    return {finding.step for finding in proof_of(path).findings}


def test_once_booted_again_it_is_one_machine(family: str, general: General, tmp_path: Path) -> None:
    """What a first start writes: an id where the system has one, host keys, a seed, a journal, a lease."""
    path = tmp_path / "again.raw"
    path.write_bytes(general.raw)
    with offline(path) as guest:
        if family != "alpine":
            guest.write("/etc/machine-id", b"0f0e0d0c0b0a09080706050403020100\n", 0o444)
            guest.write("/var/lib/systemd/random-seed", b"seed", 0o600)
        else:
            guest.write("/var/lib/seedrng/seed.credit", b"seed", 0o400)
        guest.write("/etc/ssh/ssh_host_ed25519_key", b"key", 0o600)
        guest.write("/etc/ssh/ssh_host_ed25519_key.pub", b"key")
        guest.write("/var/log/wtmp", b"boot")
    run.run(["e2fsck", "-fn", str(path)])
    proof = proof_of(path)
    assert proof.verdict is Verdict.SPECIALIZED
    assert proof.contradicts(OsState.GENERALIZED)
