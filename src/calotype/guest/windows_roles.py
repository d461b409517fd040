"""The server roles of Windows, and whether Sysprep leaves them working.

The source is Microsoft's page "Sysprep Support for Server Roles" (Windows Hardware Developer documentation,
``windows-hardware/manufacture/desktop/sysprep-support-for-server-roles``). Its columns are Windows Server
2008, 2008 R2 and 2012; it names no later system, and we take its last column for those. Only roles that it
does not support in some column stand here.
"""

from typing import NamedTuple

_R2, _2012 = 7600, 9200  # the builds that the second and the third column begin with


class Role(NamedTuple):
    """A server role: its name, its components for Server Manager, and what only it brings as a service.

    ``support`` has the table's three columns. ``identity``: its own identity would be every clone's.
    """

    name: str
    components: frozenset[str]
    services: frozenset[str]
    support: tuple[bool, bool, bool]
    identity: bool = True
    cure: str = "remove the role, and add it in each clone"

    def is_supported(self, build: int) -> bool:
        """Whether Sysprep supports it on a system of this build."""
        return self.support[(build >= _R2) + (build >= _2012)]


def _names(*names: str) -> frozenset[str]:
    return frozenset(name.casefold() for name in names)


_NEVER = (False, False, False)

ROLES = (
    Role(
        "Active Directory Certificate Services",
        _names("AD-Certificate", "ADCS-Cert-Authority"),
        _names("CertSvc"),
        _NEVER,
    ),
    Role(
        "Active Directory Domain Services",
        _names("AD-Domain-Services"),
        _names(),  # every Windows has the service NTDS
        _NEVER,
    ),
    Role(
        "Active Directory Federation Services",
        _names("AD-Federation-Services", "ADFS-Federation"),
        _names("adfssrv"),
        _NEVER,
    ),
    Role(
        "Active Directory Lightweight Directory Services",
        _names("ADLDS"),
        _names(),  # one service for each instance, of any name
        _NEVER,
    ),
    Role(
        "Active Directory Rights Management Services",
        _names("ADRMS", "ADRMS-Server"),
        _names(),
        _NEVER,
    ),
    Role("Fax Server", _names("Fax"), _names(), _NEVER, identity=False),
    Role("DHCP Server", _names("DHCP"), _names("DHCPServer"), (True, False, False), identity=False),
    Role(
        "File and Storage Services",
        _names("FileAndStorage-Services", "File-Services"),
        _names(),
        (False, True, True),
        identity=False,
    ),
)

#: Supported, but for a part of it.
HYPER_V = Role(
    "Hyper-V",
    _names("Hyper-V"),
    _names(),
    (True, True, True),
    identity=False,
    cure="remove its virtual networks: Sysprep does not support those",
)
