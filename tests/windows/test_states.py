"""What a Windows disk shows, in every state that Setup documents."""

from typing import Any

import pytest
from tests.disks import BytesDisk
from tests.windows import build
from tests.windows.build import ANSWERS, COMPLETE, ERRORS, GENERAL

from calotype.guest.ntfs_tree import NtfsTree
from calotype.guest.proof import Proof, prove_disk
from calotype.guest.steps.step import Concern
from calotype.guest.windows_roles import ROLES
from calotype.guest.windows_state import STATES
from calotype.model import Architecture, OsType, Verdict

UNDEPLOYABLE = "IMAGE_STATE_UNDEPLOYABLE"
AUDIT = "IMAGE_STATE_GENERALIZE_RESEAL_TO_AUDIT"
SPECIAL = "IMAGE_STATE_SPECIALIZE_RESEAL_TO_OOBE"


def proof(*args: Any, **options: Any) -> Proof:
    return prove_disk(build.disk(build.installation(*args, **options)))


@pytest.mark.parametrize(
    ("state", "verdict", "words"),
    [
        (GENERAL, Verdict.GENERALIZED, ""),
        (COMPLETE, Verdict.SPECIALIZED, "run sysprep /generalize /oobe /shutdown /mode:vm"),
        (UNDEPLOYABLE, Verdict.MIXED, "never be deployed"),
        (AUDIT, Verdict.MIXED, "audit mode"),
        (SPECIAL, Verdict.SPECIALIZED, "/generalize was left out"),
        ("IMAGE_STATE_SPECIALIZE_RESEAL_TO_AUDIT", Verdict.SPECIALIZED, "audit mode"),
    ],
)
def test_every_documented_state(state, verdict, words):
    found = proof(state)
    assert found.verdict is verdict
    assert words in " ".join(found.reasons)
    assert bool(found.reasons) is (verdict is not Verdict.GENERALIZED)
    seen = found.seen
    assert (seen.os_type, seen.os_name) == (OsType.WINDOWS, "Windows Server 2022 Datacenter")
    assert (seen.os_version, seen.hostname) == ("20348", "ACME-WEB01")
    assert seen.architecture is Architecture.X64
    assert seen.time_zone == "W. Europe Standard Time"
    assert seen.guest_agent
    general = verdict is Verdict.GENERALIZED
    # What the state says is a finding too, of the step that is named in the reason.
    assert [f.step for f in found.of(Concern.IDENTITY)] == ([] if general else ["image-state"])


def test_the_table_of_states_is_whole():
    assert len(STATES) == 6


@pytest.mark.parametrize(
    ("registry", "file", "verdict"),
    [
        (GENERAL, COMPLETE, Verdict.MIXED),
        (COMPLETE, GENERAL, Verdict.MIXED),
        (GENERAL, None, Verdict.MIXED),
        (None, GENERAL, Verdict.MIXED),
        (COMPLETE, SPECIAL, Verdict.SPECIALIZED),
        (COMPLETE, None, Verdict.SPECIALIZED),
        (None, None, Verdict.UNKNOWN),
        (GENERAL, "IMAGE_STATE_\x1b[2J", Verdict.UNKNOWN),
    ],
)
def test_both_places_must_agree(registry, file, verdict):
    found = proof(registry, file)
    assert found.verdict is verdict
    assert all(reason.isprintable() for reason in found.reasons)
    if verdict is Verdict.MIXED:
        assert "must agree" in found.reasons[0]


@pytest.mark.parametrize(
    ("path", "values", "step", "words"),
    [
        ("Setup", {"SetupType": 0}, "setup-phase", "SetupType is 0"),
        (
            r"Setup\Status\SysprepStatus",
            {"GeneralizationState": 3},
            "setup-phase",
            "GeneralizationState is 3",
        ),
        (r"ControlSet001\Services\CertSvc", {"Start": 2}, "server-roles", "Certificate Services"),
        (
            r"ControlSet001\Control\ProductOptions",
            {"ProductType": "LanmanNT"},
            "server-roles",
            "domain controller",
        ),
    ],
)
def test_what_speaks_against_a_generalized_state(path, values, step, words):
    found = proof(GENERAL, syst={path: values})
    assert found.verdict is Verdict.MIXED
    assert [f.step for f in found.findings] == [step]
    assert found.reasons[0].startswith(f"{step}: ")
    assert words in found.reasons[0]


def test_credentials_that_sysprep_leaves():
    """An answer file with a password, and an automatic logon; neither password is ever repeated."""
    winlogon = r"Microsoft\Windows NT\CurrentVersion\Winlogon"
    values = {"AutoAdminLogon": "1", "DefaultUserName": "alice", "DefaultPassword": "hunter2"}
    files = {"/Windows/Panther/unattend.xml": ANSWERS % "hunter3"}
    found = proof(GENERAL, soft={winlogon: values}, files=files)
    assert found.verdict is Verdict.MIXED
    steps = {f.step: f.left for f in found.of(Concern.CREDENTIAL)}
    assert set(steps) == {"answer-files", "automatic-logon"}
    assert steps["answer-files"][0].startswith("/Windows/Panther/unattend.xml holds a password")
    assert "alice" in steps["automatic-logon"][0]
    assert len(steps["automatic-logon"]) == 2
    assert "hunter" not in repr(found)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_an_answer_file_without_its_passwords(encoding):
    """Setup wipes the passwords of the answer files that it is done with."""
    wiped = (ANSWERS % "*SENSITIVE*DATA*DELETED*").encode(encoding)
    files = {"/Windows/Panther/Unattend/Unattend.XML": wiped}
    found = proof(GENERAL, files=files)
    assert found.verdict is Verdict.GENERALIZED
    assert [f.step for f in found.findings] == ["old-answer-files"]
    plain = (ANSWERS % "hunter2").encode(encoding)
    again = proof(GENERAL, files={"/Windows/Panther/Unattend/Unattend.XML": plain})
    assert [f.step for f in again.findings] == ["answer-files"]


