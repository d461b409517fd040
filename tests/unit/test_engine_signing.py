"""Keys and envelopes: what was signed is believed for a key that was named, and nothing else is."""

import base64
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import SSlibKey

from calotype.config import Home
from calotype.engine.proof.signing import Keys, PublicKey, open_envelope, read_key
from calotype.errors import CalotypeError, InvalidInput, NotFound, ReportRefused

KIND = "application/vnd.in-toto+json"
PAYLOAD = b'{"_type":"https://in-toto.io/Statement/v1"}'


def keys_in(path):
    return Keys(Home(path).prepare())


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    return keys_in(tmp_path_factory.mktemp("signer"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return keys_in(tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def envelope(signer):
    return signer.sign(PAYLOAD, KIND)


def opened(envelope, *keys):
    data = envelope if isinstance(envelope, bytes) else json.dumps(envelope).encode()
    return open_envelope(data, KIND, [key.own() if isinstance(key, Keys) else key for key in keys])


def refused(envelope, *keys, match=None):
    with pytest.raises(InvalidInput, match=match) as caught:
        opened(envelope, *keys)
    return caught.value


# -- keys


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path):
    keys = keys_in(tmp_path)
    first = keys.own()
    assert keys_in(tmp_path).own() == first
    assert keys.private.stat().st_mode & 0o777 == 0o600
    assert PublicKey.parse(first.pem.encode(), "x") == first
    assert b"PRIVATE" not in first.pem.encode()


def test_two_processes_make_one_key(tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from calotype.config import Home; from calotype.engine.proof.signing import Keys\n"
        "sys.stdin.read(1); print(Keys(Home(Path(sys.argv[1]))).own().id)\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, tmp_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    ids = {child.communicate(b"x")[0] for child in children}
    assert len(ids) == 1
    assert ids == {keys_in(tmp_path).own().id.encode() + b"\n"}


def test_rotation_keeps_what_was_signed_and_destroys_the_private_key(tmp_path):
    keys = keys_in(tmp_path)
    old, envelope, private = keys.own(), keys.sign(PAYLOAD, KIND), keys.private.read_bytes()
    new = keys.rotate()
    assert new.id != old.id
    assert {key.id for key in keys.known()} == {old.id, new.id}
    assert open_envelope(envelope, KIND, keys.known()).keys == (old,)
    assert open_envelope(keys.sign(PAYLOAD, KIND), KIND, keys.known()).keys == (new,)
    secret = private.splitlines()[1]
    assert not any(secret in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    keys.forget(old.id)
    refused(envelope, *keys.known(), match="not named")
    with pytest.raises(NotFound):
        keys.forget("../../report")


def test_what_was_signed_between_two_rotations_is_still_believed(tmp_path):
    mine, theirs = keys_in(tmp_path), keys_in(tmp_path)
    ids = {mine.own().id, theirs.own().id}
    ids |= {theirs.rotate().id, mine.rotate().id}
    assert len(ids) == 3
    assert {key.id for key in keys_in(tmp_path).known()} == ids


def test_a_key_of_another_installation_can_be_trusted(tmp_path, signer, envelope):
    keys = keys_in(tmp_path / "mine")
    refused(envelope, *keys.known(), match="which you have not named")
    file = tmp_path / "signer.pem"
    file.write_text(signer.own().pem)
    keys.trust(read_key(file))
    assert open_envelope(envelope, KIND, keys.known()).keys == (signer.own(),)


def test_only_ed25519_public_keys_are_keys(tmp_path):
    private = Ed25519PrivateKey.generate()
    pem, spki = Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    wrong = {
        "rsa": rsa.generate_private_key(65537, 2048).public_key().public_bytes(pem, spki),
        "ec": ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(pem, spki),
        "private": private.private_bytes(pem, PrivateFormat.PKCS8, NoEncryption()),
        "nothing": b"",
        "noise": os.urandom(200),
    }
    for name, data in wrong.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidInput, match="key"):
            read_key(tmp_path / name)
    with pytest.raises(InvalidInput, match="cannot read"):
        read_key(tmp_path / "absent")


def test_a_spoiled_private_key_is_said_so(tmp_path):
    keys = keys_in(tmp_path)
    keys.own()
    keys.private.write_bytes(b"nothing")
    with pytest.raises(CalotypeError, match="no private key"):
        keys_in(tmp_path).own()


def test_the_key_id_is_the_librarys_and_openssl_agrees_on_the_signature(tmp_path, signer):
    private = load_pem_private_key(signer.private.read_bytes(), None)
    assert signer.own().id == SSlibKey.from_crypto(private.public_key()).keyid
    envelope = json.loads(signer.sign(PAYLOAD, KIND))
    message = b"DSSEv1 %d %s %d %s" % (len(KIND), KIND.encode(), len(PAYLOAD), PAYLOAD)
    for name, data in {
        "pae": message,
        "sig": base64.b64decode(envelope["signatures"][0]["sig"]),
        "key.pem": signer.own().pem.encode(),
    }.items():
        (tmp_path / name).write_bytes(data)
    command = "openssl pkeyutl -verify -pubin -inkey key.pem -rawin -in pae -sigfile sig"
    subprocess.run(command.split(), cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)


# -- envelopes


def test_what_was_signed_comes_back(signer, other, envelope):
    signed = opened(envelope, other, signer)
    assert signed.payload == PAYLOAD
    assert signed.keys == (signer.own(),)
    assert signed.others == ()


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_no_bit_can_flip(data, signer, envelope):
    at = data.draw(st.integers(0, len(envelope) * 8 - 1))
    changed = bytearray(envelope)
    changed[at // 8] ^= 1 << at % 8
    refused(bytes(changed), signer)


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_nothing_can_be_cut_or_put_in(data, signer, envelope):
    begin = data.draw(st.integers(0, len(envelope) - 2))
    end = data.draw(st.integers(begin + 1, len(envelope)))
    put = data.draw(st.binary(max_size=6))
    changed = envelope[:begin] + put + envelope[end:]
    try:
        same = json.loads(changed) == json.loads(envelope)
    except ValueError:
        same = False
    if not same:  # spaces may come and go
        refused(changed, signer)


@settings(deadline=None, max_examples=200)
@given(noise=st.binary(max_size=300))
def test_noise_is_no_envelope(noise, signer):
    refused(noise, signer)


def test_another_payload_under_a_right_signature(signer, envelope):
    value = json.loads(envelope)
    value["payload"] = base64.b64encode(PAYLOAD + b" ").decode()
    assert isinstance(refused(value, signer, match="changed after"), ReportRefused)


def test_another_type_under_a_right_signature(signer, envelope):
    value = json.loads(envelope) | {"payloadType": "application/vnd.in-toto+json "}
    refused(value, signer, match="does not hold")
    foreign = signer.sign(PAYLOAD, "text/plain")
    refused(foreign, signer, match="does not hold")
    refused(json.loads(foreign) | {"payloadType": KIND}, signer, match="changed after")


def test_no_signature(signer, envelope):
    refused(json.loads(envelope) | {"signatures": []}, signer, match="not signed")
    wrong: list[Any] = [None, {}, "", [None], [{}], [{"keyid": "", "sig": ""}]]
    for empty in wrong:
        refused(json.loads(envelope) | {"signatures": empty}, signer)


def test_two_signatures_one_bad(signer, other, envelope):
    value, second = json.loads(envelope), json.loads(other.sign(PAYLOAD, KIND))
    value["signatures"] += second["signatures"]
    assert len(opened(value, signer, other).keys) == 2
    assert opened(value, signer).others == (other.own().id,)
    value["signatures"][1]["sig"] = base64.b64encode(bytes(64)).decode()
    refused(value, signer, other, match="changed after")
    refused(value, other, match="changed after")
    assert opened(value, signer).others == (other.own().id,)  # nobody was asked about it


def test_one_key_signs_once(signer, envelope):
    value = json.loads(envelope)
    value["signatures"] *= 2
    refused(value, signer, match="two signatures")
    value["signatures"] *= 100
    refused(value, signer, match="too many")


def test_another_key_that_gives_itself_for_the_signers(signer, other):
    value = json.loads(other.sign(PAYLOAD, KIND))
    value["signatures"][0]["keyid"] = signer.own().id
    refused(value, signer, match="changed after")


def test_a_key_that_nobody_named(signer, other, envelope):
    error = refused(
        envelope, other, match=f"signed by key {signer.own().id}, which you have not named"
    )
    assert "--key" in error.hint
    refused(envelope, match="not named")


def test_an_envelope_does_not_bring_its_own_key_or_algorithm(signer, other, envelope):
    value = json.loads(other.sign(PAYLOAD, KIND))
    for extra in ({"key": other.own().pem}, {"alg": "none"}, {"cert": other.own().pem}):
        refused({**value, **extra}, signer, match="no DSSE")
        changed = json.loads(envelope)
        changed["signatures"][0] |= extra
        refused(changed, signer, match="form")


@pytest.mark.parametrize("length", [0, 1, 32, 63, 65, 256])
def test_signatures_of_other_algorithms(signer, envelope, length):
    value = json.loads(envelope)
    value["signatures"][0]["sig"] = base64.b64encode(bytes(length)).decode()
    refused(value, signer, match="Ed25519")


def test_one_way_to_write_the_payload(signer, envelope):
    value = json.loads(envelope)
    payload = value["payload"]
    for other_way in (
        payload + "\n",
        payload.rstrip("="),
        " " + payload,
        payload + "AA==",
        7,
        None,
    ):
        refused(value | {"payload": other_way}, signer, match="Base64")
    spare = payload.rstrip("=")
    if len(spare) % 4:  # bits that no byte has
        refused(
            value | {"payload": spare[:-1] + chr(ord(spare[-1]) + 1) + "=" * (-len(spare) % 4)},
            signer,
        )


def test_letters_that_look_alike(signer, envelope):
    value = json.loads(envelope)
    key_id = value["signatures"][0]["keyid"]
    for other_way in (key_id.upper(), key_id + "\n", "\uff11" + key_id[1:], "\u0430" + key_id[1:]):
        value["signatures"][0]["keyid"] = other_way
        refused(value, signer)
    value = json.loads(envelope)
    refused(value | {"payloadType": KIND.replace("a", "\u0430", 1)}, signer, match="does not hold")
    for other_way in (value["payload"].replace("e", "\uff45"), value["payload"] + "\u200b"):
        refused(value | {"payload": other_way}, signer, match="Base64")


def test_keys_that_come_twice_in_the_envelope(signer, envelope):
    text = envelope.decode().rstrip()
    doubled = text[:-1] + ',"payload":"e30="}'
    refused(doubled.encode(), signer, match="twice")
