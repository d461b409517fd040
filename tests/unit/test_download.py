"""Downloads: interrupted in every way, continued, verified; from servers that are honest and others."""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.web import File, Web, serving

from calotype.engine.base import fetch
from calotype.engine.marketplace import download
from calotype.engine.marketplace.download import Wanted, fetched
from calotype.errors import InvalidInput, ToolFailed, Untrusted

BODY = random.Random(1).randbytes(3_000_000)
LOOPBACK = ("127.0.0.0/8",)


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(fetch, "_PAUSES", (0, 0, 0))
    with serving() as web:
        web.files["/image"] = File(BODY)
        yield web


@pytest.fixture
def other():
    with serving() as web:
        web.files["/image"] = File(BODY, etag='"of this mirror"')
        yield web


def wanted(*urls, body=BODY, algorithm="sha256", **more):
    digest = hashlib.new(algorithm, body).hexdigest()
    return Wanted(urls=urls, algorithm=algorithm, digest=digest, allow_addresses=LOOPBACK, **more)


def get(context, *urls, **more):
    with fetched(context, wanted(*urls, **more)) as file:
        return file.path.read_bytes()


def left(context):
    """What downloads left on the disk, by suffix."""
    return sorted(path.suffix for path in (context.home.cache / "downloads").iterdir())


def breaking(web):
    """A pace at which nobody gets an answer after the first one with data."""
    return lambda at: web.failing.extend([503] * 9) if at else None


def interrupt(context, web, at=1_200_000, url=None, **more):
    """Begin a download that breaks, for good, after ``at`` bytes."""
    web.files["/image"].cut = at
    web.failing = []
    web.files["/image"].pace = breaking(web)
    with pytest.raises(ToolFailed):
        get(context, url or web.url("/image"), **more)
    web.files["/image"] = File(BODY, etag=web.files["/image"].etag)
    web.failing.clear()


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("ranges", [False, True])
@pytest.mark.parametrize("length", [False, True])
def test_a_file_arrives_and_goes(context, web, algorithm, ranges, length):
    web.files["/image"] = File(BODY, ranges=ranges, length=length)
    assert get(context, web.url("/image"), algorithm=algorithm) == BODY
    assert left(context) == []


def test_an_interrupted_download_goes_on(context, web):
    interrupt(context, web)
    assert left(context) == [".json", ".part"]
    assert get(context, web.url("/image")) == BODY
    assert web.sent < 1.05 * len(BODY)
    assert web.asked[-1][0] > 1_000_000


def test_connections_that_break_cost_little(context, web):
    web.files["/image"].cut = 1_000_000
    assert get(context, web.url("/image")) == BODY
    assert web.sent < 1.15 * len(BODY)  # 128 KiB for each of three


@given(st.lists(st.tuples(st.integers(0, len(BODY)), st.booleans()), max_size=6))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_wherever_it_breaks_it_ends_whole_and_costs_a_piece_each(context, web, breaks):
    """Connections break, and with some of them the command: what is fetched twice is bounded."""
    left_over = sorted(breaks)
    web.sent = 0

    def pace(at: int) -> None:
        if left_over and at >= left_over[0][0]:
            if left_over.pop(0)[1]:
                web.failing.extend([503] * 4)  # as many as are tried before it is given up
            raise ConnectionResetError

    web.files["/image"] = File(BODY, pace=pace)
    for _ in range(len(breaks) + 1):
        with contextlib.suppress(ToolFailed):
            assert get(context, web.url("/image")) == BODY
            break
        web.failing.clear()
    else:
        pytest.fail("it never arrived")
    assert web.sent <= len(BODY) + len(breaks) * (fetch._PIECE + (1 << 16)) + 2 * len(breaks) + 1


