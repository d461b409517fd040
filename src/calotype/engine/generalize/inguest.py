"""A guest looked at, or made general, from inside while it runs. What it says is its own word.

For a look before anything is stopped, and for systems that nobody can look into from outside (FreeBSD,
encrypted disks). Files that are deleted in a running guest stay in its free blocks.
"""

from contextlib import closing

from calotype.engine.context import Context
from calotype.engine.generalize.appliance import running_guest
from calotype.engine.generalize.steps import Steps
from calotype.engine.machines import power
from calotype.engine.moment import moment
from calotype.engine.operation import Operation
from calotype.engine.proof import look
from calotype.guest import DiskMap, GeneralizeReport, Proof, select
from calotype.guest.generalize import perform_and_check, suitable
from calotype.guest.inspect import inspect_guest
from calotype.guest.proof import preferences, prove
from calotype.guest.secrets import secrets
from calotype.model import PowerState, VirtualMachine

#: From inside, a guest has files and no disk.
_NO_DISK = DiskMap(None, (), boot_code=False)


def prove_vm(context: Context, name: str) -> Proof:
    """What a VM shows: a running one by its agent, a stopped one by its disk.

    Raises:
        NotFound: there is no such VM.
        GuestError: it runs, and has no agent that answers, or that may run commands.
    """
    with context.vm_lock(name) as vm, context.operation() as operation:
        if power(context, vm) is PowerState.RUNNING:
            with context.progress.phase("looking into the guest", None):
                return prove(running_guest(context, vm.name), _NO_DISK)
        return prove_stopped(context, operation, vm)


def prove_stopped(context: Context, operation: Operation, vm: VirtualMachine) -> Proof:
    """What the OS disk of a stopped VM shows; the caller holds the VM."""
    with (
        moment(context, vm, operation) as found,
        closing(found.sources[vm.os_disk.id].open()) as disk,
    ):
        return look.prove(context, disk)


def generalize_running(context: Context, vm: VirtualMachine, steps: Steps) -> GeneralizeReport:
    """Perform and check the steps in a running guest; the caller holds the VM, and stops it then.

    Traces come back while a guest runs, and are only told of.

    Raises:
        NotAllowed: it does not run.
        GuestError: it has no agent that may run commands, is of a kind that the steps do not know, or
            identity or credentials were left.
    """
    guest = running_guest(context, vm.name)
    before = suitable(guest, _NO_DISK, reached=inspect_guest(guest, _NO_DISK).apart)
    chosen = select(before.distribution, enable=steps.enable, disable=steps.disable)
    done = perform_and_check(guest, chosen, context.progress, dry_run=False, alive=True)
    return GeneralizeReport(
        before=before,
        steps=tuple(done),
        disabled=tuple(sorted(steps.disable)),
        secrets=tuple(secrets(guest)),
        notes=(*preferences(before), "in the running guest: deleted files were not erased"),
        wiped=0,
        filesystem="not checked: it was in use",
        dry_run=False,
    )
