r"""The seed of a generalized Windows: a CD with what Setup and provisioning agents look for.

At its root, with ISO 9660, Joliet and UDF names (a "bridge", as Azure's own):

``unattend.xml``, ``Autounattend.xml``
    The same answer file under both names. Windows Setup looks for one on read-only media when neither the
    registry nor ``%WINDIR%\Panther`` has any, and applies the passes ``specialize`` and ``oobeSystem``.
``ovf-env.xml``
    Azure's ``WindowsProvisioningConfigurationSet``, for images with Azure's agent or cloudbase-init.
``CustomData.bin``
    The custom data byte by byte; Setup copies it to ``C:\AzureData\CustomData.bin``, as on Azure.

Passwords stand in it: hashes are nothing that Windows takes. Whoever can read the VM's directory, or is
logged on in the guest while the CD is attached, can read them.
"""

import base64
import io
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pycdlib
from tzlocal.windows_tz import tz_win

from calotype.disk.durable import write_private
from calotype.errors import InvalidInput
from calotype.machine.seed import MAX_CUSTOM_DATA

_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,13}[A-Za-z0-9])?")
_NO_USER = re.compile(r'["/\\\[\]:;|=,+*?<>@]')
_RESERVED = {"administrator", "guest", "defaultaccount", "system", "none"}
_SHORTEST, _LONGEST = 12, 123  # characters of a password, as on Azure
_MAX_COMMANDS = 100

_UNATTEND = "urn:schemas-microsoft-com:unattend"
_WCM = "http://schemas.microsoft.com/WMIConfig/2002/State"
_AZURE = "http://schemas.microsoft.com/windowsazure"
_OVF = "http://schemas.dmtf.org/ovf/environment/1"
_COPY = (
    'cmd.exe /d /c "for %d in (D E F G H I J K) do if exist %d:\\CustomData.bin '
    '(mkdir C:\\AzureData & copy /y %d:\\CustomData.bin C:\\AzureData\\CustomData.bin)"'
)


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowsProvisioning:
    """Who a new Windows VM is to be; checked when it is made.

    ``timezone`` is a name such as Europe/Berlin. ``first_logon`` are command lines that run when somebody
    logs on for the first time.

    Raises:
        InvalidInput: a value that Windows would not take; a password is never repeated.
    """

    computer_name: str
    admin_user: str
    password: str
    timezone: str | None = None
    custom_data: bytes | None = None
    first_logon: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not _HOSTNAME.fullmatch(self.computer_name) or self.computer_name.isdigit():
            raise InvalidInput(
                f"{self.computer_name!r} cannot be the computer name of a Windows",
                hint="1 to 15 letters, digits and hyphens, not only digits: --computer-name",
            )
        check_user(self.admin_user)
        check_password(self.password)
        if self.timezone is not None and self.timezone not in tz_win:
            raise InvalidInput(f"Windows knows no time zone like {self.timezone}")
        if self.custom_data is not None and len(self.custom_data) > MAX_CUSTOM_DATA:
            raise InvalidInput(
                f"the custom data has {len(self.custom_data)} bytes; at most {MAX_CUSTOM_DATA} fit"
            )
        if len(self.first_logon) > _MAX_COMMANDS or not all(
            command and command.isprintable() and len(command) <= 1024
            for command in self.first_logon
        ):
            raise InvalidInput(
                "a command for the first logon is one line of at most 1,024 characters"
            )

    def files(self) -> dict[str, bytes]:
        """The seed's files by name."""
        answers = self._answers()
        files = {
            "unattend.xml": answers,
            "Autounattend.xml": answers,
            "ovf-env.xml": self._environment(),
        }
        if self.custom_data is not None:
            files["CustomData.bin"] = self.custom_data
        return files

    def _answers(self) -> bytes:
        root = ET.Element("unattend", {"xmlns": _UNATTEND, "xmlns:wcm": _WCM})
        specialize = ET.SubElement(root, "settings", {"pass": "specialize"})
        shell = _component(specialize, "Microsoft-Windows-Shell-Setup")
        _fill(shell, {"ComputerName": self.computer_name, **self._zone()})
        _remote_desktop(specialize)
        if self.custom_data is not None:
            deployment = _component(specialize, "Microsoft-Windows-Deployment")
            _commands(deployment, "RunSynchronous", "RunSynchronousCommand", "Path", [_COPY])
        oobe = ET.SubElement(root, "settings", {"pass": "oobeSystem"})
        shell = _component(oobe, "Microsoft-Windows-Shell-Setup")
        skipped = ("HideEULAPage", "HideOnlineAccountScreens", "HideWirelessSetupInOOBE")
        pages = dict.fromkeys(skipped, "true") | {"ProtectYourPC": "3"}
        _fill(ET.SubElement(shell, "OOBE"), pages)
        _fill(shell, self._zone())
        self._accounts(ET.SubElement(shell, "UserAccounts"))
        if self.first_logon:
            names = ("FirstLogonCommands", "SynchronousCommand", "CommandLine")
            _commands(shell, *names, self.first_logon)
        return _document(root)

    def _accounts(self, accounts: ET.Element) -> None:
        administrator = ET.SubElement(accounts, "AdministratorPassword")
        _fill(administrator, _hidden(self.password, "AdministratorPassword"))
        local = ET.SubElement(accounts, "LocalAccounts")
        account = ET.SubElement(local, "LocalAccount", {"wcm:action": "add"})
        _fill(ET.SubElement(account, "Password"), _hidden(self.password, "Password"))
        _fill(account, {"Group": "Administrators", "Name": self.admin_user})

    def _environment(self) -> bytes:
        root = ET.Element("Environment", {"xmlns": _OVF, "xmlns:wa": _AZURE})
        section = ET.SubElement(root, "wa:ProvisioningSection")
        _fill(section, {"wa:Version": "1.0"})
        kind = "WindowsProvisioningConfiguration"
        given = ET.SubElement(section, f"{kind}Set", {"xmlns": _AZURE})
        _fill(given, {"ConfigurationSetType": kind, "ComputerName": self.computer_name})
        _fill(given, {"AdminPassword": self.password, "AdminUsername": self.admin_user})
        _fill(given, {"ResetPasswordOnFirstLogon": "false", "EnableAutomaticUpdates": "false"})
        _fill(given, self._zone())
        ET.SubElement(given, "StoredCertificateSettings")
        if self.custom_data is not None:
            _fill(given, {"CustomData": base64.b64encode(self.custom_data).decode("ascii")})
        platform = ET.SubElement(root, "wa:PlatformSettingsSection")
        _fill(platform, {"wa:Version": "1.0"})
        settings = ET.SubElement(platform, "PlatformSettings", {"xmlns": _AZURE})
        _fill(settings, {"ProvisionGuestAgent": "false", "PreprovisionedVm": "false"})
        return _document(root)

    def _zone(self) -> dict[str, str]:
        return {"TimeZone": tz_win[self.timezone]} if self.timezone else {}


