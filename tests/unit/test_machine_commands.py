"""What is put together for QEMU and ssh, the probe's cache, and the console's copying."""

import json
import os
import pty
import socket
import struct
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype.errors import Conflict, InvalidInput, ToolFailed
from calotype.machine import Acceleration, DiskSpec, MachineSpec, QemuDriver, probe, ssh
from calotype.machine.cmdline import command_line
from calotype.machine.console import relay
from calotype.machine.layout import Layout
from calotype.machine.nodes import blockdevs, names, node
from calotype.model import Caching, Generation, Network
from calotype.run import run

OS = DiskSpec(id="os", path=Path("/d/os.qcow2"), base=Path("/b/x.raw"), size=1 << 30)
DATA = DiskSpec(id="data", path=Path("/d/data.qcow2"), size=1 << 20, lun=5)
SPEC = MachineSpec(
    id="6f2a1c3e-0000-4000-8000-000000000001",
    name="web1",
    directory=Path("/vm"),
    vcpus=2,
    memory=1 << 30,
    disks=(OS, DATA),
    mac="52:54:00:12:34:56",
    seed=Path("/s.iso"),
    forwards=((22022, 22), (8080, 80)),
)
LAYOUT = Layout(Path("/vm"))


def values(argv: list[str], option: str) -> list[str]:
    return [argv[n + 1] for n, argument in enumerate(argv) if argument == option]


def test_every_node_is_explicit() -> None:
    argv = command_line(SPEC, LAYOUT, "tcg")
    nodes = [json.loads(value) for value in values(argv, "-blockdev")]
    known: set[str] = set()
    for entry in nodes:
        assert entry["driver"] in {"file", "raw", "qcow2"}
        if entry["driver"] == "file":
            assert entry["filename"].startswith(("/disks/", "/base/"))
            assert entry["filename"].startswith("/disks/") or entry["read-only"] is True
        else:
            assert entry["file"] in known
        if entry["driver"] == "qcow2":
            assert entry["backing"] is None or entry["backing"] in known
        assert len(entry["node-name"]) <= 31
        known.add(entry["node-name"])
    assert not {"-drive", "-hda", "-cdrom"} & set(argv)
    devices = [json.loads(value) for value in values(argv, "-device")]
    disks = {d["serial"]: d for d in devices if d["driver"] == "scsi-hd"}
    assert (disks["os"]["bus"], disks["os"]["lun"], disks["os"]["bootindex"]) == ("scsi0.0", 0, 0)
    assert (disks["data"]["bus"], disks["data"]["lun"]) == ("scsi1.0", 5)
    assert "bootindex" not in disks["data"]


def test_the_sandbox_and_the_network_are_closed() -> None:
    argv = command_line(SPEC, LAYOUT, "tcg")
    (seccomp,) = values(argv, "-sandbox")
    assert seccomp == "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    (network,) = values(argv, "-netdev")
    assert "restrict=on" in network
    assert "hostfwd=tcp:127.0.0.1:22022-:22" in network
    (network,) = values(
        command_line(replace(SPEC, network=Network.OUTBOUND), LAYOUT, "tcg"), "-netdev"
    )
    assert "restrict=off" in network
    sandbox = LAYOUT.sandbox(1234)
    assert not sandbox.die_with_parent
    assert dict(sandbox.read_only) == {"/base": "/vm/base"}
    assert dict(sandbox.read_write) == {"/run": "/vm/run", "/disks": "/vm/disks"}


def test_generations_and_acceleration() -> None:
    assert "pflash" not in " ".join(command_line(SPEC, LAYOUT, "tcg"))
    uefi = command_line(replace(SPEC, generation=Generation.V2), LAYOUT, "kvm")
    (machine,) = values(uefi, "-machine")
    assert "accel=kvm" in machine
    assert "pflash0=uefi-code" in machine
    assert values(uefi, "-cpu") == ["host"]
    assert values(command_line(replace(SPEC, cpu="max"), LAYOUT, "tcg"), "-cpu") == ["max"]


