"""Guests on file systems that we do not read ourselves, and guests that run: behind one shell or another.

An appliance is started for each look or change, and is gone at its end. For looking, it gets the disk by
NBD, read-only, with a throw-away overlay for what its kernel replays; for changing, the writable view that
a capture makes.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from calotype.disk import Disk, overlay
from calotype.disk.layout import MappedDisk
from calotype.disk.raw import parse
from calotype.disk.served import served
from calotype.disk.view import WritableView
from calotype.disk.window import Window
from calotype.engine.context import Context
from calotype.engine.generalize.steps import DEFAULT, Steps
from calotype.engine.machines import running
from calotype.errors import GuestError
from calotype.guest import GeneralizeReport, select, survey
from calotype.guest.fstab import unescaped
from calotype.guest.generalize import perform_and_check, suitable
from calotype.guest.mounts import MountedGuest, devices, mount_guest, unmount_guest
from calotype.guest.proof import preferences
from calotype.guest.remote import RemoteGuest, Shell
from calotype.guest.scrub import scrub, snapshots
from calotype.guest.secrets import secrets
from calotype.machine import Agent, Completed
from calotype.machine.appliance import ApplianceMachine, Drive, appliance
from calotype.recipe.appliance import build_appliance

_OF_DISKS = frozenset(
    {
        "ext2",
        "ext3",
        "ext4",
        "xfs",
        "btrfs",
        "vfat",
        "f2fs",
        "jfs",
        "reiserfs",
        "ufs",
        "zfs",
        "msdosfs",
    }
)


@contextmanager
def appliance_tree(context: Context, source: Disk) -> Iterator[MountedGuest]:
    """The guest on a disk, to look at; ``source`` stays as it is, and the caller's.

    Raises:
        GuestError: no operating system was found, or it cannot be mounted.
        ToolMissing: QEMU is not installed.
    """
    with context.operation() as operation, ExitStack() as stack:
        end = stack.enter_context(served(source, operation.directory))
        scratch = operation.directory / "overlay"
        overlay.create(scratch, source.size)
        fd = os.open(scratch, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        shell = stack.enter_context(_start(context, Drive(end.socket, end.export, fd)))
        yield mount_guest(shell, writable=False)


@contextmanager
def appliance_guest(context: Context, view: WritableView) -> Iterator[MountedGuest]:
    """The guest on a view of a disk, to change; at the block's end all is written and unmounted.

    Raises:
        GuestError: no operating system was found, or it cannot be mounted or changed.
        ToolMissing: QEMU is not installed.
    """
    with on_view(context, view) as shell:
        mounted = mount_guest(shell, writable=True)
        yield mounted
        mounted.guest.flush()
        unmount_guest(shell, mounted)


def running_guest(context: Context, vm_name: str) -> RemoteGuest:
    """The guest of a running VM, behind its agent; what it says is the guest's word.

    Raises:
        NotAllowed: it does not run.
        GuestError: it has no agent that answers, or that may run commands.
    """
    return agent_guest(AgentShell(Agent(running(context, vm_name))))


def agent_guest(shell: Shell) -> RemoteGuest:
    """The running guest in which a shell's scripts run, without what is mounted there from elsewhere."""
    return RemoteGuest(shell, apart=_apart(shell))


def generalize_in_appliance(
    context: Context, view: WritableView, steps: Steps = DEFAULT, *, dry_run: bool = False
) -> GeneralizeReport:
    """Generalize the OS disk behind a view in an appliance; as :func:`calotype.guest.generalize`.

    All file systems that fstab names are reached; on all of the disk, what was deleted is erased.
    ``wiped`` in the report is the free space that is zero now.

    Raises:
        GuestError: the disk has no operating system that can be generalized, is damaged, keeps
            snapshots, or a check found that something is left.
        InvalidInput: a step's name is wrong.
    """
    progress = context.progress
    window = Window.open(view.path)
    with closing(MappedDisk(parse(window), window)) as disk:
        found = survey(disk)
    with on_view(context, view) as shell:
        with progress.phase("starting the appliance", None):
            _refuse_snapshots(shell)
            mounted = mount_guest(shell, writable=True)
        before = suitable(mounted.guest, found, mounted.reached)
        chosen = select(before.distribution, enable=steps.enable, disable=steps.disable)
        done = perform_and_check(mounted.guest, chosen, progress, dry_run=dry_run)
        kept = tuple(secrets(mounted.guest))
        mounted.guest.flush()
        unmount_guest(shell, mounted)
        wiped, state = 0, "not changed"
        if not dry_run:
            with progress.phase("erasing deleted files", None):
                wiped, state = scrub(shell, mounted.devices)
    absent = tuple(f"not mounted: {line}" for line in mounted.absent)
    return GeneralizeReport(
        before=before,
        steps=tuple(done),
        disabled=tuple(sorted(steps.disable)),
        secrets=kept,
        notes=(*preferences(before), *absent),
        wiped=wiped,
        filesystem=state,
        dry_run=dry_run,
    )


class AgentShell:
    """Scripts in a running guest, by its agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def run(self, script: bytes, stdin: bytes = b"", *, timeout: float = 60.0) -> Completed:
        """Run a script as root; see :class:`calotype.guest.remote.Shell`."""
        # Arguments of the agent are text, and names of files are not: all goes in as standard input.
        take = 'read -r n; s=$(dd bs=1 count="$n" 2> /dev/null); eval "$s"'
        data = b"%d\n" % len(script) + script + stdin
        return self._agent.run(["/bin/sh", "-c", take], stdin=data, timeout=timeout)


def _apart(shell: Shell) -> list[str]:
    """Where a running guest has mounted what is no part of its disks."""
    done = shell.run(b"cat /proc/self/mounts 2> /dev/null || mount -p")
    if done.status != 0:
        raise GuestError("the guest does not tell what it has mounted")
    # The last of several on one place is the one that is seen.
    seen: dict[str, str] = {}
    for line in done.stdout.decode("utf-8", "surrogateescape").splitlines():
        fields = line.split()
        if len(fields) >= 3:
            seen[unescaped(fields[1])] = fields[2]
    return sorted(path for path, kind in seen.items() if kind not in _OF_DISKS and path != "/")


def _refuse_snapshots(shell: ApplianceMachine) -> None:
    for device in devices(shell):
        if device.type == "btrfs":
            kept = snapshots(shell, device)
            others = [path for path in kept if path != "@/.snapshots/1/snapshot"]
            if others:
                raise GuestError(
                    f"snapshots keep what is to be removed: {', '.join(others[:5])}",
                    hint="delete them in the VM (snapper delete, btrfs subvolume delete)",
                )


@contextmanager
def on_view(context: Context, view: WritableView) -> Iterator[ApplianceMachine]:
    """An appliance with a view's disk, which it can write to, and nothing mounted."""
    with (
        view.served() as end,
        _start(context, Drive(end.socket, end.export)) as shell,
    ):
        yield shell


@contextmanager
def _start(context: Context, drive: Drive) -> Iterator[ApplianceMachine]:
    built = build_appliance(context.home.recipes, progress=context.progress)
    accel = context.driver.acceleration().name
    with appliance(built.kernel, built.initrd, [drive], accel=accel) as machine:
        yield machine
