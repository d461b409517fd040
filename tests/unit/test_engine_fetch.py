"""Fetching a URL: real servers on loopback, and every way that a URL leads inside."""

import itertools
import random
import socket
import socketserver
import threading
from contextlib import closing, contextmanager, suppress

import pytest
from tests.unit.web import File, serving

from calotype.engine.base import fetch, pace
from calotype.engine.base.fetch import Lines, Remote, check_address, get, plain
from calotype.errors import Conflict, InvalidInput, NotFound, ToolFailed

BODY = random.Random(1).randbytes(3_000_000)
LOOPBACK = ["127.0.0.0/8"]


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(fetch, "_PAUSES", (0, 0, 0))
    with serving() as web:
        web.files["/image"] = File(BODY)
        yield web


def whole(web, path, allow=LOOPBACK):
    return b"".join(Remote(web.url(path), allow=allow).stream())


@pytest.mark.parametrize("ranges", [False, True])
@pytest.mark.parametrize("length", [False, True])
def test_the_bytes_arrive(web, ranges, length):
    web.files["/image"] = File(BODY, ranges=ranges, length=length)
    remote = Remote(web.url("/image"), allow=LOOPBACK)
    assert remote.ranges is ranges
    assert remote.size == (len(BODY) if ranges or length else None)
    assert b"".join(remote.stream()) == BODY


def test_any_range_can_be_read(web):
    remote = Remote(web.url("/image"), allow=LOOPBACK)
    for offset, length in [(0, 1), (len(BODY) - 512, 512), (1_000_000, 1_500_000)]:
        assert remote.read(offset, length) == BODY[offset : offset + length]


def test_a_broken_connection_goes_on_where_it_was(web):
    web.files["/image"].cut = 1_200_000
    assert whole(web, "/image") == BODY
    begun = [start for start, _ in web.asked[1:]]
    assert begun == sorted(begun)
    assert len(begun) == 3
    assert web.sent < len(BODY) + 2 * fetch._PIECE
    remote = Remote(web.url("/image"), allow=LOOPBACK)
    web.files["/image"].cut = 0
    with pytest.raises(ToolFailed, match="cannot fetch"):
        remote.read(0, 100)


def test_a_server_that_is_busy_is_asked_again(web):
    remote = Remote(web.url("/image"), allow=LOOPBACK)
    web.failing = [503, 429]
    assert b"".join(remote.stream()) == BODY
    web.failing = [500]
    assert remote.read(0, 10) == BODY[:10]
    web.failing = [503] * 4
    with pytest.raises(ToolFailed, match="503"):
        remote.read(0, 10)


def test_without_ranges_a_broken_connection_is_the_end(web):
    web.files["/image"] = File(BODY, ranges=False, cut=1_200_000)
    with pytest.raises(ToolFailed, match="cannot fetch"):
        whole(web, "/image")


@pytest.mark.parametrize("change", [{"etag": '"2"'}, {"body": BODY + b"x"}, {"ranges": False}])
def test_a_file_that_changes_is_not_put_together(web, change):
    web.files["/image"].cut = 1_200_000
    stream = Remote(web.url("/image"), allow=LOOPBACK).stream()
    next(stream)
    for name, value in change.items():
        setattr(web.files["/image"], name, value)
    with pytest.raises(Conflict, match="changed"):
        list(stream)


def test_other_bytes_than_asked_for_are_no_answer(web, monkeypatch):
    remote = Remote(web.url("/image"), allow=LOOPBACK)
    monkeypatch.setattr(fetch, "_first", lambda _response: 7)
    with pytest.raises(ToolFailed, match="other bytes"):
        remote.read(0, 100)