def test_host_keys_of_openssh():
    key = "/ProgramData/ssh/ssh_host_ed25519_key"
    found = proof(GENERAL, files={key: "secret", key + ".pub": "public"})
    assert found.verdict is Verdict.MIXED
    assert found.seen.host_keys == (key,)
    assert found.reasons[0].startswith(f"ssh-host-keys: {key} is there")


def test_people_and_their_secrets():
    profiles = r"Microsoft\Windows NT\CurrentVersion\ProfileList"
    soft = {
        rf"{profiles}\S-1-5-18": {"ProfileImagePath": r"C:\Windows\system32\config\systemprofile"},
        rf"{profiles}\S-1-5-21-1-2-3-500": {"ProfileImagePath": r"C:\Users\Administrator"},
        rf"{profiles}\S-1-5-21-1-2-3-1001": {"ProfileImagePath": r"C:\Users\alice"},
    }
    found = proof(GENERAL, soft=soft, files={"/Users/alice/.ssh/id_rsa": "key"})
    assert found.verdict is Verdict.GENERALIZED  # Sysprep keeps accounts: told of, and no more
    assert found.seen.users == ("alice",)
    assert [f.step for f in found.findings] == ["accounts"]
    assert [(s.kind, s.path) for s in found.secrets] == [
        ("SSH private key", "/Users/alice/.ssh/id_rsa")
    ]


def test_why_sysprep_failed():
    log = (
        "2026-01-02 03:04:05, Error                 SYSPRP Package Microsoft.Ink\x1b[31mHandler_1.0_x64 "
        "was installed for a user, but not provisioned for all users.\r\n"
        "2026-01-02 03:04:06, Error                 SYSPRP Failed to remove apps: 0x80073cf2.\r\n"
    )
    found = proof(UNDEPLOYABLE, files={ERRORS: log})
    (note,) = found.notes
    assert "Ink\\u001b[31mHandler" in note
    assert "Remove-AppxPackage" in note
    assert note.isprintable()


def test_what_would_stop_sysprep():
    version = r"Microsoft\Windows\CurrentVersion"
    roles = r"Microsoft\ServerManager\ServicingStorage\ServerComponentCache"
    soft = {
        rf"{version}\Component Based Servicing\RebootPending": {},
        rf"{version}\WindowsUpdate\Auto Update\RebootRequired": {},
        rf"{roles}\AD-Domain-Services": {"InstallState": 1},
        rf"{roles}\ADLDS": {"InstallState": 0},
        rf"{roles}\DHCP": {"InstallState": 1},
        rf"{roles}\Hyper-V": {"InstallState": 1},
        rf"{roles}\FileAndStorage-Services": {"InstallState": 1},
    }
    syst = {
        r"ControlSet001\Control\Session Manager": {
            "PendingFileRenameOperations": [r"\??\C:\x.tmp", ""]
        },
        r"ControlSet001\Services\Tcpip\Parameters": {"Domain": "corp.example"},
        r"ControlSet001\Services\cdrom": {"Start": 4},
        r"Setup\Source OS (Updated on 1/2/2026 03:04:05)": {},
    }
    found = proof(COMPLETE, soft=soft, syst=syst)
    assert found.verdict is Verdict.SPECIALIZED
    (roles_left,) = [f for f in found.findings if f.step == "server-roles"]
    assert [line.partition(":")[0] for line in roles_left.left] == [
        "Active Directory Domain Services"
    ]
    text = "\n".join(found.notes)
    for words in (
        "DHCP Server: Sysprep does not support it",
        "virtual networks",
        "corp.example",
        "Component Based Servicing",
        "Windows Update waits",
        "PendingFileRenameOperations",
        "upgraded",
        "cdrom has Start=4",
    ):
        assert words in text
    assert "File and Storage" not in text  # supported from 2008 R2 on


def test_a_log_that_cannot_be_read_proves_nothing():
    """Its record says that NTFS compressed it: worth a note, and no more."""
    content = build.partition(build.installation(GENERAL, files={ERRORS: "x" * 9000}))
    tree = NtfsTree.on_disk(BytesDisk(bytes(content)), 0, len(content))
    found = tree._find(ERRORS)
    assert found is not None
    record = found[1].number
    table = tree.fs._table
    assert table is not None
    run = next(table._from(record * 2))
    assert run.physical is not None
    at = (run.physical + record * 2 - run.logical) * tree.fs.cluster
    data = content.index(b"\x80\0\0\0", at + 56, at + 1024)
    content[data + 12] = 1  # the attribute's flag of compression
    judged = prove_disk(build.disk_of(content))
    assert judged.verdict is Verdict.GENERALIZED
    assert any("compressed by NTFS" in note for note in judged.notes)


def test_the_table_of_roles_by_system():
    support = {role.name: [role.is_supported(b) for b in (6001, 7600, 20348)] for role in ROLES}
    assert support["DHCP Server"] == [True, False, False]
    assert support["File and Storage Services"] == [False, True, True]
    assert support["Fax Server"] == [False, False, False]
