"""All disks of a running VM at one moment, read while it goes on, its chain untouched.

The guest's file systems are frozen through its agent; one transaction starts a ``blockdev-backup``
with ``sync=none`` for every disk; the guest is thawed. From then on what the guest overwrites is
first copied aside, to a temporary qcow2 file over the disk's node: read together, by NBD, the two are
the disk at the moment of the transaction. The temporary files are in ``run`` and go at the end.
"""

import contextlib
import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from calotype.errors import CalotypeError, GuestError, NotAllowed, NotFound, ToolFailed
from calotype.machine.agent import HINT, Agent, Conversation, connected
from calotype.machine.layout import Layout
from calotype.machine.nodes import node
from calotype.machine.process import alive
from calotype.machine.qmp import Qmp
from calotype.machine.spec import NbdEndpoint, Snapshot
from calotype.model import Consistency
from calotype.run import Limits, kill_group, spawn

#: How long an agent may take to answer before the guest is taken as having none, in seconds.
_PROBE = 3.0

#: How long the guest may stay frozen, in seconds: its own writers time out soon after.
_FROZEN = 20.0

_PREFIX = "pit-"


@contextlib.contextmanager
def point_in_time(
    directory: Path,
    disk_ids: Sequence[str],
    freeze: Literal["auto", "require", "never"] = "auto",
) -> Iterator[Snapshot]:
    """Hold the disks ``disk_ids`` of the VM in ``directory`` at one moment.

    The VM's lock is held meanwhile. ``freeze``: ``auto`` freezes when the guest's agent answers.

    Raises:
        NotAllowed: the VM does not run.
        NotFound: it has no such disk.
        GuestError: ``freeze`` is ``require``, and the guest cannot be frozen.
    """
    layout = Layout(directory)
    with layout.lock(), contextlib.ExitStack() as stack:
        qmp = stack.enter_context(_monitor(layout))
        _clear(qmp, layout)
        sizes = _sizes(qmp, disk_ids)
        stack.callback(_clear_quietly, layout, qmp)
        for disk_id in disk_ids:
            _add_target(qmp, disk_id, sizes[disk_id])
        yield _take(qmp, layout, sizes, freeze)


def clear_point_in_time(directory: Path) -> None:
    """Remove what a killed command left: jobs, exports, nodes, files, a frozen guest.

    Harmless when there is nothing, and when the VM does not run.
    """
    layout = Layout(directory)
    if not layout.root.exists():
        return
    with layout.lock():
        if not alive(layout):
            _unlink(layout)
            return
        with _monitor(layout) as qmp:
            if _left(qmp):
                with contextlib.suppress(GuestError):
                    Agent(directory, patience=_PROBE).thaw()
            _clear(qmp, layout)


@contextlib.contextmanager
def _monitor(layout: Layout) -> Iterator[Qmp]:
    try:
        qmp = Qmp.open(layout.control)
    except OSError:
        raise NotAllowed("the VM does not run", hint="capture its disks as they are") from None
    with qmp:
        yield qmp


def _target(disk_id: str) -> str:
    return f"{_PREFIX}{node(disk_id)}"


def _sizes(qmp: Qmp, disk_ids: Sequence[str]) -> dict[str, int]:
    nodes = {n["node-name"]: n for n in qmp.execute("query-named-block-nodes", {"flat": True})}
    for disk_id in disk_ids:
        if node(disk_id) not in nodes:
            raise NotFound(f"the VM has no disk {disk_id}")
    return {disk_id: nodes[node(disk_id)]["image"]["virtual-size"] for disk_id in disk_ids}


def _add_target(qmp: Qmp, disk_id: str, size: int) -> None:
    """Create the file for what the guest overwrites, and open it over the disk's node.

    QEMU creates it: a caller with more rights writes nothing where QEMU could have laid a link.
    """
    name = _target(disk_id)
    file = {"driver": "file", "filename": f"{name}.qcow2"}
    _create(qmp, name, {**file, "size": 0})
    qmp.execute("blockdev-add", {**file, "node-name": f"{name}-f"})
    _create(qmp, name, {"driver": "qcow2", "file": f"{name}-f", "size": size})
    target = {"node-name": name, "driver": "qcow2", "file": f"{name}-f", "backing": node(disk_id)}
    qmp.execute("blockdev-add", target)


def _create(qmp: Qmp, job: str, options: dict[str, Any]) -> None:
    qmp.execute("blockdev-create", {"job-id": job, "options": options})
    _await_job(qmp, job, "concluded")
    state = next(entry for entry in qmp.execute("query-jobs") if entry["id"] == job)
    qmp.execute("job-dismiss", {"id": job})
    if "error" in state:
        raise ToolFailed(f"QEMU cannot create {options.get('filename', job)}: {state['error']}")


def _await_job(qmp: Qmp, job: str, status: str) -> None:
    qmp.wait(
        "JOB_STATUS_CHANGE",
        timeout=60.0,
        match=lambda data: data.get("id") == job and data.get("status") == status,
    )


