"""A public tree: whole at every moment, nothing private in it, renewed, pruned, and served."""

import http.client
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
from tests.publicly import mirroring
from tests.published import a_definition, a_version, public

from calotype import wire
from calotype.config import Home
from calotype.disk.base import read
from calotype.engine.community import followed, public_tree, serve
from calotype.engine.community.mirror import HttpMirror
from calotype.engine.community.publisher import Publisher
from calotype.engine.community.serve import TreeServer
from calotype.engine.community.trusted import Tree
from calotype.engine.gallery.lifecycle import delete, turn
from calotype.errors import Conflict, InvalidInput, NotFound, Untrusted
from calotype.model import MIB, Lifecycle, Shelf, Version
from calotype.public.metadata import Lifetimes
from calotype.store import DirectoryStore, Repository, mirrors

LOOPBACK = ["127.0.0.0/8"]
FIRST, SECOND = (random.Random(n).randbytes(MIB) for n in range(2))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(mirrors, "PAUSES", (0.01,) * 6)


@pytest.fixture
def publisher(tmp_path):
    context = wire.build(home=Home(tmp_path / "publisher"))
    a_definition(context)
    a_version(context, "1.0.0", content=FIRST)
    public(context, force=True)
    yield context
    context.close()


@pytest.fixture
def tree(tmp_path, publisher):
    public_tree.export(publisher, str(tmp_path / "tree"))
    return tmp_path / "tree"


def files(tree):
    return {str(p.relative_to(tree)): p.read_bytes() for p in tree.rglob("*") if p.is_file()}


def client(tmp_path, server, publisher):
    root = Publisher(publisher.home).roots[0]
    return Tree(tmp_path / "client", root, [HttpMirror(server.url, LOOPBACK)])


def pulled(context, server, name, version):
    """The bytes of a version as a new home gets them."""
    followed.add(context, server.url, name="c", allow=LOOPBACK)
    image = followed.pull(context, name, "web", version)
    with closing(context.repository.open(image.os_disk.index)) as disk:
        return read(disk, 0, disk.size)


def public_name(publisher):
    (gallery,) = publisher.catalog.galleries.list()
    return gallery.community.public_name


def test_nothing_private_is_in_it_and_everybody_may_read_it(publisher, tree):
    held = b"".join(files(tree).values())
    private = publisher.repository.domain("default").key
    assert private not in held
    assert private.hex().encode() not in held
    assert b"PRIVATE KEY" not in held
    assert not (tree / "ledger").exists()
    assert {path.name for path in (tree / "domains").iterdir()} == {"community"}
    for path in tree.rglob("*"):
        if path.name != "tmp":
            assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644)
    for path in (publisher.home.keys / "community").rglob("*.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_reader_at_any_moment_sees_the_old_state_or_the_new_one(
    tmp_path, publisher, tree, monkeypatch
):
    """After each object that an export writes, everything that the tree shows is there."""
    a_version(publisher, "1.1.0", content=SECOND)
    name = public_name(publisher)
    seen: list[Version] = []
    real = DirectoryStore.put

    with mirroring(tree) as server:

        def put(self, key, data, **options):
            done = real(self, key, data, **options)
            if str(self.path) == str(tree):
                reader = client(tmp_path, server, publisher)
                reader.refresh()
                for target in reader.names():
                    reader.document(target, 1 << 24)
                home = wire.build(home=Home(tmp_path / f"home-{len(seen)}"))
                followed.add(home, server.url, name="c", allow=LOOPBACK)
                (gallery,) = followed.galleries(home)
                newest = gallery.images[0].latest or Version(0, 0, 0)
                image = followed.pull(home, name, "web")
                with closing(home.repository.open(image.os_disk.index)) as disk:
                    assert read(disk, 0, disk.size) == (SECOND if newest[1] else FIRST)
                seen.append(newest)
                home.close()
            return done

        monkeypatch.setattr(DirectoryStore, "put", put)
        public_tree.export(publisher, str(tree))
    assert seen == [Version(1, 0, 0)] * (len(seen) - 1) + [
        Version(1, 1, 0)
    ]  # the timestamp came last
    assert len(seen) > 5


