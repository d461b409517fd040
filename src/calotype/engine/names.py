"""What users may call things."""

import re
from uuid import uuid4

from calotype.errors import InvalidInput

_RESOURCE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9_])?")
_PRINCIPAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._:+/-]{0,127}")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_MAX_VCPUS = 255  # of QEMU's machine without an IOMMU
_MIN_MEMORY = 16 << 20
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
#: Names that every Linux distribution already gives to somebody else, and Azure refuses too.
_RESERVED = frozenset(
    {
        *("root", "admin", "administrator", "guest", "test", "user1", "user2"),
        *("daemon", "bin", "sys", "sync", "games", "man", "lp", "mail", "news", "uucp", "proxy"),
        *("www-data", "backup", "list", "irc", "nobody", "sshd", "messagebus", "systemd-network"),
    }
)


def new_id() -> str:
    """A fresh id for a resource (UUID 4)."""
    return str(uuid4())


def resource(name: str, what: str) -> str:
    """``name`` if it can name an image, VM or disk.

    Raises:
        InvalidInput: it cannot.
    """
    if not _RESOURCE.fullmatch(name):
        raise InvalidInput(
            f"'{name}' cannot name {what}",
            hint="1 to 64 letters, digits, '.', '_' and '-', starting with a letter or digit",
        )
    return name


def admin_user(name: str) -> str:
    """``name`` if it can be a VM's admin user.

    Raises:
        InvalidInput: it cannot, or belongs to the system.
    """
    if not _USER.fullmatch(name):
        raise InvalidInput(
            f"'{name}' cannot be a user name",
            hint="up to 32 lower-case letters, digits, '_' and '-', starting with a letter",
        )
    if name in _RESERVED:
        raise InvalidInput(
            f"the user name '{name}' is reserved", hint="choose another, as on Azure"
        )
    return name


def principal(name: str) -> str:
    """``name`` if it can be that of somebody, or something, that has roles.

    Raises:
        InvalidInput: it cannot.
    """
    if not _PRINCIPAL.fullmatch(name):
        raise InvalidInput(
            f"'{name}' cannot be a principal",
            hint="1 to 128 letters, digits, and any of @ . _ : + / - (not in the first place)",
        )
    return name


def computer_name(name: str) -> str:
    """``name`` if it can be a host name.

    Raises:
        InvalidInput: it cannot.
    """
    if not _HOST.fullmatch(name):
        raise InvalidInput(
            f"'{name}' cannot be a host name",
            hint="letters, digits and '-', at most 63, not at either end; set --computer-name",
        )
    return name


def vm_size(vcpus: int | None, memory: int | None) -> None:
    """Refuse processors and memory (bytes) that no VM can have; ``None`` is not yet chosen.

    Raises:
        InvalidInput: a VM cannot have so many, or so few.
    """
    if vcpus is not None and not 1 <= vcpus <= _MAX_VCPUS:
        raise InvalidInput(f"a VM cannot have {vcpus} processors", hint=f"1 to {_MAX_VCPUS}")
    if memory is not None and memory < _MIN_MEMORY:
        raise InvalidInput(f"a VM cannot have {memory} bytes of memory", hint="16M or more")
