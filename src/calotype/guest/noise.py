"""Files whose changes say nothing of what an image is for: caches, logs, and what programs make anew."""

import re

_NOISE = {
    "byte code": r".*\.pyc|.*/__pycache__",
    "cache": r"/var/cache/.*|.*/\.cache/.*|/etc/ld\.so\.cache|/var/lib/apt/lists/.*"
    r"|/usr/share/mime/.*\.cache|.*/icon-theme\.cache|/var/lib/(dnf|yum|zypp|PackageKit)/.*"
    r"|/usr/lib/(locale/locale-archive|udev/hwdb\.bin)|/etc/udev/hwdb\.bin|/usr/share/info/dir",
    "log": r"/var/log/.*|/var/account/.*",
    "temporary": r"/tmp/.*|/var/tmp/.*|/run/.*|/var/run/.*",
    "package database": r"/var/lib/(dpkg|rpm|apt|pacman|ucf)/.*|/usr/lib/sysimage/.*|/lib/apk/db/.*"
    r"|/usr/lib/apk/db/.*|/var/db/pkg/.*|/var/backups/.*",
    "made at boot": r"/boot/initr.*|/boot/grub2?/grubenv|/lib/modules/[^/]*/modules\.[^/]*"
    r"|/usr/lib/modules/[^/]*/modules\.[^/]*|/var/lib/systemd/.*|/lost\+found",
}
_ANY = re.compile("|".join(_NOISE.values()), re.DOTALL)
_EACH = {name: re.compile(pattern, re.DOTALL) for name, pattern in _NOISE.items()}


def noise(path: str) -> str:
    """What kind of noise a path is; empty when its change may matter."""
    if not _ANY.fullmatch(path):
        return ""
    return next(name for name, pattern in _EACH.items() if pattern.fullmatch(path))