class Killed(BaseException):
    """The export ends here, as by kill -9: nothing more happens."""


def test_an_export_that_was_killed_anywhere_is_finished_by_the_next(
    tmp_path, publisher, tree, monkeypatch
):
    a_version(publisher, "1.1.0", content=SECOND)
    real = DirectoryStore.put
    alive = {"left": 0}

    def put(self, key, data, **options):
        if str(self.path) == str(tree):
            if alive["left"] == 0:
                raise Killed
            alive["left"] -= 1
        return real(self, key, data, **options)

    monkeypatch.setattr(DirectoryStore, "put", put)
    for point in range(100):
        alive["left"] = point
        try:
            public_tree.export(publisher, str(tree))
        except Killed:
            with mirroring(tree) as server:
                reader = client(tmp_path, server, publisher)
                reader.refresh()
                assert all(reader.document(name, 1 << 24) for name in reader.names())
            continue
        break
    assert point > 8
    with mirroring(tree) as server:
        home = wire.build(home=Home(tmp_path / "home"))
        assert pulled(home, server, public_name(publisher), Version(1, 1, 0)) == SECOND
        home.close()


def test_what_is_not_needed_goes_after_its_grace(tmp_path, publisher, tree):
    a_version(publisher, "1.1.0", content=SECOND)
    turn(publisher, "gal/web/1.0.0", Lifecycle.OBSOLETE)
    before = set(files(tree))
    public_tree.export(publisher, str(tree))
    assert before <= set(files(tree))  # somebody may be reading
    done = public_tree.export(publisher, str(tree), grace=timedelta(0))
    assert done.removed > 0
    after = files(tree)
    assert len([key for key in after if key.startswith("indexes/")]) == 1
    assert len([key for key in after if key.endswith(".snapshot.json")]) == 1
    assert Repository(DirectoryStore(tree)).check().ok
    with mirroring(tree) as server:
        home = wire.build(home=Home(tmp_path / "home"))
        assert pulled(home, server, public_name(publisher), None) == SECOND
        home.close()
    # What was obsolete comes back.
    turn(publisher, "gal/web/1.0.0", Lifecycle.ACTIVE)
    again = public_tree.export(publisher, str(tree))
    assert again.read == MIB


def test_files_of_others_in_the_directory_stay(publisher, tree):
    (tree / "index.html").write_text("hello")
    public_tree.export(publisher, str(tree), grace=timedelta(0))
    public_tree.export(publisher, str(tree), grace=timedelta(0))
    assert (tree / "index.html").exists()


def test_deleted_staged_and_private_ones_are_not_there(tmp_path, publisher, tree):
    a_version(publisher, "1.1.0", content=SECOND, promoted=False)
    a_definition(publisher, gallery="secret", sku="other")
    a_version(publisher, "1.0.0", "secret/web", content=SECOND)
    delete(publisher, "gal/web/1.0.0", force=True)
    public_tree.export(publisher, str(tree))
    with mirroring(tree) as server:
        home = wire.build(home=Home(tmp_path / "home"))
        followed.add(home, server.url, name="c", allow=LOOPBACK)
        (gallery,) = followed.galleries(home)
        assert gallery.images == ()
        home.close()


def test_the_tree_of_another_publisher_is_left_alone(tmp_path, publisher, tree):
    other = wire.build(home=Home(tmp_path / "other"))
    before = files(tree)
    with pytest.raises(Conflict, match="another publisher"):
        public_tree.export(other, str(tree))
    assert files(tree) == before
    other.close()


