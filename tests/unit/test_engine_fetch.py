"""Fetching a URL: real servers on loopback, and every way that a URL leads inside."""

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from calotype.engine.fetch import check_address, fetch, plain
from calotype.errors import InvalidInput, ToolFailed
from calotype.progress import SILENT

BODY = b"a disk image" * 1000
DIGEST = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Remembers the Host headers that it saw."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.hosts: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.hosts.append(self.headers["Host"])
        if self.path == "/image":
            self._answer(200, BODY)
        elif self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY) + 1))
            self.end_headers()
            self.wfile.write(BODY)
        elif self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path in ("/loop", "/astray"):
            self.send_response(302)
            self.send_header("Location", "/loop" if self.path == "/loop" else "http://[x")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._answer(404, b"")

    def _answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server, path, target, **options):
    fetch(
        f"http://127.0.0.1:{server.server_port}{path}",
        target,
        **{
            "sha256": DIGEST,
            "allow": ["127.0.0.0/8"],
            "max_bytes": 1 << 20,
            "progress": SILENT,
            **options,
        },
    )


def test_the_bytes_arrive_and_are_checked(server, tmp_path):
    get(server, "/image", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY


def test_a_redirect_is_followed_and_checked_again(server, tmp_path):
    get(server, "/to//image", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    with pytest.raises(InvalidInput, match="not public"):
        get(server, "/to/http://169.254.169.254/metadata", tmp_path / "g")


@pytest.mark.parametrize(
    ("path", "options", "error", "words"),
    [
        ("/image", {"sha256": "0" * 64}, InvalidInput, "SHA-256"),
        ("/image", {"max_bytes": 100}, InvalidInput, "larger"),
        ("/image", {"allow": []}, InvalidInput, "not public"),
        ("/image", {"allow": ["10.0.0.0/8"]}, InvalidInput, "not public"),
        ("/image", {"allow": ["nonsense"]}, InvalidInput, "not a network"),
        ("/short", {}, ToolFailed, "cannot fetch"),
        ("/nothing", {}, ToolFailed, "404"),
        ("/loop", {}, ToolFailed, "redirects more than"),
        ("/to/ftp://127.0.0.1/x", {}, InvalidInput, "not an http"),
    ],
)
def test_what_is_wrong_is_said(server, tmp_path, path, options, error, words):
    with pytest.raises(error, match=words):
        get(server, path, tmp_path / "f", **options)


def test_one_address_that_leads_inside_refuses_the_name(server, tmp_path, monkeypatch):
    def both(host, port, **_):
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with pytest.raises(InvalidInput, match=r"10\.0\.0\.1"):
        get(server, "/image", tmp_path / "f", allow=[])


def test_a_name_is_resolved_once(server, tmp_path, monkeypatch):
    """An answer that changes between check and use (DNS rebinding) finds nothing to change."""
    answers = iter(["127.0.0.1"])

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
    fetch(
        f"http://images.example:{server.server_port}/image",
        tmp_path / "f",
        sha256=DIGEST,
        allow=["127.0.0.1/32"],
        max_bytes=1 << 20,
        progress=SILENT,
    )
    assert server.hosts == [f"images.example:{server.server_port}"]


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
        fetch(
            "https://me:pw@h.example/x",
            Path("/nonexistent"),
            sha256=DIGEST,
            max_bytes=1,
            progress=SILENT,
        )


@pytest.mark.parametrize(
    "url",
    ["http://[x", "http://[::1", f"http://{'a' * 70}.com/", "http://a..b/", "http://ab\ud800c/"],
)
def test_what_is_no_url_is_said(url, tmp_path):
    with pytest.raises(InvalidInput):
        fetch(url, tmp_path / "f", sha256=DIGEST, max_bytes=1 << 20, progress=SILENT)


def test_a_redirect_to_what_is_no_url_is_said(server, tmp_path):
    with pytest.raises(ToolFailed, match="no URL"):
        get(server, "/astray", tmp_path / "f")
