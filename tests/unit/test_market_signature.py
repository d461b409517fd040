"""Only what the right key signed is believed, and every refusal names what is wrong and the cure."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.market_server import key
from tests.openpgp import BORN, Signer, armor, packet

from calotype.errors import CalotypeError, InvalidInput, Untrusted
from calotype.market.signature import clearsigned, dearmored, detached

TEXT = b'{"a": 1}\n- dashes\n-----BEGIN PGP\n'


@pytest.fixture(scope="module")
def signer():
    return Signer()


@pytest.fixture(scope="module")
def stranger():
    return Signer("Stranger <stranger@example.org>")


def test_a_clearsigned_text_is_what_was_signed(signer):
    vouched = clearsigned(signer.clear(TEXT), [key(signer)], "index")
    assert vouched.text == TEXT
    assert vouched.fingerprint == signer.fingerprint
    assert vouched.signed_at == BORN + 1000


def test_what_stands_around_a_signed_text_is_not_read(signer, stranger):
    good = signer.clear(TEXT)
    for data in (
        b"evil\n" + good,
        good + b"evil\n",
        good + stranger.clear(b"evil\n"),
        good + signer.clear(b"old\n"),
    ):
        assert clearsigned(data, [key(signer)], "index").text == TEXT


def test_a_detached_signature(signer):
    vouched = detached(b"sums\n", signer.detached(b"sums\n"), [key(signer)], "SHA256SUMS")
    assert (vouched.text, vouched.fingerprint) == (b"sums\n", signer.fingerprint)


def test_a_signature_of_the_old_version(signer, stranger):
    vouched = detached(b"sums\n", signer.version3(b"sums\n"), [key(signer)], "SHA256SUMS")
    assert (vouched.fingerprint, vouched.signed_at) == (signer.fingerprint, BORN + 1000)
    for signature in (signer.version3(b"other\n"), stranger.version3(b"sums\n")):
        with pytest.raises(Untrusted):
            detached(b"sums\n", signature, [key(signer)], "SHA256SUMS")


def test_any_of_several_keys(signer, stranger):
    data = stranger.clear(TEXT)
    assert (
        clearsigned(data, [key(signer), key(stranger)], "index").fingerprint == stranger.fingerprint
    )


def test_a_second_signature_by_a_stranger_does_no_harm(signer, stranger):
    both = stranger.detached(b"x") + signer.detached(b"x")
    assert detached(b"x", both, [key(signer)], "SUMS").fingerprint == signer.fingerprint


REFUSED = {
    "changed": (lambda s, _o: detached(b"y", s.detached(b"x"), [key(s)], "SUMS"), "it was changed"),
    "changed, clearsigned": (
        lambda s, _o: clearsigned(s.clear(b"a: 1\n").replace(b"a: 1", b"a: 2"), [key(s)], "SUMS"),
        "it was changed",
    ),
    "stranger": (
        lambda s, o: detached(b"x", o.detached(b"x"), [key(s)], "SUMS"),
        "is signed by the key",
    ),
    "stranger first": (
        lambda s, o: clearsigned(o.clear(b"evil\n") + s.clear(b"x\n"), [key(s)], "SUMS"),
        "is signed by the key",
    ),
    "nothing": (lambda s, _o: detached(b"x", b"", [key(s)], "SUMS"), "has no signature of"),
    "not signed": (lambda s, _o: clearsigned(b"x\n", [key(s)], "SUMS"), "has no signature of"),
    "cut off": (
        lambda s, _o: clearsigned(s.clear(b"x\n")[:-200], [key(s)], "SUMS"),
        "has no signature of",
    ),
    "another text inside": (
        lambda s, _o: detached(b"evil", s.clear(b"x\n"), [key(s)], "SUMS"),
        "has no signature of",
    ),
    "expired signature": (
        lambda s, _o: detached(b"x", s.detached(b"x", lifetime=10), [key(s)], "SUMS"),
        "the signature has expired",
    ),
    "SHA-1": (
        lambda s, _o: detached(b"x", s.detached(b"x", hashed="sha1"), [key(s)], "SUMS"),
        "rests on a broken hash",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, signer, stranger):
    ask, words = REFUSED[case]
    with pytest.raises(Untrusted, match=words) as caught:
        ask(signer, stranger)
    assert "SUMS" in caught.value.message
    assert "nothing of it was used" in (caught.value.hint or "")


def test_an_expired_key(signer):
    old = Signer(lifetime=2000)
    with pytest.raises(Untrusted, match="the key has expired") as caught:
        detached(b"x", old.detached(b"x"), [key(old)], "SUMS")
    assert "new key" in (caught.value.hint or "")


def test_the_fingerprint_counts_and_not_the_keyring(signer, stranger):
    """A keyring with a stranger's key in it does not make the stranger a signer."""
    mixed = msgspec.structs.replace(key(signer), armored=signer.armored + stranger.armored)
    with pytest.raises(Untrusted):
        detached(b"x", stranger.detached(b"x"), [mixed], "SUMS")


