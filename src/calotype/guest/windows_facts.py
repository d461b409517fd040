"""What a Windows disk says of itself: values of its hives and a few files, without any judgement."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from calotype.errors import GuestError
from calotype.guest.guest import glob
from calotype.guest.hive import Hive, Key, Value
from calotype.guest.ntfs_tree import NtfsTree
from calotype.guest.windows_log import ERROR_LOG, decoded, offending, printable
from calotype.guest.windows_roles import HYPER_V, ROLES, Role

_CONFIG = "/Windows/System32/config"
_MAX_LOG = 32 << 20
_MAX_FILES = 50  # of one pattern
_MAX_ERRORS = 4 << 20  # bytes of the log of errors, from its end
_SETUP_STATE = r"Microsoft\Windows\CurrentVersion\Setup\State"
_VERSION = r"Microsoft\Windows NT\CurrentVersion"
_CURRENT = r"Microsoft\Windows\CurrentVersion"
_ROLE_CACHE = r"Microsoft\ServerManager\ServicingStorage\ServerComponentCache"
#: Where Windows keeps, and looks for, answer files.
_ANSWER_FILES = (
    "/Windows/Panther/unattend.xml",
    "/Windows/Panther/autounattend.xml",
    "/Windows/Panther/Unattend/*.[xX][mM][lL]",
    "/Windows/System32/Sysprep/*.[xX][mM][lL]",
    "/unattend.xml",
    "/autounattend.xml",
)
#: A password in one: what stands in the element, or in the <Value> in it. All repetition is bounded.
_PASSWORD = re.compile(
    r"<(?:\w{1,20}:)?\w{0,40}Password\b[^>]{0,200}>\s{0,200}(?:<(?:\w{1,20}:)?Value\b[^>]{0,200}>\s{0,200})?"
    r"([^<\s][^<]{0,200})",
    re.IGNORECASE,
)
_MAX_ANSWER = 1 << 18
_MAX_KEYS = 5000  # below one key
_WIPED = "SENSITIVE*DATA*DELETED"
_BUILT_IN = {"administrator", "guest", "defaultaccount", "wdagutilityaccount", "public", "default"}


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerFile:
    """An answer file that Windows left or would use; its contents are never repeated."""

    path: str
    has_password: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What was found. Texts are the guest's own, made fit to be shown; None is what was not there.

    ``problems`` says why newer values may exist than were seen, or none could be.
    """

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    registry_state: str | None = None
    file_state: str | None = None
    setup_type: int | None = None
    in_progress: int | None = None
    oobe: int | None = None
    generalization: int | None = None
    cleanup: int | None = None
    succeeded: bool = False  # Sysprep_succeeded.tag
    error_line: str = ""
    product: str = ""
    build: int = 0
    version: str = ""
    hostname: str = ""
    architecture: str = ""
    time_zone: str = ""
    users: tuple[str, ...] = ()
    domain: str = ""
    domain_controller: bool = False
    roles: tuple[Role, ...] = ()
    pending: tuple[str, ...] = ()
    upgraded: bool = False
    cdrom: int | None = None
    automatic_logon: str = ""  # who
    logon_password: bool = False
    answer_files: tuple[AnswerFile, ...] = ()
    host_keys: tuple[str, ...] = ()
    services: frozenset[str] = frozenset()  # names, casefolded


