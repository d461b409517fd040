"""The first start of a result as another machine: does it come up, and is it somebody else?"""

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.leaks.guest import Refused, Room, Vm
from bench.leaks.used import copy, read_file, root_offset

from calotype.machine.seed import Provisioning

HOST = "beta-db02"
USER = "carol"
MAC = "52:54:00:be:7a:02"
_COMES_UP = 600.0  # seconds until an agent must answer; an emulated Debian takes about 75
_LOGS_IN = 300.0

_LOOK = """
cloud-init status --wait > /dev/null 2>&1
echo "host_name=$(hostname)"
echo "machine_id=$(cat /etc/machine-id)"
for key in /etc/ssh/ssh_host_*_key.pub /etc/dropbear/*_host_key; do
    [ -f "$key" ] && echo "host_key=$(md5sum < "$key")"
done
awk -F: '$3 >= 1000 && $3 < 60000 { print "person=" $1 }' /etc/passwd
systemctl list-units --failed --plain --no-legend 2> /dev/null | awk '{ print "failed=" $1 }'
true
"""


def identity(disk: Path) -> dict[str, list[str]]:
    """What a disk calls itself, as it stands: host name, machine-id, host keys (digests)."""
    root = root_offset(disk)
    keys = (read_file(disk, root, f"/etc/ssh/ssh_host_{kind}_key.pub") for kind in _KINDS)
    return {
        "host_name": [read_file(disk, root, "/etc/hostname").decode().strip()],
        "machine_id": [read_file(disk, root, "/etc/machine-id").decode().strip()],
        "host_key": [_digest(key) for key in keys if key],
    }


_KINDS = ("ed25519", "ecdsa", "rsa")


def boot(result: Path, before: Mapping[str, list[str]], work: Path) -> dict[str, Any]:
    """Start a copy of a result with a seed of another machine, and look."""
    disk = work / "boot.raw"
    copy(result, disk)
    room = Room(work / "vm")
    who = Provisioning(
        instance_id="i-beta-db02", hostname=HOST, admin_user=USER, ssh_keys=[room.public_key]
    )
    found: dict[str, Any] = {"came_up": False, "provisioned": False}
    try:
        with room.boot(disk, "boot", who, mac=MAC, patience=_COMES_UP) as vm:
            found["came_up"] = True
            seen = _look(vm)
            found["provisioned"] = _logs_in(vm)
            found |= judge(seen, before)
    except Refused as error:
        found["why"] = str(error)
    finally:
        disk.unlink(missing_ok=True)
    return found


def _look(vm: Vm) -> dict[str, list[str]]:
    seen: dict[str, list[str]] = {}
    for line in vm.root(_LOOK).splitlines():
        key, _, value = line.partition("=")
        seen.setdefault(key, []).append(value.strip())
    return seen


def judge(seen: Mapping[str, list[str]], before: Mapping[str, list[str]]) -> dict[str, Any]:
    """What the new machine has of the old one."""
    keys = set(seen.get("host_key", ()))
    return {
        "host_name": seen.get("host_name") == [HOST],
        "machine_id": _is_id(seen) and seen["machine_id"] != before["machine_id"],
        "host_keys": bool(keys) and not keys & set(before["host_key"]),
        "strangers": [name for name in seen.get("person", []) if name != USER],
        "failed": seen.get("failed", []),
    }


def _is_id(seen: Mapping[str, list[str]]) -> bool:
    return len("".join(seen.get("machine_id", []))) == 32


def _logs_in(vm: Vm) -> bool:
    deadline = time.monotonic() + _LOGS_IN
    while time.monotonic() < deadline:
        try:
            return vm.as_user(USER, "id -un").strip() == USER
        except Refused:
            time.sleep(3)
    return False


def _digest(content: bytes) -> str:
    done = subprocess.run(["md5sum"], input=content, capture_output=True, check=True)
    return done.stdout.decode().strip()