def test_the_timestamp_alone_is_renewed(tmp_path, publisher, tree):
    with pytest.raises(NotFound, match="nothing was exported"):
        public_tree.refresh(publisher, str(tmp_path / "elsewhere"))
    short = Lifetimes(timestamp=timedelta(seconds=-1))
    public_tree.export(publisher, str(tree), lifetimes=short)
    with mirroring(tree) as server:
        with pytest.raises(Untrusted, match="has ended"):
            client(tmp_path, server, publisher).refresh()
        before = files(tree)
        done = public_tree.refresh(publisher, str(tree))
        changed = {key for key, data in files(tree).items() if before.get(key) != data}
        assert changed == {"metadata/timestamp.json"}
        assert done.expires_at > datetime.now(UTC) + timedelta(days=1)
        client(tmp_path, server, publisher).refresh()
    nearly = Lifetimes(targets=timedelta(days=3), snapshot=timedelta(days=3))
    public_tree.export(publisher, str(tree), lifetimes=nearly)
    assert any(
        "lists end" in warning for warning in public_tree.refresh(publisher, str(tree)).warnings
    )


def test_stolen_keys_are_replaced_and_followers_go_on(tmp_path, publisher, tree):
    with mirroring(tree) as server:
        reader = client(tmp_path, server, publisher)
        reader.refresh()
        keys = Publisher(publisher.home)
        fingerprint = keys.fingerprint
        stolen = {path.read_bytes() for path in keys.root_directory.parent.glob("*.pem")}
        done = keys.rotate(["targets", "snapshot", "timestamp"])
        assert done.version == 2
        assert done.fingerprint == fingerprint  # what people compare is of the root's keys
        left = {path.read_bytes() for path in keys.root_directory.parent.glob("*.pem")}
        assert not stolen & left
        with pytest.raises(Conflict, match="keys were changed"):
            public_tree.refresh(publisher, str(tree))
        public_tree.export(publisher, str(tree))
        client(tmp_path, server, publisher).refresh()


def test_root_keys_are_kept_elsewhere_and_two_must_sign(tmp_path, publisher):
    """The keys of the root leave the machine; everything but a change of keys goes on."""
    tree, safe = tmp_path / "tree", tmp_path / "safe"
    safe.mkdir()
    public_tree.export(publisher, str(tree), root_keys=3, threshold=2)
    keys = Publisher(publisher.home)
    assert keys.root.roles["root"].threshold == 2
    paths = sorted(keys.root_directory.glob("*.pem"))
    assert len(paths) == 3
    moved = [path.rename(safe / path.name) for path in paths]
    assert not public_tree.export(publisher, str(tree)).warnings
    with pytest.raises(Conflict, match="2 root keys must sign"):
        keys.rotate(["targets"], extra=moved[:1])
    assert len(keys.roots) == 1
    done = keys.rotate(["root", "timestamp"], extra=moved[1:])
    assert len(done.root_keys) == 3
    assert done.renewed == ("root", "timestamp")
    public_tree.export(publisher, str(tree))
    with mirroring(tree) as server:
        client(tmp_path, server, publisher).refresh()
    with pytest.raises(InvalidInput, match="cannot be asked for"):
        keys.rotate(["root"], root_keys=1, threshold=2)
    with pytest.raises(InvalidInput, match="no private key"):
        keys.rotate(extra=[tree / "config"])


def test_without_keys_and_after_the_end_of_the_root(tmp_path, publisher):
    keys = Publisher(publisher.home, Lifetimes(root=timedelta(seconds=-1)))
    with pytest.raises(NotFound, match="no keys"):
        keys.rotate()
    keys.create()
    with pytest.raises(Conflict, match="the root ended"):
        public_tree.export(publisher, str(tmp_path / "tree"))
    Publisher(publisher.home).rotate()
    public_tree.export(publisher, str(tmp_path / "tree"))
    (publisher.home.keys / "community").joinpath(
        next((publisher.home.keys / "community").glob("timestamp-*.pem")).name
    ).unlink()
    with pytest.raises(NotFound, match="key of the role timestamp"):
        public_tree.refresh(publisher, str(tmp_path / "tree"))


