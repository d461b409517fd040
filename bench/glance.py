"""A Glance server of one's own: files, SQLite, no keystone, gunicorn on a loopback port."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

VENV = Path(__file__).parents[1] / ".tools" / "bench" / "glance"
_START = 180.0  # seconds
_RULES = (
    *("default", "add_image", "get_image", "get_images", "modify_image", "delete_image"),
    *("upload_image", "download_image"),
)
_CONFIG = """
[DEFAULT]
enabled_backends = fs:file
log_file = {room}/api.log
[database]
connection = sqlite:///{room}/glance.sqlite
[glance_store]
default_backend = fs
[fs]
filesystem_store_datadir = {room}/images
[os_glance_staging_store]
filesystem_store_datadir = {room}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {room}/tasks
[paste_deploy]
config_file = {venv}/etc/glance/glance-api-paste.ini
[oslo_policy]
policy_file = {room}/policy.yaml
enforce_scope = false
enforce_new_defaults = false
"""


def installed() -> bool:
    """Whether ``make bench-setup`` could install it."""
    return (VENV / "bin" / "glance-manage").exists()


def version() -> str:
    """Which Glance, or that there is none."""
    found = sorted(VENV.glob("lib/python3*/site-packages/glance-*.dist-info"))
    return found[0].name.removesuffix(".dist-info") if found else "not installed"


class Glance:
    """The server, with two workers, its state in ``room``."""

    def __init__(self, room: Path) -> None:
        for name in ("images", "staging", "tasks"):
            (room / name).mkdir(parents=True)
        (room / "glance-api.conf").write_text(_CONFIG.format(room=room, venv=VENV))
        (room / "policy.yaml").write_text("".join(f'"{rule}": "@"\n' for rule in _RULES))
        self.images = room / "images"
        self._log = room / "gunicorn.log"
        env = {**os.environ, "OS_GLANCE_CONFIG_DIR": str(room), "PYTHONWARNINGS": "ignore"}
        manage = [VENV / "bin/glance-manage", "--config-file", room / "glance-api.conf", "db_sync"]
        subprocess.run([*map(str, manage)], env=env, check=True, capture_output=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v2/images"
        argv = [str(VENV / "bin/gunicorn"), "--workers", "2", "--bind", f"127.0.0.1:{port}"]
        argv += ["--timeout", "900", "glance.wsgi.api:application"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                argv, env=env, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The master, above its workers."""
        return self._process.pid

    def create(self, image: str, disk_format: str) -> None:
        """Make the record of an image (a UUID), whose bytes are uploaded next."""
        record = {
            "id": image,
            "name": image,
            "disk_format": disk_format,
            "container_format": "bare",
            "visibility": "private",
        }
        request = urllib.request.Request(
            self.url,
            data=json.dumps(record).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=60).close()

    def close(self) -> None:
        """End the server and its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self.images.parent, ignore_errors=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(self.url, timeout=30).close()
            except OSError:  # nobody listens yet, or it is still loading
                if self._process.poll() is not None:
                    break
                time.sleep(0.2)
            else:
                return
        words = self._log.read_text(errors="replace").strip().splitlines()[-5:]
        raise SystemExit(f"Glance does not start: {' / '.join(words)}")
