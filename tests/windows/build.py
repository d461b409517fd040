"""Windows disks without Windows: GPT, NTFS and real hives, in any state that Setup knows."""

import lzma
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.disks import BytesDisk
from tests.windows.registry import Data, Keys, hive

MIB = 1 << 20
GENERAL = "IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE"
COMPLETE = "IMAGE_STATE_COMPLETE"
_STATE = r"Microsoft\Windows\CurrentVersion\Setup\State"
CONFIG = "/Windows/System32/config"
TAG = "/Windows/System32/Sysprep/Sysprep_succeeded.tag"
STATE_INI = "/Windows/Setup/State/State.ini"
ERRORS = "/Windows/System32/Sysprep/Panther/setuperr.log"

#: What an answer file may hold; ``%s`` is the password's content.
ANSWERS = """<?xml version="1.0" encoding="utf-8"?>
<unattend xmlns="urn:schemas-microsoft-com:unattend"><settings pass="oobeSystem">
<component name="Microsoft-Windows-Shell-Setup"><UserAccounts><AdministratorPassword>
  <Value>%s</Value><PlainText>true</PlainText></AdministratorPassword></UserAccounts></component>
</settings></unattend>"""


@cache
def volume() -> bytes:
    """The NTFS file system that every disk starts from (see ``data/make.py``)."""
    return lzma.decompress(Path(__file__).with_name("data").joinpath("volume.ntfs.xz").read_bytes())


def software(state: str | None = COMPLETE, more: Keys | None = None) -> dict[str, dict[str, Data]]:
    """The keys of a SOFTWARE hive."""
    keys: dict[str, dict[str, Data]] = {
        r"Microsoft\Windows NT\CurrentVersion": {
            "ProductName": "Windows Server 2022 Datacenter",
            "CurrentBuild": "20348",
        },
        r"Microsoft\Windows NT\CurrentVersion\Winlogon": {"AutoAdminLogon": "0"},
        _STATE: {} if state is None else {"ImageState": state},
    }
    return _merged(keys, more)


def system(*, general: bool, more: Keys | None = None) -> dict[str, dict[str, Data]]:
    """The keys of a SYSTEM hive, after Sysprep or of a machine that is set up."""
    setup: dict[str, Data] = {
        "SystemSetupInProgress": int(general),
        "SetupType": 2 if general else 0,
        "OOBEInProgress": int(general),
        "CmdLine": r"oobe\windeploy.exe" if general else "",
    }
    control = r"ControlSet001\Control"
    keys: dict[str, dict[str, Data]] = {
        "Select": {"Current": 1, "Default": 1},
        "Setup": setup,
        r"Setup\Status\SysprepStatus": {"GeneralizationState": 7, "CleanupState": 2},
        rf"{control}\ComputerName\ComputerName": {"ComputerName": "ACME-WEB01"},
        rf"{control}\ProductOptions": {"ProductType": "ServerNT"},
        rf"{control}\Session Manager\Environment": {"PROCESSOR_ARCHITECTURE": "AMD64"},
        rf"{control}\TimeZoneInformation": {"TimeZoneKeyName": "W. Europe Standard Time"},
        r"ControlSet001\Services\cdrom": {"Start": 1},
        r"ControlSet001\Services\NTDS": {"Start": 4},
        r"ControlSet001\Services\QEMU-GA": {"Start": 2},
        r"ControlSet001\Services\Tcpip\Parameters": {"Domain": ""},
    }
    return _merged(keys, more)


def _merged(keys: dict[str, dict[str, Data]], more: Keys | None) -> dict[str, dict[str, Data]]:
    for path, values in (more or {}).items():
        keys[path] = {**keys.get(path, {}), **values}
    return keys


def installation(
    state: str | None = COMPLETE,
    ini: str | None = "",
    *,
    soft: Keys | None = None,
    syst: Keys | None = None,
    files: Mapping[str, bytes | str] | None = None,
) -> dict[str, bytes | str]:
    """The files of an installation in a state; ``ini``: what State.ini says, if it is something else."""
    general = state == GENERAL
    found: dict[str, bytes | str] = {
        f"{CONFIG}/SOFTWARE": hive(software(state, soft)),
        f"{CONFIG}/SYSTEM": hive(system(general=general, more=syst)),
    }
    said = state if ini == "" else ini
    if said is not None:
        found[STATE_INI] = f"[State]\r\nImageState={said}\r\n"
    if general:
        found[TAG] = " "
    return found | dict(files or {})


def partition(files: Mapping[str, bytes | str]) -> bytearray:
    """An NTFS file system with these files."""
    with scratch() as directory:
        image, content = directory / "volume.ntfs", directory / "content"
        image.write_bytes(volume())
        for path, data in files.items():
            content.write_bytes(data.encode() if isinstance(data, str) else data)
            subprocess.run(["ntfscp", "-f", image, content, path], check=True, capture_output=True)
        return bytearray(image.read_bytes())


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory in memory, for ntfscp syncs all that it writes."""
    memory = "/dev/shm"
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="calotype-test-", dir=place) as directory:
        yield Path(directory)


@cache
def _table() -> bytes:
    with scratch() as directory:
        path = directory / "table"
        path.write_bytes(bytes(18 * MIB))
        options = ["-n1:2048:+16M", "-t1:0700"]
        subprocess.run(["sgdisk", *options, path], check=True, capture_output=True)
        return path.read_bytes()


def disk_of(content: bytes | bytearray) -> BytesDisk:
    """A disk with a partition table and this one partition."""
    table = _table()
    return BytesDisk(table[:MIB] + bytes(content) + table[MIB + len(content) :])


def disk(files: Mapping[str, bytes | str]) -> BytesDisk:
    """A disk with an NTFS partition that holds these files."""
    return disk_of(partition(files))


def record_offset(content: bytes | bytearray, number: int) -> int:
    """Where one of the first records of the master file table stands."""
    (sector, per_cluster) = struct.unpack_from("<HB", content, 11)
    (table,) = struct.unpack_from("<Q", content, 48)
    return int(table * sector * per_cluster + number * 1024)
