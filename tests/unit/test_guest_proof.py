"""The verdict: what it is of each kind of disk, what its reasons are, and what it may refuse on."""

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from tests import roots
from tests.disks import BytesDisk

from calotype import run
from calotype.disk.view import RawSource
from calotype.guest import Concern, Finding, Inspection
from calotype.guest.data_disk import DataProof, prove_data_disk
from calotype.guest.proof import Proof, judge, prove_disk
from calotype.model import OsState, Verdict

MIB = 1 << 20
DEBIAN = Inspection(os_id="debian", has_ssh_server=True, systemd=True)


def finding(step: str, concern: Concern = Concern.IDENTITY) -> Finding:
    return Finding(step, step.capitalize(), concern, (f"/{step} is there", "/b is there"))


ID, KEYS = finding("machine-id"), finding("ssh-host-keys")
SEED, PERSON = finding("random-seed"), finding("users", Concern.CREDENTIAL)
LOG = finding("logs", Concern.TRACE)


@pytest.mark.parametrize(
    ("seen", "findings", "verdict"),
    [
        (DEBIAN, [], Verdict.GENERALIZED),
        (DEBIAN, [LOG], Verdict.GENERALIZED),
        (DEBIAN, [ID, KEYS], Verdict.SPECIALIZED),
        (DEBIAN, [ID, LOG], Verdict.MIXED),
        (DEBIAN, [KEYS, PERSON, SEED], Verdict.MIXED),
        (DEBIAN, [PERSON], Verdict.MIXED),
        (Inspection(os_id="debian", systemd=True), [ID, SEED], Verdict.SPECIALIZED),
        (Inspection(os_id="debian", systemd=True), [ID], Verdict.MIXED),
        (Inspection(os_id="alpine", has_ssh_server=True), [KEYS, PERSON], Verdict.SPECIALIZED),
        (Inspection(os_id="alpine", has_ssh_server=True), [KEYS], Verdict.MIXED),
        (Inspection(os_id="alpine"), [SEED, PERSON], Verdict.MIXED),
        (Inspection(os_id="plan9", os_name="Plan 9"), [LOG], Verdict.UNKNOWN),
        (Inspection(os_id="plan9"), [ID], Verdict.MIXED),
        (Inspection(os_id="amzn", os_like=("fedora",)), [], Verdict.GENERALIZED),
    ],
)
def test_the_verdict(seen: Inspection, findings: list[Finding], verdict: Verdict) -> None:
    judged, reasons = judge(seen, findings)
    assert judged is verdict
    grave = [f for f in findings if f.concern is not Concern.TRACE]
    assert len(reasons) == (len(grave) if verdict is not Verdict.UNKNOWN else 1)
    if grave:
        assert reasons[0] == f"{grave[0].step}: /{grave[0].step} is there (and 1 more)"


def proof(verdict: Verdict, *, stale: bool = False) -> Proof:
    return Proof(verdict=verdict, reasons=("why",), seen=Inspection(stale=stale))


def test_what_contradicts() -> None:
    general, special = OsState.GENERALIZED, OsState.SPECIALIZED
    assert proof(Verdict.SPECIALIZED).contradicts(general) == ("why",)
    assert proof(Verdict.MIXED).contradicts(general) == ("why",)
    assert proof(Verdict.MIXED, stale=True).contradicts(general) == ("why",)
    assert proof(Verdict.GENERALIZED).contradicts(special) != ()
    assert proof(Verdict.GENERALIZED, stale=True).contradicts(special) == ()
    for verdict in (Verdict.SPECIALIZED, Verdict.MIXED, Verdict.UNKNOWN):
        assert proof(verdict).contradicts(special) == ()
    for verdict in (Verdict.GENERALIZED, Verdict.UNKNOWN):
        assert proof(verdict).contradicts(general) == ()


@pytest.mark.parametrize(
    ("findings", "left_out", "only"),
    [
        ([KEYS], {"ssh-host-keys"}, True),
        ([KEYS, LOG], {"ssh-host-keys"}, True),  # a trace speaks against nothing
        ([KEYS, PERSON], {"ssh-host-keys"}, False),
        ([KEYS, PERSON], {"ssh-host-keys", "users", "timers"}, True),
        ([LOG], {"logs"}, False),
        ([], set(), False),
    ],
)
def test_only_what_was_left_out(findings: list[Finding], left_out: set[str], *, only: bool) -> None:
    mixed = replace(proof(Verdict.MIXED), findings=tuple(findings))
    assert mixed.only(left_out) is only


def of(path: Path) -> Proof:
    with closing(RawSource(path).open()) as disk:
        return prove_disk(disk)


def ext4(path: Path, tree: Path | None = None, size: str = "8M") -> Path:
    source = ["-d", str(tree)] if tree else []
    run.run(["mke2fs", "-q", "-t", "ext4", *source, str(path), size])
    return path


