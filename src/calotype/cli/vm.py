"""``calotype vm``: virtual machines."""

import getpass
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from calotype import units
from calotype.cli import GROUPS
from calotype.cli.arguments import Repeat, Seconds, StdinPath, pairs, read
from calotype.cli.common import Common, session
from calotype.cli.output import Columns, emit, for_people, plain
from calotype.cli.text import say
from calotype.cli.text import size as show_size
from calotype.engine import guests, launch, machines, references
from calotype.engine.context import Context
from calotype.engine.machines import VmView
from calotype.errors import InvalidInput
from calotype.model import Network, VirtualMachine

app = App(name="vm", help=GROUPS["vm"])
disk = App(name="disk", help="Attach and detach data disks, also while the VM runs.")
app.command(disk)
# These texts are all that --help says of them, before their options; the functions load much.
app.command(
    "calotype.cli.capture:capture",
    name="capture",
    help="Make an image of a VM, running or stopped: all its disks at one instant. The VM goes on.",
)
app.command(
    "calotype.cli.verify:verify_vm",
    name="verify",
    help="Look into a VM, and judge: a running one by its agent, a stopped one by its disk.\n\n"
    "Nothing is changed: it says what generalizing would have to remove.",
)
app.command(
    "calotype.cli.inplace:generalize",
    name="generalize",
    help="Generalize a VM in place: it stops, makes images, and starts again only when restored.\n\n"
    "A restore point of all its disks is taken first. To make an image and let the VM go on as it is, "
    "say: calotype vm capture NAME --image IMAGE --generalize.",
)
app.command(
    "calotype.cli.inplace:restore",
    name="restore",
    help="Bring a VM back to a restore point, which stays: all its disks as they were then.",
)
app.command(
    "calotype.cli.inplace:restore_point",
    name="restore-point",
    help="Restore points: all disks of a VM as they were at one instant.",
)


def _state(record: dict[str, Any]) -> str:
    """What a VM does now, and whether it is one that makes images and does not start."""
    power: str = record["powerState"]
    return f"{power}, generalized" if record["generalized"] else power


COLUMNS: Columns = {
    "Name": lambda v: v["name"],
    "State": _state,
    "Image": lambda v: v["image"],
    "vCPUs": lambda v: v["vcpus"],
    "Memory": lambda v: show_size(v["memory"]),
    "Disks": lambda v: len(v["disks"]),
    "SSH": lambda v: f"127.0.0.1:{v['sshPort']}",
}


@app.command
def create(
    name: str,
    *,
    image: str,
    vcpus: int | None = None,
    memory: str | None = None,
    admin_username: str | None = None,
    ssh_key_values: Annotated[tuple[str, ...], Repeat] = (),
    admin_password: StdinPath | None = None,
    computer_name: str | None = None,
    custom_data: StdinPath | None = None,
    time_zone: str | None = None,
    os_disk_size: str | None = None,
    data_disk_sizes: Annotated[tuple[str, ...], Repeat] = (),
    forward: Annotated[tuple[str, ...], Repeat] = (),
    network: Network = Network.RESTRICTED,
    tags: Annotated[tuple[str, ...], Repeat] = (),
    allow_duplicate_identity: Annotated[bool, Parameter(negative="")] = False,
    start: bool = True,
    wait: Annotated[bool, Parameter(negative="")] = False,
    common: Common | None = None,
) -> None:
    """Create a VM from an image; its data disks come back by LUN without being named.

    Parameters
    ----------
    name
        The VM's name, and its host name unless --computer-name says otherwise.
    image
        The image: NAME or id; GALLERY/DEFINITION[/VERSION]; PUBLISHER:OFFER:SKU[:VERSION] or an alias;
        community/PUBLIC_NAME/DEFINITION[/VERSION]. What is missing is pulled.
    vcpus
        Virtual processors (default: the image's recommendation, else 1).
    memory
        Memory: 2G, 512M (default: the image's recommendation, else 1G).
    admin_username
        The admin user of a generalized image (default: azureuser).
    ssh_key_values
        Public keys, or files that hold them (default: a key pair of this installation is made).
    admin_password
        The admin user's password; '-' reads it from standard input.
    computer_name
        The guest's host name.
    custom_data
        A file with custom data for cloud-init (cloud-config, script, ...).
    time_zone
        Such as Europe/Madrid.
    os_disk_size
        Grow the OS disk to this size.
    data_disk_sizes
        New empty data disks: SIZE, or LUN=SIZE.
    forward
        Forward a port of 127.0.0.1 to the guest: HOST:GUEST; HOST 0 finds a free one.
    network
        What the guest reaches by itself. restricted: nothing. outbound: whatever this host reaches, the
        services on the host's own loopback and its metadata addresses included.
    tags
        KEY=VALUE.
    allow_duplicate_identity
        Make a second VM from a specialized image although both are one machine twice (recorded).
    start
        Start it.
    wait
        Return when it answers over SSH.
    """
    with session(common) as context:
        request = launch.VmRequest(
            name=name,
            image=image,
            vcpus=vcpus,
            memory=units.size(memory) if memory else None,
            computer_name=computer_name,
            admin_user=admin_username,
            admin_password=_secret(admin_password),
            ssh_keys=[key for value in ssh_key_values for key in _public_keys(value)],
            custom_data=read(custom_data) if custom_data else None,
            timezone=time_zone,
            os_disk_size=units.size(os_disk_size) if os_disk_size else None,
            new_data_disks=_data_disks(context, image, data_disk_sizes),
            forwards=[_forward(text) for text in forward],
            network=network,
            allow_duplicate_identity=allow_duplicate_identity,
            start=start,
            tags=pairs(tags),
        )
        vm = launch.create_vm(context, request)
        for note in vm.notes:
            say("warning", note)
        if wait and start:
            guests.wait(context, vm.name)
        _emit_vm(context, common, vm.name)