# -- the server


@pytest.fixture
def plain(tmp_path):
    """What the server takes for a tree."""
    for name in ("config", "metadata/timestamp.json"):
        (tmp_path / "plain" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plain" / name).write_text(f"this is {name}\n")
    return tmp_path / "plain"


@pytest.fixture
def server(plain):
    with serving(plain) as server:
        yield server


@contextmanager
def serving(tree):
    lines: list[str] = []
    with TreeServer(tree, "127.0.0.1", 0, lines.append) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    with closing(connection):
        connection.request(
            method, path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())


def test_a_follower_of_what_is_served(tmp_path, publisher, tree):
    home = wire.build(home=Home(tmp_path / "home"))
    with serving(tree) as server:
        assert pulled(home, server, public_name(publisher), None) == FIRST
    home.close()


def test_what_is_served(plain, server):
    body = (plain / "config").read_bytes()
    assert ask(server, "/config")[:2] == (200, body)
    assert ask(server, "/config", Range="bytes=3-7")[:2] == (206, body[3:8])
    assert ask(server, "/config", Range="bytes=3-")[1] == body[3:]
    assert ask(server, "/config", Range="bytes=3-999999")[1] == body[3:]
    status, nothing, headers = ask(server, "/config", Range="bytes=999999-")
    assert (status, nothing, headers["Content-Range"]) == (416, b"", f"bytes */{len(body)}")
    assert ask(server, "/config", Range="bytes=7-3")[0] == 416
    # Several ranges cost much and are of use to nobody: the whole file, as HTTP allows.
    assert ask(server, "/config", Range="bytes=0-1,3-4,0-1")[:2] == (200, body)
    status, nothing, headers = ask(server, "/config", "HEAD")
    assert (status, nothing, headers["Content-Length"]) == (200, b"", str(len(body)))
    assert ask(server, "/config", "POST")[0] == 501


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/metadata",
        "/metadata/",
        "/../etc/passwd",
        "/metadata/../../secret",
        "/metadata/%2e%2e/config",
        "//etc/passwd",
        "/tmp/x",
        "/secret",
        "/metadata/link",
        "/metadata/linked/secret",
        "/metadata/.hidden",
        "/config?x=1",
        "/metadata/pipe",
    ],
)
def test_nothing_else_is_served(tmp_path, plain, server, path):
    (tmp_path / "secret").write_text("s3cret")
    (plain / "secret").write_text("s3cret")
    (plain / "metadata/.hidden").write_text("s3cret")
    (plain / "metadata/link").symlink_to(tmp_path / "secret")
    (plain / "metadata/linked").symlink_to(tmp_path)
    os.mkfifo(plain / "metadata/pipe")
    status, body, _headers = ask(server, path)
    assert (status, body) == (404, b"")


def test_a_client_that_says_nothing_holds_up_nobody(server):
    idle = [socket.create_connection(server.server_address) for _ in range(50)]
    assert ask(server, "/config")[0] == 200
    for connection in idle:
        connection.close()


def asked(server, data):
    """A connection on which this was sent, and nothing read."""
    connection = socket.create_connection(server.server_address, timeout=10)
    connection.sendall(data)
    return connection


def test_a_client_that_reads_slowly_gets_it_all(plain, server):
    body = random.Random(5).randbytes(24 * MIB)
    (plain / "packs").mkdir()
    (plain / "packs/ab").write_bytes(body)
    with closing(asked(server, b"GET /packs/ab HTTP/1.1\r\nConnection: close\r\n\r\n")) as slow:
        for _ in range(3):  # meanwhile all that fits between the two is on its way
            assert ask(server, "/config")[0] == 200
        answer = http.client.HTTPResponse(slow)
        answer.begin()
        assert answer.read() == body