class Registry:
    """The hives of an installation; what cannot be read is in ``problems``."""

    def __init__(self, tree: NtfsTree) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.software = self._open(tree, "SOFTWARE")
        self.system = self._open(tree, "SYSTEM")
        number = self.number(self.system, "Select", "Current") or 1
        self.control_set = f"ControlSet{number % 1000:03d}"

    def _open(self, tree: NtfsTree, name: str) -> Hive | None:
        try:
            content = tree.open(f"{_CONFIG}/{name}")
            if content is None:
                self.problems.append(f"the registry hive {name} is missing")
                return None
            logs = (tree.read(f"{_CONFIG}/{name}.LOG{n}", _MAX_LOG) for n in (1, 2))
            hive = Hive(content.read, content.size, (log for log in logs if log))
        except GuestError as error:
            self.problems.append(f"the registry hive {name} cannot be read: {error.message}")
            return None
        if hive.stale:
            self.problems.append(f"the registry hive {name} is not up to date: {hive.stale}")
        elif hive.recovered:
            self.notes.append(f"{hive.recovered} changes of {name}'s transaction logs were applied")
        return hive

    def key(self, hive: Hive | None, path: str) -> Key | None:
        """A key; None where there is none, or where it cannot be read (which is then a problem)."""
        if hive is None:
            return None
        try:
            return hive.key(path)
        except GuestError as error:
            self._failed(error)
            return None

    def names(self, hive: Hive | None, path: str) -> list[str]:
        """The names of the keys below one."""
        key = self.key(hive, path)
        try:
            return [] if key is None else key.names()
        except GuestError as error:
            self._failed(error)
            return []

    def below(self, hive: Hive | None, path: str, name: str) -> Iterator[tuple[str, Value | None]]:
        """(name of the key, its value of this name) of each key below one."""
        key = self.key(hive, path)
        try:
            for inner in islice(key.keys(), _MAX_KEYS) if key is not None else ():
                yield inner.name, inner.value(name)
        except GuestError as error:
            self._failed(error)

    def text(self, hive: Hive | None, path: str, name: str) -> str:
        """A value as text that can be shown; empty where there is none."""
        try:
            return "" if hive is None else printable(hive.text(path, name))
        except GuestError as error:
            self._failed(error)
            return ""

    def number(self, hive: Hive | None, path: str, name: str) -> int | None:
        """A value as a number."""
        try:
            return None if hive is None else hive.number(path, name)
        except GuestError as error:
            self._failed(error)
            return None

    def control(self, path: str) -> str:
        """A path in the control set that the system used last."""
        return rf"{self.control_set}\{path}"

    def _failed(self, error: GuestError) -> None:
        if error.message not in self.problems:
            self.problems.append(error.message)


def gather(tree: NtfsTree) -> Facts:
    """Everything that the disk says of itself."""
    problems = [*_volume_problems(tree)]
    registry = Registry(tree)
    software, system = registry.software, registry.system
    number, text = registry.number, registry.text
    sysprep = r"Setup\Status\SysprepStatus"
    build = text(software, _VERSION, "CurrentBuild") or text(
        software, _VERSION, "CurrentBuildNumber"
    )
    logon = rf"{_VERSION}\Winlogon"
    automatic = text(software, logon, "AutoAdminLogon") == "1"
    services = frozenset(n.casefold() for n in registry.names(system, registry.control("Services")))
    files = _Files(tree, problems)
    found = Facts(
        registry_state=text(software, _SETUP_STATE, "ImageState") or None,
        file_state=files.image_state(),
        setup_type=number(system, "Setup", "SetupType"),
        in_progress=number(system, "Setup", "SystemSetupInProgress"),
        oobe=number(system, "Setup", "OOBEInProgress"),
        generalization=number(system, sysprep, "GeneralizationState"),
        cleanup=number(system, sysprep, "CleanupState"),
        succeeded=files.there("/Windows/System32/Sysprep/Sysprep_succeeded.tag"),
        error_line=offending(files.tail(ERROR_LOG, _MAX_ERRORS)),
        product=text(software, _VERSION, "ProductName"),
        build=int(build) if build.isascii() and build.isdecimal() and len(build) < 8 else 0,
        version=build,
        hostname=text(
            system, registry.control(r"Control\ComputerName\ComputerName"), "ComputerName"
        ),
        architecture=text(
            system,
            registry.control(r"Control\Session Manager\Environment"),
            "PROCESSOR_ARCHITECTURE",
        ),
        time_zone=text(system, registry.control(r"Control\TimeZoneInformation"), "TimeZoneKeyName"),
        users=tuple(_users(registry)),
        domain=text(system, registry.control(r"Services\Tcpip\Parameters"), "Domain")
        or text(system, registry.control(r"Services\Tcpip\Parameters"), "NV Domain"),
        domain_controller=text(system, registry.control(r"Control\ProductOptions"), "ProductType")
        == "LanmanNT",
        roles=tuple(_roles(registry, services)),
        pending=tuple(_pending(registry)),
        upgraded=any(
            name.casefold().startswith("source os") for name in registry.names(system, "Setup")
        ),
        cdrom=number(system, registry.control(r"Services\cdrom"), "Start"),
        automatic_logon=(text(software, logon, "DefaultUserName") or "somebody")
        if automatic
        else "",
        logon_password=bool(text(software, logon, "DefaultPassword")),
        answer_files=tuple(files.answer_files()),
        host_keys=tuple(map(printable, files.matching("/ProgramData/ssh/ssh_host_*_key"))),
        services=services,
    )
    # Both have grown while the rest was read.
    return replace(
        found,
        problems=tuple(dict.fromkeys([*problems, *registry.problems])),
        notes=(*registry.notes, *files.notes),
    )


