"""The seed: a small ISO 9660 image that tells a generalized guest who it is.

It is a NoCloud seed (volume id ``cidata``), read by cloud-init or by a few lines of shell. Its
files, at the root, with Rock Ridge and Joliet names:

``meta-data``
    YAML, one key on each line: ``instance-id: "ID"`` and ``local-hostname: "NAME"``.
``user-data``
    MIME for cloud-init; see :mod:`calotype.machine.userdata`.
``calotype.env``
    The same for a shell, to be read by ``. /mnt/calotype.env``: one ``KEY=value`` on each line,
    quoted for a POSIX shell. All keys are always present, empty when not asked for:
    ``INSTANCE_ID``, ``HOSTNAME``, ``ADMIN_USER``, ``PASSWORD_HASH`` (crypt(3); empty: the password
    is locked), ``TIMEZONE``, ``LOCALE``.
``authorized_keys``
    The admin user's SSH public keys, one on each line; empty when there are none.
``custom-data``
    The custom data byte by byte; absent when there is none. A guest without cloud-init runs it as
    root when it starts with ``#!``, and else stores it as ``/var/lib/waagent/CustomData``
    (mode 0600).

A guest provisions itself once for each instance id. Specialized guests get no seed.
"""

import base64
import binascii
import io
import re
import shlex
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pycdlib

from calotype.disk.durable import write_private
from calotype.errors import InvalidInput
from calotype.machine.userdata import user_data
from calotype.run import Limits, run

#: The longest custom data in bytes (Azure's limit).
MAX_CUSTOM_DATA = 65_535