def test_a_client_that_reads_nothing_is_left(plain, monkeypatch):
    monkeypatch.setattr(serve, "_PATIENCE", 0.05)
    (plain / "packs").mkdir()
    (plain / "packs/ab").write_bytes(bytes(24 * MIB))
    left = threading.Event()

    def closed(_server, connection):
        connection.close()
        left.set()

    monkeypatch.setattr(TreeServer, "shutdown_request", closed)
    with serving(plain) as server, closing(asked(server, b"GET /packs/ab HTTP/1.1\r\n\r\n")):
        assert left.wait(10)


def test_a_client_that_never_ends_its_question_is_left(plain, monkeypatch):
    monkeypatch.setattr(serve, "_PATIENCE", 0.1)
    with serving(plain) as server, closing(asked(server, b"GET /config HTTP/1.1\r\n")) as drip:
        drip.settimeout(0.01)
        with suppress(ConnectionError):
            for _ in range(1000):
                drip.sendall(b"x")
                with suppress(TimeoutError):
                    assert drip.recv(1) == b""
                    return
            pytest.fail("it may go on for ever")


def test_more_clients_than_there_are_places_are_turned_away(plain, monkeypatch):
    monkeypatch.setattr(serve, "_MOST", 2)
    with serving(plain) as server:
        first, second = (asked(server, b"GET /config HTTP/1.1\r\n\r\n") for _ in range(2))
        assert first.recv(12) == second.recv(12) == b"HTTP/1.1 200"
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(server, "/config")
        first.close()
        second.close()


@pytest.mark.parametrize(
    "header",
    ["Content-Length: 25", "Content-Length: 0\r\nContent-Length: 25", "Transfer-Encoding: chunked"],
)
def test_a_question_inside_of_another_is_not_answered(server, header):
    """Behind a proxy the second answer would be somebody else's."""
    text = f"GET /config HTTP/1.1\r\n{header}\r\n\r\nGET /config HTTP/1.1\r\n\r\n\r\n"
    with closing(asked(server, text.encode())) as connection:
        answer = b""
        with suppress(ConnectionError):
            while data := connection.recv(1 << 16):
                answer += data
    assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 400") == 1


def test_there_must_be_a_tree_and_a_place_to_listen(tmp_path, plain):
    with pytest.raises(NotFound, match="no public tree"):
        TreeServer(tmp_path, "127.0.0.1", 0, print)
    with pytest.raises(InvalidInput, match="cannot listen"):
        TreeServer(plain, "192.0.2.1", 0, print)


# -- killed for certain


def test_a_pull_that_is_killed_goes_on_where_it_was(tmp_path, publisher):
    """kill -9 in the middle, twice; all that the server sent is at most 1.05 of the image."""
    body = random.Random(5).randbytes(64 * MIB)
    a_version(publisher, "3.0.0", content=body)
    tree = tmp_path / "tree"
    public_tree.export(publisher, str(tree))
    name = public_name(publisher)
    home = Home(tmp_path / "home")
    with mirroring(tree) as server:
        context = wire.build(home=home)
        followed.add(context, server.url, name="c", allow=LOOPBACK)
        context.close()
        server.sent = server.of_packs = 0
        argv = [sys.executable, "-m", "calotype", "community", "pull", f"community/{name}/web"]
        env = {**os.environ, "CALOTYPE_HOME": str(home.root)}
        for share in (0.3, 0.7):
            killing = subprocess.Popen(argv, env=env, stderr=subprocess.PIPE)
            server.at(int(share * len(body)), killing.kill)
            killing.communicate()
            assert killing.returncode == -signal.SIGKILL
        subprocess.run(argv, env=env, check=True, capture_output=True)
        sent = server.sent
    context = wire.build(home=home)
    image = context.system.find_on(Shelf.COMMUNITY, f"community/{name}/web/3.0.0")
    assert image is not None
    with closing(context.repository.open(image.os_disk.index)) as disk:
        assert read(disk, 0, disk.size) == body
    assert not list((home.root / "community" / "c" / "pulls").iterdir())
    context.close()
    assert sent <= 1.05 * len(body)
