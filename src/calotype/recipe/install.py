"""The method *install*: a whole system, installed by mmdebstrap as on a real machine.

As root it works in a chroot with a mount table of its own, straight in the tree; as an ordinary user in a
user namespace, which the system leaves as a tar file. The host's mount table is never touched.
"""

import contextlib
import io
import os
import signal
import subprocess
import tarfile
import threading
from collections import deque
from pathlib import Path

from calotype.errors import ToolFailed
from calotype.recipe import apt
from calotype.recipe.record import Recipe
from calotype.recipe.tree import Tree
from calotype.run import kill_group, spawn

#: Seconds that an interrupted mmdebstrap of an ordinary user may take to remove its chroot.
_PATIENCE = 30


def fill(recipe: Recipe, tree: Tree, debs: Path, work: Path) -> None:
    """Install the recipe's packages and unpack the system into an empty tree.

    Raises:
        ToolMissing: mmdebstrap is not installed.
        ToolFailed: the mirror cannot be reached, or a package or a script of the recipe failed.
    """
    if os.geteuid() == 0:
        _mmdebstrap(arguments(recipe, tree.root, debs, work, root=True), work)
        tree.prune(["dev/*"])  # the guest's devtmpfs makes its own
        return
    archive = work / "root.tar"
    _mmdebstrap(arguments(recipe, archive, debs, work, root=False), work)
    tree.unpack_file(archive)
    archive.unlink()


def arguments(recipe: Recipe, target: Path, debs: Path, work: Path, *, root: bool) -> list[str]:
    """The argument list of mmdebstrap; writes the files it names into ``work``.

    As ``root`` the ``target`` is a directory, else a tar file.
    """
    overlay = work / "overlay.tar"
    overlay.write_bytes(pack(recipe.file_trees))
    archives = "/var/cache/apt/archives"
    if root:  # on one file system: links instead of copies
        bring = f'find {debs} -name "*.deb" -exec cp -lt "$1{archives}" {{}} +'
        take = f'find "$1{archives}" -name "*.deb" -exec cp -lnt {debs} {{}} +'
    else:
        bring, take = f"sync-in {debs} {archives}", f"sync-out {archives} {debs}"
    kind = "directory" if root else "tar"
    argv = ["mmdebstrap", "--variant=minbase", f"--format={kind}", "--components=main"]
    argv += ["--skip=essential/unlink,download/empty", f"--include={','.join(recipe.packages)}"]
    argv += [f"--aptopt={line}" for line in apt.fetch_options()]
    argv += ["--dpkgopt=force-unsafe-io", "--dpkgopt=force-confold"]
    argv += [f'--setup-hook=mkdir -p "$1{archives}"', f"--setup-hook={bring}"]
    # The recipe's files come before the packages that read them while they are configured.
    argv += [f"--essential-hook=tar-in {overlay} /"]
    for number, script in enumerate(recipe.scripts):
        inside = f"/tmp/setup{number}"
        argv += [f"--customize-hook=upload {script} {inside}"]
        argv += [f'--customize-hook=chroot "$1" sh -eu {inside}']
    argv += [f"--customize-hook={take}"]
    argv += [f'--customize-hook=chown 0:0 "$1{archives}"']  # sync-in made it the builder's
    argv += ['--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap']
    argv += ['--customize-hook=rm -f "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap']
    sources = apt.mirror_lines(recipe.suite, apt.host_sources())
    return [*argv, recipe.suite, str(target), *sources]


def pack(trees: list[Path]) -> bytes:
    """Trees of plain files as one tar: all root's; scripts 0755, other files 0644; later trees win."""
    members: dict[str, Path] = {}
    for tree in trees:
        for path in sorted(tree.rglob("*")):
            members[path.relative_to(tree).as_posix()] = path
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, path in sorted(members.items()):
            info = tarfile.TarInfo(f"./{name}")
            info.mtime = int(path.stat().st_mtime)
            if path.is_dir():
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
                continue
            data = path.read_bytes()
            info.size, info.mode = len(data), 0o755 if data.startswith(b"#!") else 0o644
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


#: As root: in a process table of its own, which ends when we do, however we do.
_CONTAINED = (
    *("setpriv", "--pdeathsig", "KILL", "--"),
    *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--"),
)


def _mmdebstrap(argv: list[str], work: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    if os.geteuid() == 0:
        environment["TMPDIR"] = str(work)
        argv = [*_CONTAINED, *argv]
    process = spawn(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    last: deque[str] = deque(maxlen=12)

    def listen() -> None:
        assert process.stderr is not None  # noqa: S101 - asked for a pipe above
        for line in process.stderr:
            last.append(line.decode("utf-8", "replace").rstrip())

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        status = process.wait()
    except BaseException:
        _interrupt(process)
        raise
    finally:
        listener.join(timeout=5)
        if process.stderr is not None:
            process.stderr.close()
    if status != 0:
        told = [line for line in last if not line.startswith("I: ")]
        raise ToolFailed(
            f"mmdebstrap failed (status {status}): {' / '.join(told[-4:])}",
            hint="check that the Debian mirror can be reached",
        )


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """End mmdebstrap; an ordinary user's must itself remove its chroot, whose files are not ours."""
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        if os.geteuid() != 0:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=_PATIENCE)
    kill_group(process)
    process.wait()