def test_a_server_that_is_started_again_is_asked_again(context, monkeypatch):
    """It goes away with the connection, and comes back at the same port."""
    with contextlib.ExitStack() as servers:
        first = Web()

        def die(at: int) -> None:
            if at >= 1 << 20:
                first.socket.close()
                raise ConnectionResetError

        def come_back(_remote: object, tries: int) -> None:
            if tries == 1:
                again = servers.enter_context(serving(first.server_port))
                again.files["/image"] = File(BODY)
                came.append(again)

        came: list[Web] = []
        first.files["/image"] = File(BODY, pace=die)
        monkeypatch.setattr(fetch.Remote, "_pause", come_back)
        thread = threading.Thread(target=answer_twice, args=[first])
        thread.start()
        assert get(context, first.url("/image")) == BODY
        thread.join()
        assert len(came) == 1
        assert first.sent + came[0].sent < 1.05 * len(BODY)


def answer_twice(server):
    server.handle_request()
    server.handle_request()


def test_another_mirror_continues(context, web, other):
    interrupt(context, web)
    before = web.sent
    assert get(context, other.url("/image")) == BODY
    assert other.sent + before < 1.05 * len(BODY)


def test_a_mirror_that_fails_is_followed_by_the_next(context, web, other, caplog):
    web.files["/image"].cut = 1_000_000
    web.files["/image"].pace = breaking(web)
    with fetched(context, wanted(web.url("/image"), other.url("/image"))) as file:
        assert file.path.read_bytes() == BODY
        assert file.url == other.url("/image")
    assert web.sent + other.sent < 1.05 * len(BODY)
    assert "503" in caplog.text


def test_a_mirror_that_lies_is_followed_by_the_next(context, web, other, caplog):
    web.files["/image"] = File(BODY[:-1] + b"x")
    with fetched(context, wanted(web.url("/image"), other.url("/image"))) as file:
        assert file.path.read_bytes() == BODY
    assert f"{web.url('/image')} has sha256" in caplog.text


def test_what_has_another_digest_is_removed_and_refused(context, web):
    web.files["/image"] = File(BODY[:-1] + b"x")
    with pytest.raises(Untrusted, match="it was removed") as refusal:
        get(context, web.url("/image"))
    assert "catalog update" in (refusal.value.hint or "")
    assert left(context) == []


def test_a_lie_among_the_pieces_is_not_the_next_servers_fault(context, web, other):
    """Half of it came from a liar: the honest mirror is asked for all of it."""
    web.files["/image"] = File(bytes(len(BODY)))
    web.files["/image"].cut = 1_200_000
    web.files["/image"].pace = breaking(web)
    assert get(context, web.url("/image"), other.url("/image")) == BODY
    assert other.asked[-1] == (0, len(BODY))


@pytest.mark.parametrize("change", [{"etag": '"2"'}, {"body": BODY + b"x"}])
def test_a_file_that_changed_is_fetched_from_the_beginning(context, web, caplog, change):
    interrupt(context, web)
    for name, value in change.items():
        setattr(web.files["/image"], name, value)
    body = web.files["/image"].body
    digest = download.Wanted(  # the same part, although its whole changed
        urls=(web.url("/image"),),
        algorithm="sha256",
        digest=hashlib.sha256(BODY).hexdigest(),
        allow_addresses=LOOPBACK,
    )
    expected = contextlib.nullcontext() if body == BODY else pytest.raises(Untrusted)
    with expected, fetched(context, digest) as file:
        assert file.path.read_bytes() == BODY
    assert web.asked[-1][0] == 0
    assert "was changed since 1.1 MiB of it were fetched" in caplog.text


def test_a_file_that_changes_while_it_comes_is_fetched_again(context, web, caplog):
    file = web.files["/image"]
    file.cut = 1_200_000

    def change(_at: int) -> None:
        file.etag = '"2"'
        if len(web.asked) > 2:
            file.cut = None

    file.pace = change
    assert get(context, web.url("/image")) == BODY
    assert "fetched again from the beginning" in caplog.text


def test_redirects_to_another_mirror_each_time_go_on(context, web, other):
    """As Fedora's: each connection ends elsewhere, where the same file has another tag."""
    web.files["/image"].cut = other.files["/image"].cut = 1_200_000
    web.redirects["/any"] = web.url("/image")
    web.files["/image"].pace = lambda _at: web.redirects.update({"/any": other.url("/image")})
    assert get(context, web.url("/any")) == BODY
    assert web.sent + other.sent < 1.15 * len(BODY)


