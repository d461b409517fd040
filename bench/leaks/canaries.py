"""The canaries: what a used machine holds of itself, of its people and of its site, as byte strings to find.

Four sorts: *files* with a random word in them, *deeds* (things done in the running guest, by root or over SSH
by a person), what is *taken* from the disk after the last shutdown (keys, seeds, hashes that the guest made
itself), and *names* that provisioning gave. All words follow from `SEED`, so every run plants the same.
"""

import base64
import hashlib
from dataclasses import dataclass, field
from enum import StrEnum

SEED = b"calotype leaks 1"
HOST = "acme-web01"
MAC = "52:54:00:ac:3e:01"


class Group(StrEnum):
    """Whose a canary is; the site's own secrets are reported and stay, all others must be gone."""

    MACHINE = "machine"
    PEOPLE = "people"
    SITE = "site"


@dataclass(frozen=True, kw_only=True, slots=True)
class Canary:
    """One thing to find; it is left when any of its ``needles`` is. ``path`` is where it was put."""

    kind: str
    group: Group
    name: str
    path: str
    needles: tuple[bytes, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class File:
    """A file to write; ``%`` in the text becomes the canary's word."""

    kind: str
    group: Group
    path: str
    text: str
    owner: str = "root"


@dataclass(frozen=True, slots=True)
class Deed:
    """Something done in the guest by a shell script; ``%`` becomes the canary's word.

    ``by`` is "root"; "alice", over SSH; or "alice, typing" into an interactive shell.
    """

    kind: str
    group: Group
    name: str
    script: str
    by: str = "root"


@dataclass(frozen=True, slots=True)
class Taken:
    """A part of a file on the disk after the last shutdown.

    What ``find`` (a regular expression) matches first, or its first group; without it the bytes in the
    middle. ``also`` "hex": the bytes that the text names are an equivalent form.
    """

    kind: str
    group: Group
    path: str
    find: bytes = b""
    also: str = ""


def word(name: str) -> str:
    """The random word of a canary: 24 small letters and digits."""
    digest = hashlib.blake2b(name.encode(), key=SEED, digest_size=14).digest()
    return "cy" + base64.b32encode(digest).decode().lower().rstrip("=")[:22]


def planted(item: File | Deed) -> Canary:
    """The canary of a file or a deed."""
    name = item.path if isinstance(item, File) else item.name
    return Canary(
        kind=item.kind,
        group=item.group,
        name=name,
        path=item.path if isinstance(item, File) else "",
        needles=(word(name).encode(),),
    )


def filled(item: File | Deed) -> str:
    """The text or the script with its word."""
    text, name = (item.text, item.path) if isinstance(item, File) else (item.script, item.name)
    return text.replace("%", word(name))


def pem(label: str) -> str:
    """Something that looks like a private key, around the word."""
    filler = base64.b64encode(hashlib.sha512(label.encode()).digest() * 3).decode()
    lines = [filler[at : at + 64] for at in range(0, 192, 64)]
    body = "\n".join([lines[0], "%" + lines[1][:40], lines[2]])
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----\n"