def test_a_small_file_comes_at_once_or_not_at_all(web, monkeypatch):
    assert get(web.url("/image"), len(BODY), allow=LOOPBACK) == BODY
    with pytest.raises(InvalidInput, match="larger than the 1000 bytes"):
        get(web.url("/image"), 1000, allow=LOOPBACK)
    with pytest.raises(NotFound, match="404"):
        get(web.url("/nothing"), 1000, allow=LOOPBACK)
    with pytest.raises(InvalidInput, match="not public"):
        get(web.url("/image"), 1000)
    web.files["/image"].cut = 100
    with pytest.raises(ToolFailed, match="cannot fetch"):
        get(web.url("/image"), len(BODY), allow=LOOPBACK)
    web.failing = [503]
    with pytest.raises(ToolFailed, match="503"):
        get(web.url("/image"), len(BODY), allow=LOOPBACK)
    monkeypatch.setattr(fetch, "_PATIENCE", 0)
    with pytest.raises(ToolFailed, match="did not come in 0 seconds"):
        get(web.url("/image"), len(BODY), allow=LOOPBACK)


def test_a_redirect_is_followed_and_checked_again(web):
    web.redirects = {"/to": "/image", "/inside": "http://169.254.169.254/metadata"}
    assert whole(web, "/to") == BODY
    with pytest.raises(InvalidInput, match="not public"):
        whole(web, "/inside")


def test_each_range_is_checked_again(web):
    """A server that answers the first question well, and the next one with a way inside."""
    remote = Remote(web.url("/image"), allow=LOOPBACK)
    web.redirects = {"/image": "http://169.254.169.254/metadata"}
    with pytest.raises(InvalidInput, match="not public"):
        remote.read(0, 100)


@pytest.mark.parametrize(
    ("path", "allow", "error", "words"),
    [
        ("/image", [], InvalidInput, "not public"),
        ("/image", ["10.0.0.0/8"], InvalidInput, "not public"),
        ("/image", ["nonsense"], InvalidInput, "not a network"),
        ("/nothing", LOOPBACK, NotFound, "404"),
        ("/loop", LOOPBACK, ToolFailed, "redirects more than"),
        ("/ftp", LOOPBACK, InvalidInput, "not an http"),
        ("/astray", LOOPBACK, ToolFailed, "no URL"),
    ],
)
def test_what_is_wrong_is_said(web, path, allow, error, words):
    web.redirects = {"/loop": "/loop", "/ftp": "ftp://127.0.0.1/x", "/astray": "http://[x"}
    with pytest.raises(error, match=words):
        whole(web, path, allow)


def test_one_address_that_leads_inside_refuses_the_name(web, monkeypatch):
    def both(host, port, **_):
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with pytest.raises(InvalidInput, match=r"10\.0\.0\.1"):
        whole(web, "/image", [])