@app.command(name="list")
def list_(*, common: Common | None = None) -> None:
    """List the VMs and what they do now."""
    with session(common) as context:
        images = context.system.image_names()
        emit(common, [_record(view, images) for view in machines.list_all(context)], COLUMNS)


@app.command
def show(name: str, *, common: Common | None = None) -> None:
    """Show one VM.

    Parameters
    ----------
    name
        The VM.
    """
    with session(common) as context:
        _emit_vm(context, common, name)


@app.command
def start(name: str, *, common: Common | None = None) -> None:
    """Start a VM.

    Parameters
    ----------
    name
        The VM.
    """
    with session(common) as context:
        machines.start(context, name)


@app.command
def stop(
    name: str,
    *,
    force: Annotated[bool, Parameter(negative="")] = False,
    timeout: Seconds = 120.0,
    common: Common | None = None,
) -> None:
    """Shut a VM down.

    Parameters
    ----------
    name
        The VM.
    force
        Pull the plug.
    timeout
        Seconds that the guest is given.
    """
    with session(common) as context:
        machines.stop(context, name, force=force, timeout=timeout)


@app.command
def restart(
    name: str,
    *,
    force: Annotated[bool, Parameter(negative="")] = False,
    timeout: Seconds = 120.0,
    common: Common | None = None,
) -> None:
    """Shut a VM down and start it.

    Parameters
    ----------
    name
        The VM.
    force
        Pull the plug instead of shutting down.
    timeout
        Seconds that the guest is given.
    """
    with session(common) as context:
        machines.restart(context, name, force=force, timeout=timeout)


@app.command
def deallocate(
    name: str,
    *,
    force: Annotated[bool, Parameter(negative="")] = False,
    timeout: Seconds = 120.0,
    common: Common | None = None,
) -> None:
    """Shut a VM down and give back what a stopped VM still holds on this host.

    Parameters
    ----------
    name
        The VM.
    force
        Pull the plug.
    timeout
        Seconds that the guest is given.
    """
    with session(common) as context:
        machines.deallocate(context, name, force=force, timeout=timeout)


@app.command
def delete(
    name: str,
    *,
    keep_disks: Annotated[bool, Parameter(negative="")] = False,
    common: Common | None = None,
) -> None:
    """Delete a VM at once, running or not.

    Parameters
    ----------
    name
        The VM.
    keep_disks
        Keep its disks as managed disks.
    """
    with session(common) as context:
        points = machines.delete(context, name, keep_disks=keep_disks)
        if not for_people(common):
            emit(common, {"restorePoints": points})
        elif points:
            print(f"{points} restore point{'s' if points > 1 else ''} went with it")


@app.command
def wait(
    name: str,
    *,
    for_: Annotated[Literal["ssh", "agent", "stopped"], Parameter(name="--for")] = "ssh",
    timeout: Seconds = 600.0,
    common: Common | None = None,
) -> None:
    """Wait until a VM answers.

    Parameters
    ----------
    name
        The VM.
    for_
        What to wait for: its SSH server, its guest agent, or its end.
    timeout
        Seconds to wait at most.
    """
    with session(common) as context:
        guests.wait(context, name, what=for_, timeout=timeout)


@app.command
def ssh(
    name: str,
    command: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)] = (),
    *,
    user: str | None = None,
    identity: Path | None = None,
    common: Common | None = None,
) -> int:
    """Open a shell over SSH, or run a command: calotype vm ssh NAME -- uname -a.

    Parameters
    ----------
    name
        The VM.
    command
        What to run instead of a shell, after '--'.
    user
        Default: the admin user.
    identity
        The private key (default: this installation's, and ssh's own).
    """
    with session(common) as context:
        argv = guests.ssh_command(context, name, command, user=user, identity=identity)
    os.execv(argv[0], argv)  # noqa: S606 (ssh takes the terminal over)


@app.command(name="run-command")
def run_command(
    name: str,
    command: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)] = (),
    *,
    script: StdinPath | None = None,
    timeout: Seconds = 300.0,
    common: Common | None = None,
) -> int:
    """Run a command as root through the guest agent; the exit status is the command's.

    Parameters
    ----------
    name
        The VM.
    command
        Program and arguments, after '--'.
    script
        A shell script's file instead ('-': standard input).
    timeout
        Seconds to wait.
    """
    with session(common) as context:
        result = guests.run_command(
            context, name, command, script=read(script) if script else None, timeout=timeout
        )
        if not for_people(common):
            emit(common, result)
            return 0
        os.write(1, result.stdout)
        os.write(2, result.stderr)
        return result.exit_code


