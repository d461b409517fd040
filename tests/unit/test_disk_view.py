"""The throw-away view: what is written shows in its overlay alone, and nothing stays behind."""

import os
import select
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from calotype import run
from calotype.disk import overlay
from calotype.disk.base import Extent, read
from calotype.disk.view import NbdSource, OverlaySource, RawSource, Source, WritableView, writable
from calotype.errors import InvalidInput, ToolFailed

MIB = 1 << 20
SIZE = 8 * MIB


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.seek(MIB)
        file.write(b"\1" * MIB)
    return path


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    path = tmp_path / "scratch"
    path.mkdir()
    return path


def _daemons() -> list[str]:
    found = subprocess.run(
        ["pgrep", "-af", "storage-daemon"], capture_output=True, text=True, check=False
    )
    return found.stdout.splitlines()


def _ours(scratch: Path) -> list[str]:
    """The daemons of this test that do not end; the sandbox around one ends a moment after it."""
    return [line for line in _daemons() if str(scratch) in line and not _ends(int(line.split()[0]))]


def _ends(pid: int) -> bool:
    try:
        gone = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return _readable(gone)
    finally:
        os.close(gone)


def _edit(view: WritableView) -> None:
    with view.partition(MIB, 4 * MIB) as part, part.open("r+b", buffering=0) as file:
        assert os.fstat(file.fileno()).st_size == 4 * MIB
        file.write(b"\7" * 4096)
        file.write(bytes(4096))
        file.seek(2 * MIB)
        file.write(b"\7" * 4096)
        file.seek(3 * MIB)
        file.write(bytes(65536))


def _check(view: WritableView) -> None:
    assert view.changed() == [
        Extent(MIB, 4096, zero=False),
        Extent(MIB + 4096, 4096, zero=True),
        Extent(3 * MIB, 4096, zero=False),
        Extent(4 * MIB, 65536, zero=True),
    ]
    with closing(view.disk()) as disk:
        assert disk.size == SIZE
        assert read(disk, MIB - 1, 2) == b"\0\7"
        assert read(disk, MIB + 4095, 4098) == b"\7" + bytes(4096) + b"\1"
        assert read(disk, 3 * MIB, 4097) == b"\7" * 4096 + b"\0"


def test_over_a_raw_file(tmp_path: Path, base: Path, scratch: Path) -> None:
    before = base.read_bytes()
    with writable(RawSource(base), tmp_path / "o", scratch) as view:
        assert view.size == SIZE
        with view.path.open("rb") as file:
            assert file.read() == before
        _edit(view)
        with view.path.open("rb") as file:
            assert file.read()[MIB : MIB + 4096] == b"\7" * 4096
        with pytest.raises(InvalidInput, match="still open"):
            view.changed()
    _check(view)
    assert base.read_bytes() == before
    assert list(scratch.iterdir()) == []
    assert _ours(scratch) == []
    assert "fuse" not in Path("/proc/self/mountinfo").read_text("utf-8")
    with pytest.raises(InvalidInput, match="closed"):
        view.path.exists()


def test_over_a_stopped_vms_disk(tmp_path: Path, base: Path, scratch: Path) -> None:
    middle = tmp_path / "vm.qcow2"
    overlay.create(middle, SIZE)
    run.run(["qemu-io", "-f", "qcow2", "-c", "write -P 5 6M 4k", str(middle)])
    if os.geteuid() == 0:  # as the files of a VM that ran under its own user
        for path in (base, middle):
            path.chmod(0o600)
            os.chown(path, 12345, 12345)
    before = middle.read_bytes()
    with writable(OverlaySource(middle, base), tmp_path / "o", scratch) as view:
        _edit(view)
    _check(view)
    with closing(view.disk()) as disk:
        assert read(disk, 6 * MIB, 1) == b"\5"
    assert middle.read_bytes() == before


def test_over_a_disk_without_base(tmp_path: Path, scratch: Path) -> None:
    middle = tmp_path / "vm.qcow2"
    overlay.create(middle, SIZE)
    with (
        writable(OverlaySource(middle, None), tmp_path / "o", scratch) as view,
        view.partition(0, SIZE) as part,
        part.open("r+b") as file,
    ):
        file.write(b"\7" * 4096)
    assert view.changed() == [Extent(0, 4096, zero=False)]


def test_over_an_nbd_export(tmp_path: Path, base: Path, scratch: Path) -> None:
    path, pid = tmp_path / "nbd", tmp_path / "pid"
    argv = ["qemu-storage-daemon", "--daemonize", "--pidfile", str(pid)]
    argv += ["--blockdev", f"driver=file,node-name=f,filename={base},read-only=on"]
    argv += ["--nbd-server", f"addr.type=unix,addr.path={path}"]
    argv += ["--export", "nbd,id=e,node-name=f,name=disk 1"]
    run.run(argv)
    try:
        with writable(NbdSource(path, "disk 1"), tmp_path / "o", scratch) as view:
            _edit(view)
        _check(view)
    finally:
        os.kill(int(pid.read_text("ascii")), signal.SIGTERM)


def test_one_part_at_a_time_and_inside(tmp_path: Path, base: Path, scratch: Path) -> None:
    with writable(RawSource(base), tmp_path / "o", scratch) as view:
        for offset, size in ((-1, 512), (0, 0), (MIB, SIZE)):
            with pytest.raises(InvalidInput), view.partition(offset, size):
                pass
        with (
            view.partition(0, MIB),
            pytest.raises(InvalidInput, match="another"),
            view.partition(MIB, MIB),
        ):
            pass
        for at in range(4):
            with view.partition(at * MIB, MIB) as part, part.open("r+b") as file:
                file.write(bytes([at + 1]) * 4096)
    with closing(view.disk()) as disk:
        assert [read(disk, at * MIB, 1) for at in range(4)] == [b"\1", b"\2", b"\3", b"\4"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing(
    tmp_path: Path, base: Path, scratch: Path, error: type[BaseException]
) -> None:
    def fail() -> None:
        with writable(RawSource(base), tmp_path / "o", scratch) as view:
            _edit(view)
            raise error

    with pytest.raises(error):
        fail()
    assert not (tmp_path / "o").exists()
    assert list(scratch.iterdir()) == []
    assert _ours(scratch) == []


def test_a_killed_owner_takes_the_daemon_along(tmp_path: Path, base: Path, scratch: Path) -> None:
    program = f"""
from pathlib import Path
from calotype.disk.view import RawSource, writable
with writable(RawSource(Path({str(base)!r})), Path({str(tmp_path / "o")!r}), Path({str(scratch)!r})) as v:
    print(v.path, flush=True)
    input()
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline().split("/")[2])
        gone = os.pidfd_open(pid)
        owner.kill()
        assert _readable(gone)
    os.close(gone)


def _readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 10)[0])


class Broken:
    """A source whose nodes the daemon refuses."""

    def __init__(self, real: Source) -> None:
        self.open, self.files = real.open, real.files

    def nodes(self) -> list[dict[str, object]]:
        return [{"driver": "qcow2", "node-name": "source", "file": "missing"}]


def test_what_the_daemon_says_is_told(tmp_path: Path, base: Path, scratch: Path) -> None:
    with (
        pytest.raises(ToolFailed, match="missing") as caught,
        writable(Broken(RawSource(base)), tmp_path / "o", scratch),
    ):
        pass
    assert caught.value.hint
    assert not (tmp_path / "o").exists()
