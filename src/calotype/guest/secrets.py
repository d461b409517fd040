"""Secrets of applications: found and named by path, never read out and never removed unasked."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from calotype.guest.guest import Stat, Tree, glob, walk


class Secret(NamedTuple):
    """A file that looks as if it held a secret of an application."""

    kind: str
    path: str


_FOR_CLONES = "keys or passwords that cloud-init gives to every clone"
_KINDS = (
    (
        "TLS private key",
        ("/etc/ssl/private/*", "/etc/pki/tls/private/*", "/etc/letsencrypt/live/*"),
    ),
    ("WireGuard configuration", ("/etc/wireguard/*",)),
    ("OpenVPN or IPsec secret", ("/etc/openvpn/*.key", "/etc/ipsec.secrets", "/etc/swanctl/*/*")),
    ("Kerberos keytab", ("/etc/krb5.keytab", "/etc/*.keytab", "/var/lib/*/*.keytab")),
    ("Kubernetes configuration", ("/etc/kubernetes/*.conf", "/etc/rancher/*/*.yaml")),
    ("environment", ("/etc/environment",)),
    ("package repository credentials", ("/etc/apt/auth.conf", "/etc/apt/auth.conf.d/*")),
    (
        "mount credentials",
        ("/etc/cifs-credentials", "/etc/*.smbcredentials", "/etc/davfs2/secrets"),
    ),
    ("mail relay credentials", ("/etc/postfix/sasl_passwd*", "/etc/exim4/passwd.client")),
    ("web server passwords", ("/etc/*/.htpasswd", "/etc/*/htpasswd")),
    ("disk encryption key", ("/etc/cryptsetup-keys.d/*", "/crypto_keyfile.bin")),
    ("Wi-Fi password", ("/etc/wpa_supplicant/*.conf",)),
    ("key of snapd's device", ("/var/lib/snapd/device/private-keys-v1/*",)),
    ("machine account of Samba", ("/var/lib/samba/private/secrets.tdb", "/etc/samba/secrets.tdb")),
    (_FOR_CLONES, ("/etc/cloud/cloud.cfg", "/etc/cloud/cloud.cfg.d/*.cfg")),
    ("cloud or service credentials", ("/etc/boto.cfg", "/etc/google/auth/*.json")),
)
#: Names that give away a secret, wherever a tree below is concerned.
_NAMES = {
    "credentials": "cloud or service credentials",
    ".netrc": "network passwords",
    ".pgpass": "database password",
    ".my.cnf": "database password",
    ".git-credentials": "Git password",
    ".env": "environment of an application",
    "kubeconfig": "Kubernetes configuration",
    ".vault-token": "Vault token",
    "terraform.tfstate": "Terraform state",
    ".npmrc": "package repository credentials",
    ".pypirc": "package repository credentials",
    "config.json": "Docker credentials",
    "config": "Kubernetes configuration",
}
#: Names that count only in a directory of this name.
_ONLY_IN = {"credentials": ".aws", "config.json": ".docker", "config": ".kube"}
_TREES = ("/etc", "/root", "/opt", "/srv", "/usr/local/etc", "/var/www", "/var/lib/secrets")
#: Keys that every installation of a package has, or that say nothing.
_PUBLIC = (
    "/etc/ssl/certs/",
    "/etc/ssh/ssh_host_",
    "/etc/apt/trusted",
    "/etc/apt/keyrings",
    "/etc/pki/rpm-gpg",
    "/etc/ssl/openssl.cnf",  # an example
    "/etc/pki/tls/openssl",
)
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
#: A setting whose name tells; its value is given here, and is no path and no variable.
_SETTING = re.compile(
    rb"""^[ \t]*(?:export[ \t]+|set[ \t]+|Environment=)?["']?[\w.-]*"""
    rb"""(?:password|passwd|passphrase|secret|api[_-]?key|token)["']?"""
    rb"""[ \t]*[=:][ \t]*["']?[^\s"'$%(<{*/][^\s"'$%(<{*]{7,}""",
    re.IGNORECASE | re.MULTILINE,
)
#: Settings of cloud-init that open an account of each clone, or are its host keys.
_GIVEN = re.compile(
    rb"""^[^#\n]*\b(?:ssh[-_]authorized[-_]keys|ssh_keys|(?:hashed_|plain_text_)passwd|passwd|chpasswd|password)"""
    rb"""["']?[ \t]*:(?![ \t]*(?:\[\]|""|''|~|null|false)?[ \t]*(?:\#.*)?(?:\n(?![ \t-])|\Z))""",
    re.MULTILINE,
)
_LARGEST_KEY = 1 << 16
_MOST = 1000
_WALKED = 200_000  # names: a tree of more is looked at in part


def secrets(guest: Tree, trees: Sequence[str] = _TREES) -> list[Secret]:
    """What looks like a secret of an application, by path, at most 1,000 of them.

    Args:
        guest: the guest, or a data disk.
        trees: directories to walk; what is elsewhere is found in its known places only.
    """
    found: dict[str, str] = {}
    for secret in _candidates(guest, trees):
        found.setdefault(secret.path, secret.kind)
        if len(found) >= _MOST:
            break
    return sorted((Secret(kind, path) for path, kind in found.items()), key=lambda s: s.path)


def _candidates(guest: Tree, trees: Sequence[str]) -> Iterator[Secret]:
    for kind, patterns in _KINDS:
        for pattern in patterns:
            for path in glob(guest, pattern):
                found = guest.stat(path)
                if found is not None and found.is_file and found.size and _says(guest, path, kind):
                    yield Secret(kind, path)
    walked = 0
    for tree in trees:
        for path, found in walk(guest, tree):
            walked += 1
            if walked > _WALKED:
                return
            if found.is_file and found.size and not path.startswith(_PUBLIC):
                yield from _judged(guest, path, found)


def _says(guest: Tree, path: str, kind: str) -> bool:
    """An environment file of nothing but the search path is no secret, nor is most of cloud-init's."""
    if kind == _FOR_CLONES:
        return _GIVEN.search(guest.read(path, _LARGEST_KEY) or b"") is not None
    if kind != "environment":
        return True
    lines = (guest.read(path, _LARGEST_KEY) or b"").splitlines()
    return any(b"=" in line and not line.startswith((b"#", b"PATH=", b"LANG=")) for line in lines)


def _judged(guest: Tree, path: str, found: Stat) -> Iterator[Secret]:
    directory, _, name = path.rpartition("/")
    kind = _NAMES.get(name)
    inside = _ONLY_IN.get(name)
    if kind and (inside is None or directory.endswith(f"/{inside}")):
        yield Secret(kind, path)
    elif found.size <= _LARGEST_KEY:
        content = guest.read(path, _LARGEST_KEY) or b""
        if _PRIVATE_KEY.search(content):
            yield Secret("private key", path)
        elif _SETTING.search(content):
            yield Secret("password or token in a configuration", path)
