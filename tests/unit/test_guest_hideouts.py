"""Machines that look general: identity and credentials in the less usual places, and what is no such thing."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests import roots
from tests.roots import Root

from calotype.disk.view import RawSource, writable
from calotype.guest import Proof, generalize
from calotype.guest.offline import ExtGuest
from calotype.guest.proof import prove_disk
from calotype.model import Verdict

SIZE = 24 << 20
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nYmxh\n-----END OPENSSH PRIVATE KEY-----\n"
PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 bob@laptop\n"
Change = Callable[[Root], None]


def append(path: str, more: str) -> Change:
    def change(root: Root) -> None:
        old = root.entries[path]
        root.file(path, (old.content or b"") + more.encode(), old.mode, old.uid, old.gid)

    return change


def replace(path: str, old: str, new: str) -> Change:
    def change(root: Root) -> None:
        entry = root.entries[path]
        content = (entry.content or b"").decode()
        assert old in content
        root.file(path, content.replace(old, new), entry.mode, entry.uid, entry.gid)

    return change


def file(path: str, content: str, mode: int = 0o600) -> Change:
    return lambda root: root.file(path, content, mode)


def both(*changes: Change) -> Change:
    def change(root: Root) -> None:
        for one in changes:
            one(root)

    return change


def laid_out(tmp_path: Path, family: str, change: Change) -> Path:
    root = roots.lay_out(family, "fresh")
    change(root)
    root.ext4(tmp_path / "root.raw", SIZE)
    return tmp_path / "root.raw"


def proof_of(path: Path) -> Proof:
    with closing(RawSource(path).open()) as disk:
        return prove_disk(disk)


#: What is hidden -> (how, the step that finds it). Generalizing must take each of them away.
HIDDEN: dict[str, tuple[Change, str]] = {
    "an account without a password in passwd itself": (
        replace("/etc/passwd", "root:x:0", "root::0"),
        "passwords",
    ),
    "an account without a password in shadow's old short form": (
        replace("/etc/shadow", "root:*:19600:0:99999:7:::", "root::19600:0:99999"),
        "passwords",
    ),
    "a person without a shell": (
        append("/etc/passwd", "alice:x:1000:1000:A:/srv/alice\n"),
        "users",
    ),
    "a person whose id has a space before it": (
        append("/etc/passwd", "alice:x: 1000:1000:A:/srv/alice:/bin/sh\n"),
        "users",
    ),
    "a person with a vertical tab in the name": (
        append("/etc/passwd", "alice:x:1000:1000:A\x0bB:/srv/alice:/bin/sh\n"),
        "users",
    ),
    "a person with a high id": (
        append("/etc/passwd", "alice:x:100001:100001:A:/home/alice:/bin/sh\n"),
        "users",
    ),
}


@pytest.mark.parametrize("what", HIDDEN)
def test_what_is_hidden_is_found_and_removed(what: str, tmp_path: Path) -> None:
    change, step = HIDDEN[what]
    path = laid_out(tmp_path, "debian", change)
    proof = proof_of(path)
    assert proof.verdict is Verdict.MIXED
    assert [f.step for f in proof.findings if f.step == step], proof.reasons
    with writable(RawSource(path), tmp_path / "overlay", tmp_path) as view:
        generalize(view)
    with closing(view.disk()) as disk:
        assert prove_disk(disk).verdict is Verdict.GENERALIZED


@pytest.mark.parametrize("word", ["!locked", "*LK*", "!!", "!*", "*NP*", "x", "!x"])
def test_a_lock_is_no_password(word: str, tmp_path: Path) -> None:
    path = laid_out(tmp_path, "alma", replace("/etc/shadow", "root:!!:", f"root:{word}:"))
    assert proof_of(path).verdict is Verdict.GENERALIZED


@pytest.mark.parametrize(
    "secret", ["$y$j9T$a$b", "!$6$a$b", "!ab1234567890A", "_J9..rasmBYk8r9AiWNc"]
)
def test_a_hash_is_a_password(secret: str, tmp_path: Path) -> None:
    path = laid_out(tmp_path, "alma", replace("/etc/shadow", "root:!!:", f"root:{secret}:"))
    assert proof_of(path).reasons == ("passwords: /etc/shadow has a password of root",)


def test_lines_end_where_the_guest_ends_them(tmp_path: Path) -> None:
    """A form feed ends a line for Python alone: half of a row would go, and the other half stay."""
    row = "www:x:990:990:A\x0cB\u2028C:/srv/www:/bin/sh\n"
    change = both(append("/etc/passwd", row + "alice:x:1000:1000::/home/alice:/bin/sh\n"))
    path = laid_out(tmp_path, "debian", change)
    with writable(RawSource(path), tmp_path / "overlay", tmp_path) as view:
        generalize(view)
    with closing(view.disk()) as disk:
        after = ExtGuest.on_disk(disk, 0, disk.size).read("/etc/passwd") or b""
    assert row.encode() in after
    assert b"alice" not in after