def test_a_server_that_forgot_ranges_works_from_the_start(context, web):
    interrupt(context, web)
    web.files["/image"].ranges = False
    assert get(context, web.url("/image")) == BODY


def test_after_a_power_cut_only_what_was_synced_counts(context, web, monkeypatch):
    interrupt(context, web)
    part = next((context.home.cache / "downloads").glob("*.part"))
    state = part.with_suffix(".json")
    said = state.read_text().replace('"synced": ', '"synced": 10000, "was": ')
    state.write_text(
        said.replace(', "was": ', ', "boot": "another", "was": ').partition(', "was"')[0] + "}"
    )
    part.write_bytes(BODY[:10_000] + bytes(1_000_000))  # zeros where nothing was written
    assert get(context, web.url("/image")) == BODY
    assert web.asked[-1][0] == 10_000


def test_a_state_that_cannot_be_read_begins_again(context, web):
    interrupt(context, web)
    next((context.home.cache / "downloads").glob("*.json")).write_text('["?"]')
    assert get(context, web.url("/image")) == BODY


def test_the_hash_is_over_all_of_it(context, web):
    """What is on the disk is hashed, whoever wrote it."""
    interrupt(context, web)
    part = next((context.home.cache / "downloads").glob("*.part"))
    with part.open("r+b") as file:
        file.write(b"not what came")
    assert get(context, web.url("/image")) == BODY
    assert web.asked[-1] == (0, len(BODY))


@pytest.mark.parametrize("size", [len(BODY) - 1, len(BODY) + 1])
def test_another_size_than_announced_is_refused(context, web, size):
    with pytest.raises(Untrusted, match=f"not the {size} that were announced"):
        get(context, web.url("/image"), size=size)
    assert web.sent <= 1


def test_a_server_that_sends_without_end_is_stopped(context, web, monkeypatch):
    web.files["/image"] = File(BODY, length=False, ranges=False)
    with pytest.raises(Untrusted, match="more than the 1000000 bytes"):
        get(context, web.url("/image"), size=1_000_000)
    monkeypatch.setattr(download, "MAX_SIZE", 1_000_000)
    with pytest.raises(Untrusted, match="more than the 1000000 bytes"):
        get(context, web.url("/image"))
    web.files["/image"] = File(BODY)
    with pytest.raises(InvalidInput, match="no image is as large"):
        get(context, web.url("/image"))


def test_no_room_is_said_before_anything_comes(context, web, monkeypatch):
    class Usage:
        free = 1_000_000

    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage)
    with pytest.raises(InvalidInput, match="are free") as refusal:
        get(context, web.url("/image"))
    assert "CALOTYPE_HOME" in (refusal.value.hint or "")


def test_a_server_that_sends_without_end_does_not_fill_the_disk(context, web, monkeypatch):
    """It does not say how much comes: what is kept free stays free, and nothing is left of it."""
    free = iter([download.SPARE + (2 << 20), download.SPARE + (1 << 20), download.SPARE - 1])

    class Usage:
        @property
        def free(self):
            return next(free)

    monkeypatch.setattr(download, "SYNC", 1 << 20)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage())
    web.files["/image"] = File(BODY, length=False, ranges=False)
    with pytest.raises(InvalidInput, match="are free") as refusal:
        get(context, web.url("/image"))
    assert "CALOTYPE_HOME" in (refusal.value.hint or "")
    assert left(context) == []


def test_what_nobody_could_continue_is_not_kept(context, web):
    web.files["/image"] = File(BODY, length=False, ranges=False)

    def die(more: int) -> None:
        if more:
            raise KeyboardInterrupt

    class Told:
        @contextlib.contextmanager
        def phase(self, *_):
            yield die

    interrupted = type(context)(context.home, context.driver, Told())
    with pytest.raises(KeyboardInterrupt):
        get(interrupted, web.url("/image"))
    assert left(context) == []


def test_addresses_inside_are_refused(context, web):
    inside = Wanted(urls=(web.url("/image"),), algorithm="sha256", digest="0" * 64)
    with pytest.raises(InvalidInput, match="not public"), fetched(context, inside):
        pass