def test_disks_without_an_operating_system(tmp_path: Path) -> None:
    for disk in (BytesDisk(bytes(4 * MIB)), BytesDisk(ext4(tmp_path / "e").read_bytes())):
        proof = prove_disk(disk)
        assert proof.verdict is Verdict.UNKNOWN
        assert "no operating system" in proof.reasons[0]
        assert (
            proof.contradicts(OsState.GENERALIZED) == proof.contradicts(OsState.SPECIALIZED) == ()
        )


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("proof") / "fresh.raw"
    roots.build("debian", "fresh", path)
    return path


def test_a_damaged_disk_is_unknown(fresh: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.raw"
    shutil.copy(fresh, path)
    run.run(["debugfs", "-w", "-R", f"sif /var/log size {1 << 40}", str(path)])
    proof = of(path)
    assert proof.verdict is Verdict.UNKNOWN
    assert "too big" in proof.reasons[0]


def test_a_journal_that_was_not_replayed_is_noted(fresh: Path, tmp_path: Path) -> None:
    path = tmp_path / "stale.raw"
    shutil.copy(fresh, path)
    run.run(["debugfs", "-w", "-R", "feature needs_recovery", str(path)])
    proof = of(path)
    assert proof.seen.stale
    assert any("journal" in note for note in proof.notes)
    assert proof.contradicts(OsState.SPECIALIZED) == ()


def test_what_was_not_looked_into_is_not_called_general(tmp_path: Path) -> None:
    root = roots.lay_out("debian", "fresh")
    root.file("/etc/fstab", "UUID=1 / ext4 defaults 0 1\nUUID=2 /var ext4 defaults 0 2\n")
    root.ext4(tmp_path / "apart.raw")
    proof = of(tmp_path / "apart.raw")
    assert proof.verdict is Verdict.UNKNOWN
    assert proof.reasons == ("/var is on a file system of its own, which was not looked into",)


@pytest.mark.parametrize("dirty", [True, False])
def test_pages_in_a_swap_partition(fresh: Path, tmp_path: Path, *, dirty: bool) -> None:
    path = tmp_path / "disk.raw"
    size = fresh.stat().st_size
    with path.open("wb") as file:
        file.truncate(size + 4 * MIB)
        file.seek(MIB)
        file.write(fresh.read_bytes())
        file.seek(size + MIB + 4086)
        file.write(b"SWAPSPACE2")
        file.seek(size + 2 * MIB)
        file.write(b"page" if dirty else b"")
    end = (MIB + size) // 512
    argv = ["sgdisk", "-n", f"1:2048:{end - 1}", "-n", f"2:{end}:{end + 4095}", "-t", "2:8200"]
    run.run([*argv, str(path)])
    proof = of(path)
    assert proof.verdict is Verdict.GENERALIZED
    swapped = [line for f in proof.findings if f.step == "swap-files" for line in f.left]
    assert swapped == (["swap partition 2 holds swapped pages"] if dirty else [])


def data(path: Path) -> DataProof:
    with closing(RawSource(path).open()) as disk:
        return prove_data_disk(disk)


def test_a_data_disk(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    contents = {
        "alice/.ssh/authorized_keys": "ssh-ed25519 AAAA",
        "alice/.ssh/id_ed25519": "-----BEGIN OPENSSH PRIVATE KEY-----\n",
        "alice/.ssh/id_ed25519.pub": "ssh-ed25519 AAAA",
        "home/bob/.bash_history": "ls",
        "app/.env": "DB=1",
        "app/config.yaml": "db_password: hunter2hunter2\n",
        "app/data": "nothing",
    }
    for name, content in contents.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    found = data(ext4(tmp_path / "data.raw", tree))
    assert found.filesystems == ((0, "ext4"),)
    assert {secret.path for secret in found.people} == {
        "0:/alice/.ssh/authorized_keys",
        "0:/alice/.ssh/id_ed25519",
        "0:/home/bob/.bash_history",
    }
    assert {secret.path for secret in found.secrets} == {"0:/app/.env", "0:/app/config.yaml"}
    assert found.notes == ()


def test_data_disks_with_nothing_to_look_at(tmp_path: Path, fresh: Path) -> None:
    assert prove_data_disk(BytesDisk(bytes(MIB))).notes == ("no file system was found on it",)
    assert data(ext4(tmp_path / "e")) == DataProof(filesystems=((0, "ext4"),))
    assert data(fresh).notes == ("partition 0 holds an operating system",)
    run.run(["mkfs.xfs", "-q", "-d", f"name={tmp_path / 'x'},file,size=320m"])
    assert data(tmp_path / "x").notes == ("partition 0 holds xfs: not looked into",)