def _volume_problems(tree: NtfsTree) -> Iterator[str]:
    try:
        unclean = tree.unclean()
        if unclean:
            yield f"Windows was not shut down: {unclean}"
        if tree.hibernated():
            yield "Windows is hibernated, or was shut down for a fast start: hiberfil.sys holds its memory"
    except GuestError as error:
        yield f"the state of the volume cannot be read: {error.message}"


class _Files:
    """The few files that matter; one that cannot be read is a problem."""

    def __init__(self, tree: NtfsTree, problems: list[str]) -> None:
        self._tree = tree
        self._problems = problems
        self.notes: list[str] = []

    def read(self, path: str, limit: int) -> bytes:
        try:
            return self._tree.read(path, limit) or b""
        except GuestError as error:
            self._problems.append(f"{path} cannot be read: {error.message}")
            return b""

    def tail(self, path: str, limit: int) -> bytes:
        """The end of a file that proves nothing; one that cannot be read is worth a note."""
        try:
            content = self._tree.open(path)
            return b"" if content is None else content.read(max(0, content.size - limit), limit)
        except GuestError as error:
            self.notes.append(f"{path} cannot be read: {error.message}")
            return b""

    def there(self, path: str) -> bool:
        return bool(self.matching(path))

    def matching(self, pattern: str) -> list[str]:
        try:
            return [*islice(glob(self._tree, pattern), _MAX_FILES)]
        except GuestError as error:
            self._problems.append(f"{pattern} cannot be looked for: {error.message}")
            return []

    def image_state(self) -> str | None:
        """What State.ini says, in its section [State]."""
        text = decoded(self.read("/Windows/Setup/State/State.ini", 1 << 16))
        section = ""
        for line in text.splitlines():
            name, sign, value = line.partition("=")
            if line.strip().startswith("["):
                section = line.strip().casefold()
            elif sign and section == "[state]" and name.strip().casefold() == "imagestate":
                return printable(value) or None
        return None

    def answer_files(self) -> Iterator[AnswerFile]:
        for pattern in _ANSWER_FILES:
            for path in self.matching(pattern):
                text = decoded(self.read(path, _MAX_ANSWER))
                if "<unattend" not in text.casefold():
                    continue
                found = (match[1] for match in _PASSWORD.finditer(text))
                yield AnswerFile(
                    path=printable(path), has_password=any(_WIPED not in word for word in found)
                )


def _users(registry: Registry) -> Iterator[str]:
    """Who has a profile and is a person: SIDs of accounts with numbers from 1000 on, by profile's name."""
    for profile, path in registry.below(
        registry.software, rf"{_VERSION}\ProfileList", "ProfileImagePath"
    ):
        name = printable(path.text).rpartition("\\")[2] if path else ""
        if profile.startswith("S-1-5-21-") and name and name.casefold() not in _BUILT_IN:
            yield name


def _roles(registry: Registry, services: frozenset[str]) -> Iterator[Role]:
    installed = {
        name.casefold()
        for name, state in registry.below(registry.software, _ROLE_CACHE, "InstallState")
        if state is not None and state.number == 1
    }
    for role in (*ROLES, HYPER_V):
        if role.components & installed or role.services & services:
            yield role


def _pending(registry: Registry) -> Iterator[str]:
    """What waits for a restart."""
    software = registry.software
    if registry.key(software, rf"{_CURRENT}\Component Based Servicing\RebootPending"):
        yield "Component Based Servicing waits for a restart"
    if registry.key(software, rf"{_CURRENT}\WindowsUpdate\Auto Update\RebootRequired"):
        yield "Windows Update waits for a restart"
    manager = registry.key(registry.system, registry.control(r"Control\Session Manager"))
    try:
        renames = manager.value("PendingFileRenameOperations") if manager else None
    except GuestError:
        return
    if renames is not None and renames.texts:
        yield "files wait for a restart to be renamed or removed (PendingFileRenameOperations)"