@given(st.text(min_size=1, max_size=30))
def test_no_name_becomes_an_option(name: str) -> None:
    (value,) = values(command_line(replace(SPEC, name=name), LAYOUT, "tcg"), "-name")
    head, _, tail = value.partition("guest=")
    assert head == ""
    assert tail.removesuffix(",debug-threads=on").replace(",,", "\0").count(",") == 0


def test_caching() -> None:
    for caching, write_cache in ((Caching.READ_WRITE, "on"), (Caching.READ_ONLY, "off")):
        argv = command_line(replace(SPEC, disks=(replace(OS, caching=caching),)), LAYOUT, "tcg")
        devices = [json.loads(value) for value in values(argv, "-device")]
        assert [d["write-cache"] for d in devices if d["driver"] == "scsi-hd"] == [write_cache]


def test_direct_io_where_there_is_such(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.prepare()
    none = replace(DATA, caching=Caching.NONE)
    assert blockdevs(none, layout)[-1]["cache"] == {"direct": False}  # there is no such file
    assert blockdevs(DATA, layout)[-1]["cache"] == {"direct": False}


@given(st.lists(st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,35}\Z"), min_size=2, unique=True))
def test_node_names_are_short_and_differ(ids: list[str]) -> None:
    all_names = [name for disk in ids for name in names(disk)]
    assert len(set(all_names)) == len(all_names)
    assert max(map(len, all_names)) + len("pit-") <= 31
    assert node(ids[0]) == names(ids[0])[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "x"},
        {"id": SPEC.id.upper()},
        {"mac": "52:54:00:12:34"},
        {"mac": "52:54:00:12:34:56,x"},
        {"vcpus": 0},
        {"memory": 1},
        {"uid": 0},
        {"disks": ()},
        {"disks": (DATA,)},
        {"disks": (OS, OS)},
        {"disks": (OS, DATA, replace(DATA, id="other"))},
        {"disks": (OS, replace(DATA, id="os"))},
    ],
)
def test_impossible_vms_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        replace(SPEC, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ""},
        {"id": "../x"},
        {"id": "a/b"},
        {"id": ".hidden"},
        {"id": "x" * 37},
        {"lun": -1},
        {"lun": 64},
        {"fmt": "raw"},
    ],
)
def test_impossible_disks_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        replace(OS, **changes)


def test_ssh_learns_the_host_key_into_the_vm(tmp_path: Path) -> None:
    vm = tmp_path / "with blank" / "id"
    argv = ssh.command(vm, 22022, user="alice", identity=Path("/k"), command=["ls", "-l"])
    assert argv[argv.index("-l") + 1] == "alice"
    assert argv[argv.index("-p") + 1] == "22022"
    assert f'UserKnownHostsFile="{vm}/known_hosts"' in argv
    assert "StrictHostKeyChecking=accept-new" in argv
    assert argv[-4:] == ["127.0.0.1", "--", "ls", "-l"]
    assert ssh.command(vm, 22022, user="a")[-1] == "127.0.0.1"
    for user in ("-oProxyCommand=x", "a b", "a@b", "a\n"):
        with pytest.raises(InvalidInput):
            ssh.command(vm, 22022, user=user)


@pytest.mark.parametrize(
    "name", ["a b", "a'b", 'a"b', "a%hb", "a\\b", "a#b=c", "a,b", "$(id)", "~a"]
)
def test_ssh_takes_no_path_apart(tmp_path: Path, name: str) -> None:
    vm = tmp_path / name / "id"
    ssh_program, *arguments = ssh.command(vm, 22, user="a", identity=tmp_path / name / "key")
    settings = run([ssh_program, "-G", *arguments]).stdout.decode().splitlines()
    assert f"userknownhostsfile {vm}/known_hosts" in settings
    assert f"identityfile {tmp_path}/{name}/key".replace("%", "%%") in settings


