"""One command, measured: wall clock with its output on the disk, CPU, memory of its process tree."""

import ctypes
import os
import platform
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

MIB = 1 << 20
_SAMPLE = 0.05  # seconds between two looks at the processes' memory
_DROP = Path("/proc/sys/vm/drop_caches")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What is measured: an argument list, run in ``cwd``; ``servers`` work for it and count too."""

    argv: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    servers: tuple[int, ...] = ()

    @classmethod
    def shell(cls, script: str, *args: str | Path, servers: tuple[int, ...] = ()) -> Self:
        """A pipe of programs; ``$1`` and on are the arguments."""
        argv = ["bash", "-euo", "pipefail", "-c", script, "bash", *map(str, args)]
        return cls(argv=argv, servers=servers)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run: seconds until its output was on the disk, until it returned, of CPU; peak MiB."""

    seconds: float
    returned: float
    cpu: float
    memory: float


def run(command: Command, where: Path, log: Path) -> Run:
    """Run to the end, then sync the file system of ``where`` inside the clock.

    What was dirty before is synced before, so that nobody pays for others. All tools are measured alike, also
    those that sync what they write themselves.

    Raises:
        SystemExit: the command failed; its last words are told.
    """
    flush(where)
    servers = cpu_of(command.servers)
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **command.env},
            cwd=command.cwd,
        )
        with Watch([process.pid, *command.servers]) as watch:
            _pid, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        returned = time.perf_counter() - started
        flush(where)
        seconds = time.perf_counter() - started
    if process.returncode:
        words = log.read_text(errors="replace").strip().splitlines()[-6:]
        raise SystemExit(f"{command.argv[0]} failed ({process.returncode}): {' / '.join(words)}")
    cpu = used.ru_utime + used.ru_stime + cpu_of(command.servers) - servers
    return Run(seconds=seconds, returned=returned, cpu=cpu, memory=watch.peak)


class Watch:
    """The peak of what processes and all their descendants hold resident, in MiB.

    It is sampled; of each single process the kernel's own high-water mark counts, which no sample misses.
    (``ru_maxrss`` would begin with what the parent held when it forked.)
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peak = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.is_set():
            found = [_resident(pid) for pid in tree(self._pids)]
            together = sum(now for now, _peak in found)
            self.peak = max(self.peak, together, *(peak for _now, peak in found))
            self._stop.wait(_SAMPLE)


def tree(pids: Iterable[int]) -> list[int]:
    """These processes and all below them."""
    todo, found = list(pids), []
    while todo:
        pid = todo.pop()
        found.append(pid)
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                below = Path(f"/proc/{pid}/task/{task}/children").read_text()
                todo += map(int, below.split())
        except OSError:  # it has ended meanwhile
            continue
    return found


def _resident(pid: int) -> tuple[float, float]:
    """What a process holds now, and the most that it held, in MiB."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0, 0.0
    lines = (line.split() for line in status.splitlines() if line.startswith(("VmHWM", "VmRSS")))
    found = {words[0]: int(words[1]) / 1024 for words in lines}
    return found.get("VmRSS:", 0.0), found.get("VmHWM:", 0.0)


def cpu_of(pids: Iterable[int]) -> float:
    """The CPU seconds that running servers have used so far."""
    total = 0
    for pid in tree(pids):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def flush(where: Path) -> None:
    """Sync the file system that ``where`` lies on."""
    fd = os.open(where, os.O_RDONLY)
    try:
        if _libc.syncfs(fd):
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        os.close(fd)


def warm(paths: Iterable[Path]) -> None:
    """Bring files (and all files of directories) into the page cache."""
    for file in files(paths):
        with file.open("rb", buffering=0) as opened:
            for start, end in data_runs(opened.fileno()):
                opened.seek(start)
                left = end - start
                while left and (block := opened.read(min(left, 8 * MIB))):
                    left -= len(block)


def cold(paths: Iterable[Path]) -> str:
    """Get files out of the page cache; says how."""
    os.sync()
    try:
        _DROP.write_text("3\n")
    except OSError:
        for file in files(paths):
            fd = os.open(file, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        return "posix_fadvise(DONTNEED) on the files"
    return "drop_caches"


def files(paths: Iterable[Path]) -> list[Path]:
    """These files, and all files of these directories."""
    found: list[Path] = []
    for path in paths:
        found += [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return found


def data_runs(fd: int) -> list[tuple[int, int]]:
    """Where a sparse file has data."""
    runs: list[tuple[int, int]] = []
    end, size = 0, os.fstat(fd).st_size
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # only a hole is left
            break
        end = os.lseek(fd, start, os.SEEK_HOLE)
        runs.append((start, end))
    return runs


def held(path: Path) -> int:
    """The bytes that a file or a directory's files take, holes left out."""
    return sum(min(f.stat().st_size, f.stat().st_blocks * 512) for f in files([path]))


def median(values: Iterable[float]) -> float:
    """The median."""
    return statistics.median(values)


def answer(*argv: str) -> str:
    """What a program prints; empty when it is not installed."""
    if shutil.which(argv[0]) is None:
        return ""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip()


def machine(where: Path) -> dict[str, str]:
    """What the measurements depend on."""
    model = answer("sh", "-c", "grep -m1 'model name' /proc/cpuinfo | cut -d: -f2")
    memory = Path("/proc/meminfo").read_text().split(None, 2)[1]
    disk = answer("findmnt", "-no", "SOURCE,FSTYPE,OPTIONS", "-T", str(where))
    return {
        "cpu": f"{os.cpu_count()} cores, {model}",
        "memory": f"{int(memory) / MIB:.0f} GiB",
        "disk": disk,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "qemu-img": first_line("qemu-img", "--version"),
        "restic": first_line("restic", "version"),
        "borg": first_line("borg", "--version"),
        "casync": first_line("casync", "--version"),
    }


def first_line(*argv: str) -> str:
    """The first line that a program prints."""
    return (answer(*argv).splitlines() or ["not installed"])[0]