def test_each_question_resolves_the_name_once(web, monkeypatch):
    """An answer that changes between check and use (DNS rebinding) finds nothing to change."""
    answers = iter(["127.0.0.1", "10.0.0.1"])

    def once(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, port, *a, **k: (
            once(host, port) if host == "images.example" else real(host, port, *a, **k)
        ),
    )
    remote = Remote(f"http://images.example:{web.server_port}/image", allow=["127.0.0.1/32"])
    assert web.hosts == [f"images.example:{web.server_port}"]
    with pytest.raises(InvalidInput, match=r"10\.0\.0\.1"):
        remote.read(0, 1)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "168.63.129.16", "::1", "fe80::1"),
        *("fc00::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "::"),
    ],
)
def test_addresses_that_lead_inside(address):
    with pytest.raises(InvalidInput, match="not public"):
        check_address(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"])
def test_public_addresses(address):
    assert str(check_address(address)) == address


def test_no_credential_is_recorded():
    assert plain("https://me:secret@h.example/a/b?sig=secret#x") == "https://h.example/a/b"
    with pytest.raises(InvalidInput, match="user or password"):
        Remote("https://me:pw@h.example/x")


@pytest.mark.parametrize(
    "url",
    ["http://[x", "http://[::1", f"http://{'a' * 70}.com/", "http://a..b/", "http://ab\ud800c/"],
)
def test_what_is_no_url_is_said(url):
    with pytest.raises(InvalidInput):
        Remote(url)


# Servers that hold whoever asks them


@contextmanager
def speaking(say):
    """A server that reads a question and then does what ``say`` does with the connection; a URL's part."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            asked = b""
            while not asked.endswith(b"\r\n\r\n"):
                asked += self.request.recv(4096)
            with suppress(OSError):
                say(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def without_end(begin, more):
    """It sends ``begin``, and then ``more`` again and again until nobody listens."""

    def say(connection):
        connection.sendall(begin)
        while True:
            connection.sendall(more * 1000)

    return say


def lines_read(url):
    with closing(Lines(LOOPBACK).open(url, None)) as response:
        while response.read1(100):
            pass


@pytest.fixture
def hurried(monkeypatch):
    """Seven seconds go by whenever somebody looks at the clock."""
    monkeypatch.setattr(fetch, "_PAUSES", (0, 0))
    monkeypatch.setattr(pace, "monotonic", itertools.count(0.0, 7.0).__next__)


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "status": (b"", b"H"),
    "header": (OK + b"X: ", b"x"),
    "interim": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "redirect": (b"HTTP/1.1 302 Found\r\nLocation: /\r\n", b"x"),
    "chunk": (CHUNKED + b"1;", b"x"),
    "trailer": (CHUNKED + b"1\r\nx\r\n0\r\n", b"X: y\r\n"),
}


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("what", ENDLESS)
def test_what_is_not_the_file_does_not_come_without_end(what):
    with speaking(without_end(*ENDLESS[what])) as port:
        url = f"http://127.0.0.1:{port}/"
        with pytest.raises(pace.TooSlow, match="too slow"):
            lines_read(url)
        with pytest.raises(ToolFailed, match="cannot fetch"):
            get(url, 100, allow=LOOPBACK)
        with pytest.raises(ToolFailed, match="cannot fetch"):
            list(Remote(url, allow=LOOPBACK).stream())


@pytest.mark.usefixtures("hurried")
def test_a_body_does_not_drip():
    more = threading.Semaphore()

    def say(connection):
        connection.sendall(OK + b"Content-Length: 1000000\r\n\r\n")
        while more.acquire(timeout=60):
            connection.sendall(b"x")

    with speaking(say) as port:
        response = Lines(LOOPBACK).open(f"http://127.0.0.1:{port}/", None)
        assert response.read1(100) == b"x"
        more.release()
        with closing(response), pytest.raises(pace.TooSlow, match="2 bytes in 2"):
            response.read1(100)
        more.release()


def test_a_byte_for_each_question_is_no_progress(web, monkeypatch):
    web.files["/image"].cut = 1
    remote = Remote(web.url("/image"), allow=LOOPBACK)
    with pytest.raises(ToolFailed, match="cannot fetch"):
        list(remote.stream())
    assert len(web.asked) == 1 + 1 + len(fetch._PAUSES)


def test_a_long_way_to_a_file_is_given_up(web, monkeypatch):
    web.redirects = {"/to": "/image"}
    monkeypatch.setattr(fetch, "_AWAY", -1.0)
    with pytest.raises(ToolFailed, match="redirects for longer than"):
        whole(web, "/to")
    assert whole(web, "/image") == BODY


def test_connections_stay_open_to_few_servers():
    came = []

    def say(connection):
        came.append(connection)
        connection.sendall(OK + b"Content-Length: 1\r\n\r\nx")
        connection.recv(1)  # until the other end closes
        closed.release()

    closed = threading.Semaphore(0)
    lines, most = Lines(LOOPBACK), fetch._SERVERS
    with speaking(say) as port:
        for host in range(1, most + 4):
            with closing(lines.open(f"http://127.0.0.{host}:{port}/", None)) as response:
                assert response.read1(10) == b"x"
                assert not response.read1(10)
        for _ in range(3):
            assert closed.acquire(timeout=60)
        for connection in came[-most:]:
            with pytest.raises(BlockingIOError):
                connection.recv(1, socket.MSG_DONTWAIT)