def _take(
    qmp: Qmp, layout: Layout, sizes: dict[str, int], freeze: Literal["auto", "require", "never"]
) -> Snapshot:
    actions = [
        {
            "type": "blockdev-backup",
            "data": {
                "job-id": _target(disk_id),
                "device": node(disk_id),
                "target": _target(disk_id),
                "sync": "none",
            },
        }
        for disk_id in sizes
    ]
    qmp.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "nbd.sock"}}})
    begin = functools.partial(qmp.execute, "transaction", {"actions": actions}, timeout=_FROZEN)
    seconds, note = 0.0, None
    consistency = Consistency.CRASH
    if freeze != "never":
        try:
            seconds = _while_frozen(layout, begin)
            consistency = Consistency.FILESYSTEM
        except _NotFrozenError as error:
            if freeze == "require":
                raise
            note = error.message
    if consistency is Consistency.CRASH:
        begin()
    for disk_id in sizes:
        export = {
            "type": "nbd",
            "id": _target(disk_id),
            "name": disk_id,
            "node-name": _target(disk_id),
            "allocation-depth": True,
        }
        qmp.execute("block-export-add", export)
    return Snapshot(
        consistency=consistency,
        frozen_seconds=seconds,
        exports={
            disk_id: NbdEndpoint(path=layout.run / "nbd.sock", export=disk_id, size=size)
            for disk_id, size in sizes.items()
        },
        note=note,
    )


class _NotFrozenError(GuestError):
    """The guest was not frozen, so nothing has been begun."""


def _while_frozen(layout: Layout, begin: Callable[[], object]) -> float:
    """Call ``begin`` while the guest's file systems are frozen; return for how many seconds."""
    if not connected(layout):
        raise _NotFrozenError("no guest agent is running", hint=HINT)
    agent = Agent(layout.root, patience=_PROBE)
    with contextlib.ExitStack() as stack:
        try:
            talk = stack.enter_context(agent.conversation())
        except GuestError as error:
            raise _NotFrozenError(error.message, hint=error.hint) from error
        stack.enter_context(_guard(layout))
        started = time.monotonic()
        try:
            _freeze(talk)
            begin()
        finally:
            _thaw(talk)
        return time.monotonic() - started


def _freeze(talk: Conversation) -> None:
    try:
        frozen = talk.execute("guest-fsfreeze-freeze", timeout=_FROZEN)
    except GuestError as error:
        raise _NotFrozenError(error.message) from error
    if not isinstance(frozen, int) or frozen < 1:
        raise _NotFrozenError("the guest agent froze no file system")


def _thaw(talk: Conversation) -> None:
    # A freeze that timed out may answer late, so the thaw's answer is not the next one for sure.
    with contextlib.suppress(GuestError):
        talk.execute("guest-fsfreeze-thaw")
    with contextlib.suppress(GuestError):
        if talk.execute("guest-fsfreeze-status") == "frozen":
            talk.execute("guest-fsfreeze-thaw")


@contextlib.contextmanager
def _guard(layout: Layout) -> Iterator[None]:
    """A second process that thaws the guest when this one is killed while it is frozen."""
    guard = spawn(
        [sys.executable, "-m", "calotype.machine.thaw", str(layout.root)],
        stdin=subprocess.PIPE,
        limits=Limits(wall=None),
    )
    try:
        yield
    finally:
        kill_group(guard)
        guard.communicate()


def _left(qmp: Qmp) -> bool:
    nodes = qmp.execute("query-named-block-nodes", {"flat": True})
    return any(n["node-name"].startswith(_PREFIX) for n in nodes)


def _clear_quietly(layout: Layout, qmp: Qmp) -> None:
    """Clear at the end of a capture; a VM that has ended meanwhile has nothing to clear."""
    with contextlib.suppress(CalotypeError):
        _clear(qmp, layout)
    if not alive(layout):
        _unlink(layout)


def _clear(qmp: Qmp, layout: Layout) -> None:
    for export in qmp.execute("query-block-exports"):
        if export["id"].startswith(_PREFIX):
            name = export["id"]
            qmp.execute("block-export-del", {"id": name, "mode": "hard"})
            qmp.wait("BLOCK_EXPORT_DELETED", timeout=30.0, match=_named("id", name))
    with contextlib.suppress(ToolFailed):  # it may not run
        qmp.execute("nbd-server-stop")
    for job in qmp.execute("query-jobs"):
        if job["id"].startswith(_PREFIX):
            name = job["id"]
            if job["status"] == "concluded":  # a creation whose command was killed
                qmp.execute("job-dismiss", {"id": name})
            else:
                qmp.execute("job-cancel", {"id": name})
                _await_job(qmp, name, "null")
    nodes = {n["node-name"] for n in qmp.execute("query-named-block-nodes", {"flat": True})}
    own = sorted(name for name in nodes if name.startswith(_PREFIX))
    for name in sorted(own, key=lambda name: name.endswith("-f")):  # formats before their files
        qmp.execute("blockdev-del", {"node-name": name})
    _unlink(layout)


def _named(key: str, value: str) -> Any:
    return lambda data: data.get(key) == value


def _unlink(layout: Layout) -> None:
    for path in layout.run.glob(f"{_PREFIX}*.qcow2"):
        path.unlink(missing_ok=True)