def check_user(name: str) -> None:
    """Refuse what cannot be the name of a local account.

    Raises:
        InvalidInput: with the reason.
    """
    sane = 1 <= len(name) <= 20 and name.isprintable() and not _NO_USER.search(name)
    if not sane or name.endswith(".") or name != name.strip() or name.casefold() in _RESERVED:
        raise InvalidInput(
            f"{name!r} cannot be the name of a Windows account",
            hint='1 to 20 characters, none of "/\\[]:;|=,+*?<>@, no dot at the end, not a built-in one',
        )


def check_password(password: str) -> None:
    """Refuse a password that Windows' rules, or Azure's, would not take.

    Raises:
        InvalidInput: with the rules; the password itself is not repeated.
    """
    kinds = {_kind(sign) for sign in password}
    if not _SHORTEST <= len(password) <= _LONGEST or not password.isprintable() or len(kinds) < 3:
        raise InvalidInput(
            "the password is not one that Windows takes",
            hint=f"{_SHORTEST} to {_LONGEST} characters, of three kinds at least: small and capital "
            "letters, digits, others",
        )


def _kind(sign: str) -> str:
    category = unicodedata.category(sign)
    return {"Ll": "small", "Lu": "capital", "Nd": "digit"}.get(category, "other")


def build_windows_seed(path: Path, provisioning: WindowsProvisioning) -> None:
    """Write the seed of ``provisioning`` to ``path`` (mode 0600; in one step, synced)."""
    iso: Any = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, udf="2.60", vol_ident="calotype")
    for number, (name, data) in enumerate(provisioning.files().items()):
        iso.add_fp(
            io.BytesIO(data),
            len(data),
            iso_path=f"/F{number:07d}.;1",
            joliet_path=f"/{name}",
            udf_path=f"/{name}",
        )
    image = io.BytesIO()
    iso.write_fp(image)
    iso.close()
    write_private(path, image.getvalue())


# XML: all text goes through the library, which escapes it.


def _document(root: ET.Element) -> bytes:
    body: bytes = ET.tostring(root, encoding="utf-8")
    return b'<?xml version="1.0" encoding="utf-8"?>\n' + body


def _fill(parent: ET.Element, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        ET.SubElement(parent, name).text = text


def _component(settings: ET.Element, name: str) -> ET.Element:
    attributes = {
        "name": name,
        "processorArchitecture": "amd64",
        "publicKeyToken": "31bf3856ad364e35",
        "language": "neutral",
        "versionScope": "nonSxS",
    }
    return ET.SubElement(settings, "component", attributes)


def _commands(
    parent: ET.Element, group: str, name: str, field: str, commands: Sequence[str]
) -> None:
    outer = ET.SubElement(parent, group)
    for number, command in enumerate(commands, 1):
        inner = ET.SubElement(outer, name, {"wcm:action": "add"})
        _fill(inner, {"Order": str(number), field: command})


def _remote_desktop(settings: ET.Element) -> None:
    """Let the administrator in by RDP, as Azure does; the host forwards no port of itself."""
    session = _component(settings, "Microsoft-Windows-TerminalServices-LocalSessionManager")
    _fill(session, {"fDenyTSConnections": "false"})
    firewall = _component(settings, "Networking-MPSSVC-Svc")
    groups = ET.SubElement(firewall, "FirewallGroups")
    attributes = {"wcm:action": "add", "wcm:keyValue": "RemoteDesktop"}
    group = ET.SubElement(groups, "FirewallGroup", attributes)
    _fill(group, {"Active": "true", "Group": "@FirewallAPI.dll,-28752", "Profile": "all"})


def _hidden(password: str, element: str) -> dict[str, str]:
    """A password as Windows' own tools write it: encoded, which hides nothing and breaks nothing."""
    encoded = base64.b64encode((password + element).encode("utf-16-le")).decode("ascii")
    return {"Value": encoded, "PlainText": "false"}