def test_what_could_not_be_used_is_there_the_next_time(context, web):
    with pytest.raises(RuntimeError), fetched(context, wanted(web.url("/image"))):
        raise RuntimeError
    web.files.clear()
    assert get(context, web.url("/image")) == BODY
    assert left(context) == []


def test_two_at_once_fetch_it_once_at_a_time(context, web):
    """The second waits, and then has the file that the first left."""
    entered, go = threading.Event(), threading.Event()

    def first() -> None:
        with contextlib.suppress(RuntimeError), fetched(context, wanted(web.url("/image"))):
            entered.set()
            go.wait(120)
            raise RuntimeError  # so that the file stays

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(120)
    phases = []

    class Told:
        @contextlib.contextmanager
        def phase(self, label, *_):
            phases.append(label)
            go.set()
            yield lambda _n: None

    second = type(context)(context.home, context.driver, Told())
    assert get(second, web.url("/image")) == BODY
    thread.join()
    assert phases == ["waiting for another download of image"]
    assert web.sent <= len(BODY) + 1


def test_parts_that_nobody_continues_go(context, web):
    interrupt(context, web)
    old = time.time() - download.KEPT - 60
    for path in (context.home.cache / "downloads").iterdir():
        os.utime(path, (old, old))
    body = BODY[:1000]
    web.files["/other"] = File(body)
    with fetched(context, wanted(web.url("/other"), body=body)):
        assert left(context) == ["", ".json"]


def test_another_download_leaves_parts_alone(context, web):
    interrupt(context, web)
    body = BODY[:1000]
    web.files["/other"] = File(body)
    assert get(context, web.url("/other"), body=body) == body
    assert left(context) == [".json", ".part"]
    assert get(context, web.url("/image")) == BODY
    assert web.asked[-1][0] > 1_000_000


# Processes

CLIENT = """
import sys
from pathlib import Path
from calotype import wire
from calotype.cli.exits import guard
from calotype.config import Home
from calotype.engine.marketplace.download import Wanted, fetched

def run():
    home, url, digest = sys.argv[1:]
    loopback = ("127.0.0.0/8",)
    wanted = Wanted(urls=(url,), algorithm="sha256", digest=digest, allow_addresses=loopback)
    with fetched(wire.build(home=Home(Path(home))), wanted) as file:
        print(file.path.stat().st_size)

sys.exit(guard(run))
"""


def test_killed_clients_cost_little(context, web):
    """kill -9, Ctrl-C and SIGKILL again: the bytes that the server sent, over all, are 5 % more at most."""
    body = random.Random(2).randbytes(40 << 20)
    stops = [10 << 20, 22 << 20, 31 << 20]
    killed = threading.Event()
    stalled = threading.Event()

    def pace(at: int) -> None:
        if stops and at >= stops[0]:
            stalled.set()
            killed.wait(120)
            raise ConnectionResetError

    web.files["/large"] = File(body, pace=pace)
    digest = hashlib.sha256(body).hexdigest()
    argv = [sys.executable, "-c", CLIENT, str(context.home.root), web.url("/large"), digest]
    directory = context.home.prepare().cache / "downloads"
    for sign, status in [
        (signal.SIGKILL, -signal.SIGKILL),
        (signal.SIGINT, 130),
        (signal.SIGKILL, -signal.SIGKILL),
    ]:
        with subprocess.Popen(argv, stderr=subprocess.PIPE) as client:
            assert stalled.wait(120)
            arrived(directory, stops[0])
            client.send_signal(sign)
            assert client.wait(120) == status
        killed.set()
        stops.pop(0)
        killed.clear()
        stalled.clear()
        assert sorted(path.suffix for path in directory.iterdir()) == [".json", ".part"]
    done = subprocess.run(argv, capture_output=True, timeout=120, check=True)
    assert int(done.stdout) == len(body)
    assert web.sent <= 1.05 * len(body)
    assert list(directory.iterdir()) == []


def arrived(directory, count):
    """Wait until about ``count`` bytes are in the part."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(p.stat().st_size >= count - fetch._PIECE for p in directory.glob("*.part")):
            return
        time.sleep(0.005)
    pytest.fail("the client does not write what it receives")