_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}")
_LOCALE = re.compile(r"[A-Za-z]{1,8}([_.@-][A-Za-z0-9-]{1,16}){0,3}")
_INSTANCE = re.compile(r"[A-Za-z0-9-]{1,64}")
_HASH = re.compile(r"\$(6|5|y|2b|gy)\$[A-Za-z0-9./$=,+-]{8,200}")
_KEY = re.compile(r"(?P<kind>[a-z0-9@.-]+) (?P<blob>[A-Za-z0-9+/]+={0,2})( [^\x00-\x1f\x7f]*)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Provisioning:
    """Who a new VM is to be; checked when it is made.

    ``ssh_keys`` are public keys as in ``authorized_keys``, without options. ``password_hash`` is
    made by :func:`hash_password`. ``None`` leaves what the image says.

    Raises:
        InvalidInput: a value that no guest could take, or that could be read as something else.
    """

    instance_id: str
    hostname: str
    admin_user: str | None = None
    ssh_keys: Sequence[str] = ()
    password_hash: str | None = None
    timezone: str | None = None
    locale: str | None = None
    custom_data: bytes | None = None

    def __post_init__(self) -> None:
        _check(_INSTANCE, self.instance_id, "an instance id", "letters, digits and hyphens")
        _check(_HOSTNAME, self.hostname, "a computer name", "1 to 63 letters, digits and hyphens")
        if self.hostname.isdigit():
            raise InvalidInput(
                f"a computer name of digits alone is read as an address: {self.hostname}"
            )
        if self.admin_user is not None:
            _check(
                _USER, self.admin_user, "a user name", "small letters, digits, _ and -; at most 32"
            )
            if self.admin_user == "root":
                raise InvalidInput("the admin user cannot be root", hint="choose another name")
        elif self.ssh_keys or self.password_hash:
            raise InvalidInput("SSH keys and a password need an admin user")
        _check(_ZONE, self.timezone, "a time zone", "a name such as Europe/Berlin")
        _check(_LOCALE, self.locale, "a locale", "a name such as en_US.UTF-8")
        if self.password_hash is not None and not _HASH.fullmatch(self.password_hash):
            raise InvalidInput("the password is not given as a hash of crypt(3)")
        for key in self.ssh_keys:
            check_key(key)
        if self.custom_data is not None and len(self.custom_data) > MAX_CUSTOM_DATA:
            raise InvalidInput(
                f"the custom data has {len(self.custom_data)} bytes; at most {MAX_CUSTOM_DATA} fit",
                hint="compress it with gzip, or let it fetch the rest",
            )

    def files(self) -> dict[str, bytes]:
        """The seed's files by name."""
        # In quotes, for YAML takes a bare "on" or "2026-01-01" for something else than a name.
        meta = f'instance-id: "{self.instance_id}"\nlocal-hostname: "{self.hostname}"\n'
        environment = {
            "INSTANCE_ID": self.instance_id,
            "HOSTNAME": self.hostname,
            "ADMIN_USER": self.admin_user,
            "PASSWORD_HASH": self.password_hash,
            "TIMEZONE": self.timezone,
            "LOCALE": self.locale,
        }
        lines = [f"{key}={shlex.quote(value or '')}\n" for key, value in environment.items()]
        files = {
            "meta-data": meta.encode(),
            "user-data": user_data(self._defaults(), self._user(), self.custom_data),
            "calotype.env": "".join(lines).encode(),
            "authorized_keys": "".join(f"{key.strip()}\n" for key in self.ssh_keys).encode(),
        }
        if self.custom_data is not None:
            files["custom-data"] = self.custom_data
        return files

    def _defaults(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "preserve_hostname": False,
            "manage_etc_hosts": "localhost",  # so that sudo can resolve its own host
            "disable_root": True,
            "ssh_deletekeys": True,
            "ssh_pwauth": self.password_hash is not None,
            "locale": self.locale or False,  # False: keep the image's; generating one takes minutes
            "growpart": {"mode": "auto", "devices": ["/"]},
            "resize_rootfs": True,
        }
        if self.timezone:
            config["timezone"] = self.timezone
        return config

    def _user(self) -> dict[str, Any] | None:
        if self.admin_user is None:
            return None
        user: dict[str, Any] = {
            "name": self.admin_user,
            "gecos": self.admin_user,
            "shell": "/bin/bash",
            "sudo": ["ALL=(ALL) NOPASSWD:ALL"],
            "lock_passwd": self.password_hash is None,
            "ssh_authorized_keys": [key.strip() for key in self.ssh_keys],
        }
        if self.password_hash:
            user["hashed_passwd"] = self.password_hash  # set even if the user exists already
        return user


def build_seed(path: Path, provisioning: Provisioning) -> None:
    """Write the seed of ``provisioning`` to ``path`` (mode 0600; in one step, synced)."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for number, (name, data) in enumerate(provisioning.files().items()):
        iso.add_fp(
            io.BytesIO(data),
            len(data),
            iso_path=f"/F{number:07d}.;1",
            rr_name=name,
            joliet_path=f"/{name}",
        )
    image = io.BytesIO()
    iso.write_fp(image)
    iso.close()
    write_private(path, image.getvalue())


def hash_password(password: str) -> str:
    """The SHA-512 crypt(3) hash of ``password``, with a fresh salt, made on this host.

    Raises:
        InvalidInput: an empty password, one of more than 128 bytes or with control characters.
    """
    if not password or len(password.encode()) > 128 or not password.isprintable():
        raise InvalidInput("a password has 1 to 128 bytes and no control characters")
    answer = run(
        ["openssl", "passwd", "-6", "-stdin"],
        data=password.encode() + b"\n",
        limits=Limits(wall=30),
    )
    return answer.stdout.decode("ascii").strip()


def check_key(key: str) -> None:
    """Refuse what is not one SSH public key on one line, without options.

    Raises:
        InvalidInput: with the reason; the key itself is not repeated.
    """
    if "PRIVATE KEY" in key:
        raise InvalidInput(
            "that is a private key", hint="give the public one: the file ending in .pub"
        )
    match = _KEY.fullmatch(key.strip())
    if match is None:
        raise InvalidInput(
            "an SSH public key reads: type, base64, comment; on one line, no options"
        )
    try:
        blob = base64.b64decode(match["blob"], validate=True)
        (length,) = struct.unpack_from(">I", blob)
    except (binascii.Error, struct.error) as error:
        raise InvalidInput("the SSH public key is damaged") from error
    if blob[4 : 4 + length] != match["kind"].encode() or len(blob) < length + 8:
        raise InvalidInput(f"the SSH public key is damaged: it does not hold a {match['kind']} key")


def _check(pattern: re.Pattern[str], value: str | None, what: str, allowed: str) -> None:
    if value is not None and not pattern.fullmatch(value):
        raise InvalidInput(f"{value!r} cannot be used as {what}", hint=f"allowed: {allowed}")
