"""OpenPGP: whether a text is its publisher's, by gpgv in the sandbox, with that publisher's keys alone.

gpgv's words for people are not read, only its status lines; and of a clearsigned file only what gpgv says was
signed. Trust in a key comes from the catalogue that names its fingerprint, from nowhere else.
"""

import binascii
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from calotype.errors import InvalidInput, Untrusted
from calotype.market.offer import Key
from calotype.run import Limits, Sandbox, run
from calotype.units import one_line

MAX_SIGNATURE = 1 << 18
_BEGIN, _END = (f"-----{word} PGP PUBLIC KEY BLOCK-----" for word in ("BEGIN", "END"))
_HASHES = frozenset(
    {8, 9, 10, 11, 12, 14}
)  # SHA-2 and SHA-3 of 224 bits and more, as RFC 9580 counts
_KEY_CURE = (
    "nothing of it was used; if the publisher has a new key, take it from them over another way "
    "and name it in a catalogue of your own, or update Calotype"
)
_CURE = "nothing of it was used; try again later or from another network, and tell the publisher"


@dataclass(frozen=True, slots=True)
class Vouched:
    """A text, and the key that vouches for it; ``None``: nobody does."""

    text: bytes
    fingerprint: str | None = None
    signed_at: int | None = None  # Unix seconds, by the signer's clock


def clearsigned(data: bytes, keys: Sequence[Key], what: str) -> Vouched:
    """The signed text inside ``data``, without anything that stands around it.

    Raises:
        Untrusted: none of ``keys`` has signed it; ``what`` names it in the message.
    """
    with _Bench(keys) as bench:
        bench.put("signed", data)
        lines = bench.gpgv("--output", "/work/text", "/work/signed")
        fingerprint, at = _signer(lines, keys, what, plaintexts=1)
        return Vouched(bench.get("text"), fingerprint, at)


def detached(data: bytes, signature: bytes, keys: Sequence[Key], what: str) -> Vouched:
    """``data``, if ``signature`` is one of it.

    Raises:
        Untrusted: none of ``keys`` has signed it; ``what`` names it in the message.
    """
    with _Bench(keys) as bench:
        bench.put("data", data)
        bench.put("signature", signature)
        lines = bench.gpgv("/work/signature", "/work/data")
        fingerprint, at = _signer(lines, keys, what, plaintexts=0)
        return Vouched(data, fingerprint, at)


def dearmored(text: str) -> bytes:
    """The keys of an armored file, as gpgv wants them.

    Raises:
        InvalidInput: it holds no armored public key.
    """
    try:
        data = b"".join(_dearmored_block(block) for block in text.split(_BEGIN)[1:])
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise InvalidInput(
            "that is no armored OpenPGP public key",
            hint="gpg --armor --export FINGERPRINT writes one",
        )
    return data


def _dearmored_block(text: str) -> bytes:
    """What stands between two lines, after the headers and a blank line, before a checksum."""
    inside, end, _rest = text.partition(_END)
    lines = [line.strip() for line in inside.splitlines()]
    if not end or lines[0]:
        raise ValueError
    body = [line for line in lines[lines.index("", 1) :] if not line.startswith("=")]
    return binascii.a2b_base64("".join(body), strict_mode=True)


class _Bench:
    """A directory that one gpgv sees, with a keyring in it."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keyring = b"".join(dearmored(key.armored) for key in keys)
        self._directory = tempfile.TemporaryDirectory(prefix="calotype-gpgv-")
        self._path = Path(self._directory.name)

    def __enter__(self) -> Self:
        self._directory.__enter__()
        self.put("keyring", self._keyring)
        return self

    def __exit__(self, *error: object) -> None:
        self._directory.cleanup()

    def put(self, name: str, data: bytes) -> None:
        (self._path / name).write_bytes(data)

    def get(self, name: str) -> bytes:
        path = self._path / name
        return path.read_bytes() if path.is_file() else b""

    def gpgv(self, *arguments: str) -> list[list[str]]:
        """The words of gpgv's status lines."""
        done = run(
            [
                "gpgv",
                "--homedir",
                "/nowhere",
                "--keyring",
                "/work/keyring",
                "--status-fd",
                "1",
                *arguments,
            ],
            sandbox=Sandbox(read_write={"/work": str(self._path)}),
            limits=Limits(wall=60, cpu=30, memory=1 << 30, file_size=128 << 20, open_files=64),
            check=False,
        )
        lines = done.stdout.decode("utf-8", "replace").splitlines()
        return [line.split()[1:] for line in lines if line.startswith("[GNUPG:] ")]


def _signer(
    lines: list[list[str]], keys: Sequence[Key], what: str, *, plaintexts: int
) -> tuple[str, int]:
    """The fingerprint that signed, and when; a second signature by a stranger's key does no harm."""
    words = [line[0] for line in lines if line]
    wanted = {key.fingerprint for key in keys}
    if "BADSIG" in words:
        raise Untrusted(f"the signature of {what} is not of this text: it was changed", hint=_CURE)
    for status in _signatures(lines):
        fault = next((_FAULTS[word] for word in status if word in _FAULTS), None)
        valid = status.get("VALIDSIG", [])
        if len(valid) < 10 or valid[9] not in wanted:
            continue
        if fault is not None:
            raise Untrusted(f"{what} is signed, but {fault} ({_spaced(valid[9])})", hint=_KEY_CURE)
        if not valid[7].isdecimal() or int(valid[7]) not in _HASHES:
            raise Untrusted(f"the signature of {what} rests on a broken hash", hint=_CURE)
        if "GOODSIG" not in status or "ERROR" in words or words.count("PLAINTEXT") != plaintexts:
            break
        return valid[9], int(valid[2]) if valid[2].isdecimal() else 0
    if strangers := sorted({s["ERRSIG"][0] for s in _signatures(lines) if s.get("ERRSIG")}):
        raise Untrusted(
            f"{what} is signed by the key {one_line(strangers[0], 40)}, not by {_named(keys)}",
            hint=_KEY_CURE,
        )
    raise Untrusted(f"{what} has no signature of {_named(keys)} that holds", hint=_CURE)


_FAULTS = {
    "EXPSIG": "the signature has expired",
    "EXPKEYSIG": "the key has expired",
    "REVKEYSIG": "the key was revoked",
}


def _signatures(lines: list[list[str]]) -> Iterator[dict[str, list[str]]]:
    """What is said of each signature: the first word of each line, and the others."""
    current: dict[str, list[str]] | None = None
    for line in lines:
        if line[:1] == ["NEWSIG"]:
            if current is not None:
                yield current
            current = {}
        elif line and current is not None:
            current[line[0]] = line[1:]
    if current is not None:
        yield current


def _named(keys: Sequence[Key]) -> str:
    return " or ".join(_spaced(key.fingerprint) for key in keys)


def _spaced(fingerprint: str) -> str:
    return " ".join(fingerprint[at : at + 4] for at in range(0, len(fingerprint), 4))