def test_only_a_greeting_counts_as_an_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not ssh.answers(port, timeout=0.05)  # it connects, and nobody speaks
        server.accept()[0].close()

        def greet() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(b"SSH-2.0-x\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        assert ssh.answers(port, timeout=5)
        thread.join()
    assert not ssh.answers(port, timeout=1)


def test_free_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        used = server.getsockname()[1]
        with pytest.raises(Conflict):
            ssh.free_port(used, used)
    assert ssh.free_port(used, used) == used
    with pytest.raises(Conflict):
        ssh.free_port(used, used, taken=[used])


def test_two_that_look_at_once_find_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installations know nothing of each other, and QEMU takes a port a moment after it was looked at."""
    monkeypatch.setattr(ssh, "is_free", lambda _port: True)
    assert len({ssh.free_port() for _ in range(20)}) > 10


def test_the_probe_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def boot(accel: str) -> None:
        ran.append(accel)
        if accel == "kvm":
            raise ToolFailed("it hangs")

    monkeypatch.setattr(probe, "boot", boot)
    monkeypatch.setattr(os.path, "exists", lambda _path: True)
    driver = QemuDriver(tmp_path / "cache")
    for _ in range(2):
        assert driver.acceleration() == Acceleration("tcg", "it hangs")
    assert ran == ["kvm", "tcg"]
    monkeypatch.setattr(probe, "_inputs", lambda: {"boot": "another"})
    assert driver.acceleration().name == "tcg"
    assert ran == ["kvm", "tcg"] * 2
    (tmp_path / "cache" / "acceleration.json").write_bytes(b"{")
    driver.acceleration()
    assert len(ran) == 6
    monkeypatch.setattr(probe, "boot", lambda _accel: None)
    (tmp_path / "cache" / "acceleration.json").unlink()
    assert driver.acceleration() == Acceleration("kvm", "")


def test_the_probe_fails_when_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def boot(accel: str) -> None:
        raise ToolFailed(accel)

    monkeypatch.setattr(probe, "boot", boot)
    with pytest.raises(ToolFailed, match="tcg"):
        probe.acceleration(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_firmware_is_laid_out_as_its_addresses_say() -> None:
    """The code names its own places: each line's comment begins with the line's address."""
    address = 0
    for line in probe._CODE.strip().splitlines():
        code, _, comment = line.partition(";")
        assert int(comment.split()[0], 16) == address, line
        address += len(bytes.fromhex(code))
    image = probe.firmware()
    assert len(image) == 1 << 16
    opcode, distance = struct.unpack_from("<BH", image, 0xFFF0)
    assert (opcode, (0xFFF3 + distance) & 0xFFFF) == (0xE9, 0)


def test_the_console_copies_until_its_escape() -> None:
    ours, theirs = socket.socketpair()
    keyboard, terminal = pty.openpty()
    screen_read, screen_write = os.pipe()
    try:
        os.set_blocking(keyboard, True)
        import tty  # noqa: PLC0415

        tty.setraw(terminal)
        thread = threading.Thread(target=relay, args=(ours, terminal, screen_write))
        thread.start()
        theirs.sendall(b"login: \x1b[0m")
        assert os.read(screen_read, 100) == b"login: \x1b[0m"
        os.write(keyboard, b"root\x03\r")
        assert theirs.recv(100) == b"root\x03\r"
        os.write(keyboard, b"x\x1dnever")
        assert theirs.recv(100) == b"x"
        thread.join(10)
        assert not thread.is_alive()
    finally:
        for descriptor in (keyboard, terminal, screen_read, screen_write):
            os.close(descriptor)
        ours.close()
        theirs.close()


def test_the_console_ends_with_the_vm() -> None:
    ours, theirs = socket.socketpair()
    source_read, source_write = os.pipe()
    with ours:
        theirs.close()
        relay(ours, source_read, source_write)
    os.close(source_read)
    os.close(source_write)
