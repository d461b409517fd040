"""The proof of a Windows disk, from its hives and logs, without Windows.

What the disk says is gathered (:mod:`~calotype.guest.windows_facts`), checked
(:mod:`~calotype.guest.windows_checks`) and judged (:mod:`~calotype.guest.windows_state`).
"""

import fnmatch
from collections.abc import Iterator
from contextlib import suppress

from calotype.disk.base import Disk
from calotype.errors import GuestError
from calotype.guest.guest import join
from calotype.guest.inspect import Inspection, generations
from calotype.guest.locate import DiskMap, Filesystem
from calotype.guest.ntfs_tree import NtfsTree
from calotype.guest.proof import Proof
from calotype.guest.secrets import Secret
from calotype.guest.windows_checks import CHECKS, findings
from calotype.guest.windows_facts import Facts, gather
from calotype.guest.windows_log import ERROR_LOG, explain, printable
from calotype.guest.windows_roles import HYPER_V
from calotype.guest.windows_state import SYSPREP, judge
from calotype.model import Architecture, OsType, Verdict

_ARCHITECTURES = {"AMD64": Architecture.X64, "ARM64": Architecture.ARM64}
#: Kind, directory below a profile, and pattern of the name in small letters.
_SECRETS = (
    ("SSH private key", ".ssh", "id_*"),
    ("cloud or service credentials", ".aws", "credentials"),
    ("cloud or service credentials", ".azure", "msal_token_cache*"),
    ("Kubernetes configuration", ".kube", "config"),
    ("Docker credentials", ".docker", "config.json"),
    ("Git password", "", ".git-credentials"),
    ("private key", "", "*.pfx"),
    (
        "PowerShell history",
        "AppData/Roaming/Microsoft/Windows/PowerShell/PSReadLine",
        "*.txt",
    ),
)
_MAX_SECRETS = _MAX_PROFILES = 1000


def open_windows(disk: Disk, found: DiskMap) -> NtfsTree | None:
    """The tree of the Windows installation on a disk; None where there is none.

    Raises:
        GuestError: there are several, or an NTFS file system that may hold one cannot be read.
    """
    trees = []
    problems = []
    for partition in found.partitions:
        if partition.filesystem is not Filesystem.NTFS:
            continue
        try:
            tree = NtfsTree.on_disk(disk, partition.offset, partition.size)
            config = tree.stat("/Windows/System32/config")
        except GuestError as error:
            problems.append(f"partition {partition.number}: {error.message}")
            continue
        if config is not None and config.is_dir:
            trees.append(tree)
    if len(trees) > 1:
        raise GuestError("several partitions hold a Windows")
    if not trees and problems:
        raise GuestError("; ".join(problems))
    return trees[0] if trees else None


def prove_windows_disk(disk: Disk, found: DiskMap) -> Proof | None:
    """Prove a disk that holds a Windows; None where nothing speaks for one. Never an error."""
    try:
        tree = open_windows(disk, found)
        if tree is not None:
            return prove_windows(tree, found)
        reason = ""
    except GuestError as error:
        reason = f"the Windows on it cannot be looked into: {error.message}"
    if any(p.filesystem is Filesystem.BITLOCKER for p in found.partitions):
        reason = (
            "a volume is encrypted with BitLocker and cannot be looked into; "
            "cure: manage-bde -off C:, wait until it is decrypted, run " + SYSPREP
        )
    if not reason:
        return None
    seen = Inspection(os_type=OsType.WINDOWS, generations=generations(found), notes=(reason,))
    return Proof(verdict=Verdict.UNKNOWN, reasons=(reason,), seen=seen)


def prove_windows(tree: NtfsTree, found: DiskMap) -> Proof:
    """Judge an installation of Windows; ``found`` is the map of the disk that it is on."""
    facts = gather(tree)
    left = findings(facts)
    judged = judge(facts, left)
    return Proof(
        verdict=judged.verdict,
        reasons=judged.reasons,
        seen=_inspection(facts, found),
        checked=tuple(check.name for check in CHECKS),
        findings=left,
        secrets=_secrets(tree),
        notes=tuple(_notes(facts, judged.verdict)),
    )


def _secrets(tree: NtfsTree) -> tuple[Secret, ...]:
    """What looks like a secret of somebody, by path."""
    found: set[Secret] = set()
    for profile in _listed(tree, "/Users")[:_MAX_PROFILES]:
        for kind, directory, pattern in _SECRETS:
            place = join(join("/Users", profile), directory).rstrip("/")
            names = (n for n in _listed(tree, place) if fnmatch.fnmatchcase(n.casefold(), pattern))
            found |= {Secret(kind, printable(join(place, name))) for name in names}
        if len(found) >= _MAX_SECRETS:
            break
    return tuple(sorted(found, key=lambda secret: secret.path)[:_MAX_SECRETS])


def _listed(tree: NtfsTree, path: str) -> list[str]:
    with suppress(GuestError):  # as much as can be listed
        return tree.list(path)
    return []


def _notes(facts: Facts, verdict: Verdict) -> Iterator[str]:
    """What does not bear on the verdict: why Sysprep would fail or did, and what it leaves behind."""
    yield from facts.notes
    general = verdict is Verdict.GENERALIZED
    if general and not facts.succeeded:
        yield "Sysprep_succeeded.tag is missing"
    if general and facts.in_progress == 0:
        yield "SystemSetupInProgress is 0, though Setup is to go on at the next start"
    if not general and facts.error_line:
        cause = explain(facts.error_line)
        meaning = f" ({cause.meaning}; cure: {cause.cure})" if cause else ""
        yield f"{ERROR_LOG}: {facts.error_line}{meaning}"
    for role in facts.roles:
        if not role.is_supported(facts.build) and not role.identity:
            yield f"{role.name}: Sysprep does not support it; cure: {role.cure}"
        elif role is HYPER_V:
            yield f"{role.name}: {role.cure}"
    if facts.domain:
        yield f"its DNS domain is {facts.domain}; Sysprep takes a computer out of its domain"
    yield from (f"{what}; cure: restart it before Sysprep" for what in facts.pending)
    if facts.upgraded:
        yield "it was upgraded from an older Windows: Sysprep generalizes clean installations only"
    if facts.cdrom not in (None, 1):
        yield f"the service cdrom has Start={facts.cdrom}: Azure's provisioning needs 1"


def _inspection(facts: Facts, found: DiskMap) -> Inspection:
    return Inspection(
        os_type=OsType.WINDOWS,
        os_id="windows",
        os_name=facts.product,
        os_version=facts.version,
        hostname=facts.hostname,
        architecture=_ARCHITECTURES.get(facts.architecture),
        generations=generations(found),
        users=facts.users,
        host_keys=facts.host_keys,
        cloud_init="cloudbase-init" in facts.services,
        waagent="windowsazureguestagent" in facts.services,
        guest_agent="qemu-ga" in facts.services,
        has_ssh_server="sshd" in facts.services,
        time_zone=facts.time_zone,
        stale=bool(facts.problems),
        notes=facts.problems,
    )