@pytest.mark.parametrize(
    "text", ["", "key", armor("PRIVATE KEY BLOCK", b"x"), armor("PUBLIC KEY BLOCK", b"")]
)
def test_what_is_no_key(text):
    with pytest.raises(InvalidInput, match="no armored OpenPGP public key"):
        dearmored(text)


def hashed_key(signer):
    return b"\x99" + len(signer.public).to_bytes(2) + signer.public


def test_a_revoked_key(signer):
    revocation = signer.signature(0x20, hashed_key(signer), BORN + 500)
    first = packet(6, signer.public)
    rest = dearmored(signer.armored).removeprefix(first)
    armored = armor("PUBLIC KEY BLOCK", first + revocation + rest)
    revoked = msgspec.structs.replace(key(signer), armored=armored)
    with pytest.raises(Untrusted, match="the key was revoked"):
        detached(b"x", signer.detached(b"x"), [revoked], "SUMS")


def test_a_strangers_key_that_was_slipped_in_as_a_subkey(signer, stranger):
    """Without a binding signature, or with one that the stranger made."""
    slipped = packet(14, stranger.public)
    text = hashed_key(signer) + hashed_key(stranger)
    for binding in (
        b"",
        stranger.signature(0x18, text, BORN + 1),
        signer.signature(0x18, b"", BORN),
    ):
        block = dearmored(signer.armored) + slipped + binding
        trusted = msgspec.structs.replace(key(signer), armored=armor("PUBLIC KEY BLOCK", block))
        with pytest.raises(Untrusted):
            detached(b"x", stranger.detached(b"x"), [trusted], "SUMS")
        assert detached(b"x", signer.detached(b"x"), [trusted], "SUMS").text == b"x"


def test_an_armor_in_every_spelling(signer):
    whole = dearmored(signer.armored)
    begin, _, body = signer.armored.partition("\n\n")
    for text in (
        signer.armored.replace("\n", "\r\n"),
        f"{begin} \nComment: a key\nVersion: 1\n \t\n{body}",
        signer.armored.replace("-----END", "=AbCd\n-----END"),
        f"words around it\n{signer.armored}and more\n",
    ):
        assert dearmored(text) == whole
    assert dearmored(signer.armored * 2) == whole * 2


@pytest.mark.parametrize("filling", ["\n", " ", "A\n", "A: b\n", "=", "-----BEGIN PGP PUBLIC KEY"])
def test_an_absurd_armor_is_refused_at_once(filling):
    begin = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n"
    for text in (begin, f"{begin}\n"):
        with pytest.raises(InvalidInput, match="no armored OpenPGP public key"):
            dearmored(text + filling * 100_000)


@given(st.text(max_size=400))
def test_any_text_is_a_key_or_refused(text):
    block = f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{text}\n-----END PGP PUBLIC KEY BLOCK-----\n"
    for whole in (text, block):
        try:
            dearmored(whole)
        except CalotypeError:
            continue


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_signed_text_with_a_changed_byte_is_never_another_text(data):
    signer = Signer()
    good = bytearray(signer.clear(b"a: 1\nb: 2\n"))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))
    try:
        vouched = clearsigned(bytes(good), [key(signer)], "index")
    except CalotypeError:
        return
    assert vouched.text.split() == b"a: 1\nb: 2\n".split()
