"""What somebody between us and a publisher can try, as The Update Framework lists it: each is refused.

Every case says what was wrong, and leaves what was seen before as it was: the honest mirror goes on.
"""

import itertools
import json
import shutil

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, SSlibKey
from tests.publicly import mirroring
from tests.shop import ENDED, Shop, fresh

from calotype.engine.base import pace
from calotype.engine.community.mirror import HttpMirror
from calotype.engine.community.trusted import Tree
from calotype.errors import NotFound, StoreUnavailable, ToolFailed, Untrusted
from calotype.public import form, metadata

LOOPBACK = ["127.0.0.0/8"]
DOCUMENTS = {"packs.json": b'{"some": "packs"}'}
NEWER = {"packs.json": b'{"newer": "packs"}'}


class World:
    """A publisher, an honest mirror, and a client that has seen state 5."""

    def __init__(self, root, server):
        self.root, self.server = root, server
        self.shop = Shop(server.root)
        self.shop.publish(DOCUMENTS, number=5)
        self.pinned = (server.root / "metadata/root.json").read_bytes()
        first = self.client()
        first.refresh()
        first.document("packs.json", 1 << 20)

    def client(self, *urls):
        mirrors = [HttpMirror(url, LOOPBACK) for url in urls or (self.server.url,)]
        return Tree(self.root / "client", self.pinned, mirrors)

    def refused(self, why, error=Untrusted):
        """The client refuses what is there now; what it had stays, and goes on from an honest mirror."""
        before = self.client().document("packs.json", 1 << 20)
        with pytest.raises(error, match=why) as caught:
            self.client().refresh()
        assert self.server.url.rstrip("/") in caught.value.message.replace("/ ", " ")
        assert caught.value.hint
        assert self.client().document("packs.json", 1 << 20) == before


@pytest.fixture
def world(tmp_path):
    with mirroring(tmp_path / "tree") as server:
        yield World(tmp_path, server)


def test_an_honest_step_forward_is_taken(world):
    world.shop.publish(NEWER, number=6)
    client = world.client()
    client.refresh()
    assert client.document("packs.json", 1 << 20) == NEWER["packs.json"]
    assert client.passed_over == []


def test_arbitrary_installation(world):
    """A tree of another publisher under the same address."""
    Shop(world.server.root).publish(NEWER, number=9)
    world.refused("have not signed")


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_a_key_that_is_not_named(world, role):
    world.shop.publish(NEWER, number=6, keys={role: [fresh()]})
    world.refused("have not signed")


def test_a_key_of_another_role(world):
    world.shop.publish(NEWER, number=6, keys={"targets": world.shop.keys["timestamp"]})
    world.refused("have not signed")


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_no_signature_at_all(world, role):
    world.shop.publish(NEWER, number=6, keys={role: []})
    world.refused("have not signed")


def test_rollback_of_the_timestamp(world):
    world.shop.publish(DOCUMENTS, number=4)
    world.refused("older state")


def test_rollback_of_the_snapshot(world):
    world.shop.publish(DOCUMENTS, number=6, snapshot=4)
    world.refused("older state")


def test_rollback_of_the_targets(world):
    world.shop.publish(DOCUMENTS, number=6, targets=4)
    world.refused("older state")


def test_rollback_of_the_root(world):
    world.shop.sign_root()
    world.shop.publish(DOCUMENTS, number=6)
    world.client().refresh()
    (world.server.root / "metadata/3.root.json").write_bytes(world.pinned)
    world.refused("older state")


def test_a_root_that_is_skipped(world):
    world.shop.sign_root(version=3, at=2)
    world.refused("older state .* mixture")


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_freeze(world, role):
    world.shop.publish(NEWER, number=6, life={role: ENDED})
    world.refused("has ended")


def test_freeze_at_an_old_root(world):
    world.shop.sign_root(life=ENDED)
    world.shop.publish(NEWER, number=6)
    world.refused("has ended")


def test_a_state_that_ended_while_nobody_looked(world):
    """The mirror holds back everything: what was once right is shown for ever."""
    world.shop.publish(NEWER, number=6)
    world.client().refresh()
    world.shop.publish(NEWER, number=6, life={"timestamp": ENDED})  # time passes, here as there
    timestamp = "metadata/timestamp.json"
    shutil.copy(world.server.root / timestamp, world.root / "client" / timestamp)
    world.refused("has ended")


def test_mix_and_match_of_snapshots(world):
    world.shop.publish(NEWER, number=6)
    old = (world.server.root / "metadata/5.snapshot.json").read_bytes()
    world.shop.put("metadata/6.snapshot.json", old)
    world.refused("mixes states")


def test_mix_and_match_of_targets(world):
    world.shop.publish(NEWER, number=6)
    old = (world.server.root / "metadata/5.targets.json").read_bytes()
    world.shop.put("metadata/6.targets.json", old)
    world.refused("mixes states")