@app.command
def console(name: str, *, common: Common | None = None) -> None:
    """The serial console; Ctrl-] leaves it.

    Parameters
    ----------
    name
        The VM.
    """
    with session(common) as context:
        context.driver.console(machines.running(context, name))


@app.command
def log(
    name: str,
    *,
    tail: int | None = None,
    follow: Annotated[bool, Parameter(negative="")] = False,
    common: Common | None = None,
) -> None:
    """Print the serial console's log.

    Parameters
    ----------
    name
        The VM.
    tail
        Only the last lines.
    follow
        Go on printing until the VM stops.
    """
    with session(common) as context:
        for block in guests.log(context, name, tail=tail, follow=follow):
            os.write(1, block)


@app.command
def screenshot(name: str, file: Path, *, common: Common | None = None) -> None:
    """Save what the VM's screen shows as PNG.

    Parameters
    ----------
    name
        The VM.
    file
        The file to write.
    """
    with session(common) as context:
        context.driver.screenshot(machines.running(context, name), file)


@disk.command
def attach(
    vm_name: str, disk_name: str, *, lun: int | None = None, common: Common | None = None
) -> None:
    """Attach a managed disk as a data disk.

    Parameters
    ----------
    vm_name
        The VM.
    disk_name
        The disk.
    lun
        Default: the first free one.
    """
    with session(common) as context:
        emit(common, machines.attach(context, vm_name, disk_name, lun=lun))


@disk.command
def detach(vm_name: str, disk_name: str, *, common: Common | None = None) -> None:
    """Detach a data disk.

    Parameters
    ----------
    vm_name
        The VM.
    disk_name
        The disk.
    """
    with session(common) as context:
        machines.detach(context, vm_name, disk_name)


def _emit_vm(context: Any, common: Common | None, name: str) -> None:
    images = context.system.image_names()
    record = _record(machines.show(context, name), images)
    emit(common, _summary(record) if for_people(common) else record)


def _summary(record: dict[str, Any]) -> dict[str, Any]:
    """What people want to know of a VM; ``-o json`` has the rest."""
    disks = [
        f"{'OS disk' if disk['lun'] is None else 'LUN ' + str(disk['lun'])}: "
        f"{disk['name']}, {show_size(disk['size'])}"
        for disk in record["disks"]
    ]
    return {
        "name": record["name"],
        "state": _state(record),
        "image": record["image"],
        "size": f"{record['vcpus']} vCPU, {show_size(record['memory'])}",
        "admin": record["adminUser"],
        "ssh": f"calotype vm ssh {record['name']} (127.0.0.1:{record['sshPort']})",
        "forwards": ", ".join(f"127.0.0.1:{host} to {guest}" for host, guest in record["forwards"]),
        "network": record["network"],
        "disks": "\n".join(disks),
        "tags": record["tags"],
        "notes": "\n".join(record["notes"]),
    }


def _record(view: VmView, images: dict[str, str]) -> dict[str, Any]:
    vm: VirtualMachine = view.vm
    image = images.get(vm.image_id or "", vm.image_id)
    return {**plain(vm), "powerState": view.power.value, "image": image}


def _secret(text: str | None) -> str | None:
    if text != "-":
        return text
    if sys.stdin.isatty():
        return getpass.getpass("Password: ")
    return sys.stdin.readline().rstrip("\n")


def _public_keys(value: str) -> list[str]:
    given = value.startswith(("ssh-", "ecdsa-", "sk-"))
    text = value if given else read(value).decode("utf-8", "replace")
    if "PRIVATE KEY" in text:
        raise InvalidInput(f"'{value}' is a private key", hint=f"give the public one: {value}.pub")
    return [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]


def _forward(text: str) -> tuple[int, int]:
    host, _, guest = text.rpartition(":")
    if not (host or "0").isdecimal() or not guest.isdecimal():
        raise InvalidInput(f"'{text}' is not HOST:GUEST", hint="8080:80, or 0:80 for any free port")
    if not 0 < int(guest) < 65536 or int(host or "0") >= 65536:
        raise InvalidInput(f"'{text}' holds no port")
    return int(host or "0"), int(guest)


def _data_disks(context: Context, image: str, sizes: tuple[str, ...]) -> dict[int, int]:
    """LUN -> size; sizes without a LUN take the first that neither image nor option uses."""
    result: dict[int, int] = {}
    used = {disk.lun for disk in references.find(context, image).data_disks} if sizes else set()
    for text in sizes:
        head, separator, tail = text.partition("=")
        if separator and not head.isdecimal():
            raise InvalidInput(f"'{text}' is not LUN=SIZE")
        lun = int(head) if separator else machines.free_lun(used)
        if lun in result:
            raise InvalidInput(f"LUN {lun} is named twice")
        used.add(lun)
        result[lun] = units.size(tail if separator else text)
    return result
