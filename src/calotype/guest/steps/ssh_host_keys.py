"""SSH host keys: each clone makes its own at its first start.

Keys that the server's configuration has elsewhere go with the lines that name them: what makes new keys makes
them in the usual place.
"""

from collections.abc import Iterator

from calotype.guest.accounts import edit_lines
from calotype.guest.guest import Guest, Tree, glob
from calotype.guest.sshd import Setting, parsed, settings
from calotype.guest.steps.step import Concern, SysprepStep, tells

_USUAL = (
    "/etc/ssh/ssh_host_*",
    "/usr/local/etc/ssh/ssh_host_*",
    "/etc/dropbear/dropbear_*_host_key*",
    "/etc/dropbear/*_host_key*",
    "/etc/dropbear-initramfs/dropbear_*_host_key*",
    "/etc/dropbear/initramfs/dropbear_*_host_key*",
    "/etc/tinyssh/sshkeydir/*",
)
_NAMING = ("hostkey", "hostcertificate")
_USUAL_NAME = "/etc/ssh/ssh_host_"
_LONGEST = 1 << 16  # bytes of a key
_PRIVATE = b" PRIVATE KEY-----"
_PUBLIC = (b"ssh-", b"ecdsa-", b"sk-")


def perform(guest: Guest) -> None:
    """Remove the keys, and the lines that name them elsewhere."""
    for path in list(_usual(guest)):
        guest.remove(path)
    elsewhere = list(_elsewhere(guest))
    for path in dict.fromkeys(setting.path for setting, _ in elsewhere):
        edit_lines(guest, path, lambda line: None if _names_one(guest, line) else line)
    for setting, _ in elsewhere:
        for path in _files(guest, setting.words[0]):
            real = guest.real(path)
            guest.remove(path)
            if real is not None:
                guest.remove(real)


def check(guest: Tree) -> list[str]:
    """Keys that are there."""
    left = [f"{path} is there" for path in _usual(guest) if tells(guest, path)]
    return left + [f"{path} is a host key" for _, path in _elsewhere(guest)]


def _usual(guest: Tree) -> Iterator[str]:
    for pattern in _USUAL:
        yield from list(glob(guest, pattern))


def _elsewhere(guest: Tree) -> Iterator[tuple[Setting, str]]:
    """Settings that name a key in another place, and the key."""
    for setting in settings(guest):
        if setting.key in _NAMING and _is_elsewhere(setting.words[0]):
            for path in _files(guest, setting.words[0])[:1]:
                yield setting, path


def _names_one(guest: Tree, line: str) -> bool:
    words = parsed(line)
    named = words and words[0].lower() in _NAMING and _is_elsewhere(words[1])
    return bool(named and _files(guest, words[1]))


def _is_elsewhere(path: str) -> bool:
    return path.startswith("/") and not path.startswith(_USUAL_NAME)


def _files(guest: Tree, path: str) -> list[str]:
    """The key at a path and its public half; nothing where something else stands."""
    names = (path, f"{path}.pub", f"{path}-cert.pub")
    return [name for name in names if _is_key(guest.read(name, _LONGEST) or b"")]


def _is_key(content: bytes) -> bool:
    return _PRIVATE in content or content.startswith(_PUBLIC)


STEP = SysprepStep(
    name="ssh-host-keys",
    heading="SSH host keys of OpenSSH, Dropbear and TinySSH",
    order=200,
    concern=Concern.IDENTITY,
    perform=perform,
    check=check,
)