@pytest.mark.parametrize("file", ["timestamp", "6.snapshot", "6.targets", "2.root"])
def test_endless_data(world, file):
    world.shop.sign_root()
    world.shop.publish(NEWER, number=6)
    path = world.server.root / f"metadata/{file}.json"
    path.write_bytes(path.read_bytes() + b" " * (34 << 20))
    world.refused("more than was asked for|mixes states")
    assert world.server.sent < 70 << 20


def test_slow_retrieval(world, monkeypatch):
    """A server that sends just enough for no time-out to strike."""
    world.shop.publish(NEWER, number=6)
    client = world.client()
    with monkeypatch.context() as slow:
        slow.setattr(pace, "monotonic", itertools.count(0.0, 30.0).__next__)
        with pytest.raises(StoreUnavailable, match="too slow"):
            client.refresh()
    world.client().refresh()


def test_what_is_no_metadata(world):
    world.shop.put("metadata/timestamp.json", b"[" * 1000)
    world.refused("metadata that is none")
    world.shop.put("metadata/timestamp.json", b'{"signed": 1, "signatures": []}')
    world.refused("metadata that is none")


def test_metadata_of_another_kind(world):
    world.shop.publish(NEWER, number=6)
    listed = (world.server.root / "metadata/6.targets.json").read_bytes()
    world.shop.put("metadata/timestamp.json", listed)
    world.refused("metadata that is none")


def test_a_document_that_is_not_listed(world):
    """Extraneous files on a mirror are nothing: only what is signed can be asked for."""
    world.shop.put(metadata.where_of("galleries/evil-1.json", b"{}"), b"{}")
    client = world.client()
    client.refresh()
    assert client.names() == ["packs.json"]
    with pytest.raises(NotFound, match="lists no"):
        client.document("galleries/evil-1.json", 1 << 20)


@pytest.mark.parametrize(
    "change", [lambda d: d[:-1] + b"!", lambda d: d + b"!", lambda d: d[:-1], lambda _d: b""]
)
def test_a_document_of_another_length_or_content(world, change):
    world.shop.publish(NEWER, number=6)
    path = world.server.root / metadata.where_of("packs.json", NEWER["packs.json"])
    path.write_bytes(change(NEWER["packs.json"]))
    client = world.client()
    client.refresh()
    with pytest.raises(Untrusted, match=r"than was signed|sends more"):
        client.document("packs.json", 1 << 20)
    path.write_bytes(NEWER["packs.json"])
    again = world.client()
    again.refresh()
    assert again.document("packs.json", 1 << 20) == NEWER["packs.json"]


def test_a_document_that_is_signed_with_a_size_that_nobody_reads(world):
    world.shop.publish({"packs.json": b"x" * 100}, number=6)
    client = world.client()
    client.refresh()
    with pytest.raises(Untrusted, match="cannot be"):
        client.document("packs.json", 99)


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "galleries/../../x.json", "a//b", "galleries/.x", "a\0"],
)
def test_names_that_lead_out_of_the_tree(world, name):
    """The publisher itself is hostile, and signs them."""
    world.shop.publish({"packs.json": b"{}"}, number=6)
    with pytest.raises(Untrusted, match="no name of a file"):
        list(form.galleries_in([name]))


def test_keys_that_were_stolen_are_worth_nothing_after_a_rotation(world):
    stolen = dict(world.shop.keys)
    for role in ("targets", "snapshot", "timestamp"):
        world.shop.keys[role] = [fresh()]
    world.shop.sign_root()
    world.shop.publish(DOCUMENTS, number=6)
    world.client().refresh()
    world.shop.publish(NEWER, number=7, keys=stolen)
    world.refused("have not signed")
    world.shop.publish(NEWER, number=7)
    world.client().refresh()


def test_rotation_of_the_root_key_itself(world):
    old = world.shop.keys["root"]
    world.shop.keys["root"] = [fresh()]
    world.shop.sign_root([*old, *world.shop.keys["root"]])
    world.shop.publish(NEWER, number=6)
    world.client().refresh()
    # Whoever has the old key cannot go on from there.
    world.shop.keys["timestamp"] = [fresh()]
    world.shop.sign_root(old)
    world.shop.publish(NEWER, number=7)
    world.refused("have not signed")


@pytest.mark.parametrize("by", ["old", "new"])
def test_a_root_that_only_one_side_has_signed(world, by):
    old = world.shop.keys["root"]
    world.shop.keys["root"] = [fresh()]
    world.shop.sign_root(old if by == "old" else None)
    world.shop.publish(NEWER, number=6)
    world.refused("have not signed")


def test_a_root_with_the_fingerprint_of_another(world):
    """Ids of keys are only words in the file: the thief calls its own key by the publisher's id."""
    (honest,), thief = world.shop.keys["root"], fresh()
    public = SSlibKey.from_dict(honest.public_key.keyid, thief.public_key.to_dict())
    world.shop.keys["root"] = [
        CryptoSigner(load_pem_private_key(thief.private_bytes, None), public)
    ]
    forged = world.shop.sign_root()
    with pytest.raises(Untrusted, match="not the id of its key"):
        metadata.read_root(forged)


@pytest.mark.parametrize("value", ["NaN", '"\\ud800"', "1.5"])
def test_a_root_whose_keys_are_no_keys(world, value):
    (key,) = world.shop.keys["root"]
    text = world.pinned.decode().replace(f'"{key.public_key.keyval["public"]}"', value)
    with pytest.raises(Untrusted, match="does not hold"):
        metadata.read_root(text.encode())


def test_a_root_that_names_a_key_and_lacks_it(world):
    (key,) = world.shop.keys["root"]
    root = json.loads(world.pinned)
    del root["signed"]["keys"][key.public_key.keyid]
    with pytest.raises(Untrusted, match="does not hold"):
        metadata.read_root(json.dumps(root).encode())


def test_a_threshold_that_is_not_met(tmp_path):
    """Two of three must sign; a thief has one, and signs with it twice."""
    with mirroring(tmp_path / "tree") as server:
        shop = Shop(server.root, root_keys=3, threshold=2)
        shop.publish(DOCUMENTS, number=1)
        pinned = (server.root / "metadata/root.json").read_bytes()

        def client():
            return Tree(tmp_path / "client", pinned, [HttpMirror(server.url, LOOPBACK)])

        client().refresh()
        first, second, _third = shop.keys["root"]
        signed = json.loads(shop.sign_root([first]))
        with pytest.raises(Untrusted, match="have not signed"):
            client().refresh()
        signed["signatures"] *= 2
        (server.root / "metadata/2.root.json").write_text(json.dumps(signed))
        with pytest.raises(Untrusted):
            client().refresh()
        shop.root = 1
        shop.sign_root([first, second])
        client().refresh()


def test_fast_forward_is_recovered_from_by_new_keys(world):
    """A thief with the keys signs the highest number there is, so that nothing honest is newer."""
    highest = (1 << 31) - 1
    world.shop.publish(NEWER, number=highest)
    world.client().refresh()
    world.shop.publish(DOCUMENTS, number=6)
    world.refused("older state")
    for role in ("targets", "snapshot", "timestamp"):
        world.shop.keys[role] = [fresh()]
    world.shop.sign_root()
    world.shop.publish(DOCUMENTS, number=7)
    client = world.client()
    client.refresh()
    assert client.document("packs.json", 1 << 20) == DOCUMENTS["packs.json"]


def test_one_honest_mirror_is_enough(world, tmp_path):
    world.shop.publish(NEWER, number=6)
    with mirroring(tmp_path / "evil") as evil, mirroring(tmp_path / "none") as absent:
        Shop(evil.root).publish(DOCUMENTS, number=9)
        absent.faults.status = 503
        client = world.client(evil.url, absent.url, world.server.url)
        client.refresh()
        assert client.document("packs.json", 1 << 20) == NEWER["packs.json"]
        assert len(client.passed_over) >= 2
        assert evil.url in client.passed_over[0]
        assert "503" in client.passed_over[1]


def test_a_mirror_that_leads_inside_our_network_is_passed_over(world):
    """What redirects to an address that nobody may reach is a mirror's problem, and no end of the work."""
    world.shop.publish(NEWER, number=6)
    inside = HttpMirror(world.server.url)
    with pytest.raises(ToolFailed, match="not public"):
        next(inside.stream("packs/" + "0" * 64, 0, 1, 10))
    client = Tree(
        world.root / "client", world.pinned, [inside, HttpMirror(world.server.url, LOOPBACK)]
    )
    client.refresh()
    assert client.document("packs.json", 1 << 20) == NEWER["packs.json"]
    assert "does not deliver: the address 127.0.0.1 is not public" in client.passed_over[0]


def test_no_mirror_at_all(world):
    world.server.faults.status = 503
    world.refused("does not deliver", StoreUnavailable)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_the_end_of_the_chain_of_roots_is_what_is_not_there(world, status):
    """Buckets answer 403 for what is not there."""
    world.server.faults.absent = status
    world.shop.publish(NEWER, number=6)
    world.client().refresh()
    world.shop.sign_root()
    world.shop.publish(NEWER, number=7)
    world.client().refresh()
    assert "metadata/3.root.json" in world.server.asked


def test_what_protects_from_going_back_is_kept(world, tmp_path):
    kept = {path.name for path in (tmp_path / "client" / "metadata").iterdir()}
    assert {"timestamp.json", "snapshot.json", "targets.json", "root.json"} <= kept
