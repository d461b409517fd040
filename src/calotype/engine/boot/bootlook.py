"""Looking at a clone: from outside at its SSH server, from inside by its agent or a throw-away user.

What a guest says is the guest's word. Programs that speak with it run in a sandbox that sees no file of the
host but the throw-away key, and what they print is bounded.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Protocol

from calotype.engine.boot.bootreport import fingerprints
from calotype.errors import GuestError, TimedOut, ToolFailed
from calotype.machine import Completed, ssh
from calotype.run import Limits, Sandbox, run, which

#: As much as one command in a clone may print over SSH, in bytes.
_OUTPUT = 1 << 20

#: Seconds for one host key's type.
_KEY_PATIENCE = 20

#: Waits until a guest's own start is over: its services are started, and it is provisioned.
SETTLE = """{
[ -d /run/systemd/system ] && systemctl is-system-running --wait
command -v cloud-init && cloud-init status --wait
} < /dev/null > /dev/null 2>&1
exit 0
"""

#: Prints facts as ``name TAB value``. Secrets never leave the guest: keys are public, seeds are hashed.
COLLECT = r"""{
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin LC_ALL=C
say() { [ -n "$2" ] && printf '%s\t%s\n' "$1" "$2"; }
each() { while read -r line; do say "$1" "$line"; done; }

say machine-id "$(cat /etc/machine-id)"
[ -L /var/lib/dbus/machine-id ] || say dbus-machine-id "$(cat /var/lib/dbus/machine-id)"
say hostname "$(cat /proc/sys/kernel/hostname || hostname)"
say boot-id "$(cat /proc/sys/kernel/random/boot_id)"
say kernel "$(uname -srm)"
say os "$(. /etc/os-release; echo "$ID ${VERSION_ID:-$VERSION_CODENAME}")"
if [ -e /var/lib/dpkg/status ]; then
	say packages "$(grep '^Status: install ok installed' /var/lib/dpkg/status | wc -l | grep -v '^0$')"
elif [ -e /lib/apk/db/installed ]; then
	say packages "$(grep -c '^P:' /lib/apk/db/installed)"
elif command -v rpm > /dev/null; then
	say packages "$(rpm -qa | wc -l)"
fi

while IFS=: read -r name _ uid _ _ home shell; do
	case $shell in */nologin | */false | */sync | */shutdown | */halt) continue ;; esac
	case $(grep "^$name:" /etc/shadow | cut -d: -f2) in
	'') state='no password' ;;
	'!'* | '*'*) state=locked ;;
	*) state='password set' ;;
	esac
	[ -s "$home/.ssh/authorized_keys" ] && state="$state, SSH key"
	say user "$name ($uid, $state)"
done < /etc/passwd

for file in /var/lib/systemd/random-seed /var/lib/urandom/random-seed /var/lib/random-seed \
	/var/lib/misc/random-seed /var/lib/seedrng/seed.*; do
	[ -s "$file" ] && say random-seed "$file $(sha256sum < "$file" | cut -c 1-64)"
done
for file in /etc/ssh/ssh_host_*_key.pub; do [ -s "$file" ] && each host-key < "$file"; done
for file in /etc/dropbear/dropbear_*_host_key; do
	[ -s "$file" ] && dropbearkey -y -f "$file" | grep '^[a-z0-9-]* AAAA' | each host-key
done

cat /var/lib/dhcp/*.leases /var/lib/dhclient/*.lease* | sed -n 's/^ *default-duid //p' | sort -u | each duid
cat /run/systemd/netif/leases/* /var/lib/NetworkManager/*.lease | sed -n 's/^CLIENTID=//p' | each duid
for file in /var/lib/dhcpcd/duid /etc/dhcpcd.duid; do [ -s "$file" ] && each duid < "$file"; done
sed -n 's/.*<duid>\(.*\)<.*/\1/p' /var/lib/wicked/duid.xml | each duid

for device in /sys/class/net/*; do
	[ "${device##*/}" = lo ] || say mac "$(cat "$device/address")"
done
ip -o addr show | sed -n 's/^[0-9]*: \([^ ]*\) *inet6* \([^ ]*\) .*/\1 \2/p' | grep -v '^lo ' | each address
say disks "$(cat /sys/block/[sv]d*/size | sort -n | sed 's/$/ sectors/' | tr '\n' ' ')"
blkid | sort | each block
for disk in /dev/sd? /dev/vd?; do
	[ -b "$disk" ] && id=$(blkid -p -o value -s PTUUID "$disk") && say block "$disk: PTUUID=$id"
done
tail -n +2 /proc/swaps | each swap
[ -d /run/systemd/system ] && systemctl --failed --plain --no-legend | cut -d' ' -f1 | each failed-unit
command -v cloud-init > /dev/null && cloud-init status --long | grep -v '^ *$' | each cloud-init
} < /dev/null 2> /dev/null
exit 0
"""


class Shell(Protocol):
    """What runs a script inside a guest: its agent, or a login."""

    def script(self, script: str, *, timeout: float = ...) -> Completed:
        """Run a shell script to its end."""
        ...


@dataclass(frozen=True, slots=True)
class Login:
    """A throw-away user of the clone whose SSH server is forwarded to ``port``.

    ``room`` is a directory that holds the user's ``key`` and learns the clone's host key.
    """

    room: Path
    port: int
    user: str

    def script(self, script: str, *, timeout: float = 60.0) -> Completed:
        """Run a shell script as root where the user may, else as the user; errors are in its output.

        Raises:
            GuestError: the user cannot log in; the message has the reason.
            TimedOut: it did not end in time.
        """
        become = (
            "if sudo -n true 2>/dev/null; then exec sudo -n /bin/sh -s; else exec /bin/sh -s; fi"
        )
        return self.command(become, timeout=timeout, data=script.encode())

    def command(self, command: str, *, timeout: float = 60.0, data: bytes = b"") -> Completed:
        """Run one command of the user's shell."""
        argv = ssh.command(
            Path("/room"),
            self.port,
            user=self.user,
            identity=Path("/room/key"),
            command=[command],
            options=["-T", "-o", "BatchMode=yes"],
        )
        (self.room / "passwd").write_text(f"me:x:{os.getuid()}:{os.getgid()}::/room:/bin/sh\n")
        sandbox = Sandbox(
            read_write={"/room": str(self.room)},
            read_only={"/etc/passwd": str(self.room / "passwd")},  # ssh asks who it is
            network=True,
        )
        limits = Limits(wall=timeout, file_size=_OUTPUT, memory=1 << 30)
        with TemporaryFile() as out:
            # Into one file, for what a file holds can be limited.
            merged = [which("sh"), "-c", 'exec "$@" 2>&1', "sh", *argv]
            try:
                done = run(
                    merged, sandbox=sandbox, limits=limits, data=data, stdout=out, check=False
                )
            except TimedOut:
                raise TimedOut(f"a command over SSH did not end within {timeout:g} s") from None
            out.seek(0)
            printed = out.read(_OUTPUT)
        if done.returncode == 255:
            said = printed.decode("utf-8", "replace").strip().splitlines()
            raise GuestError(
                f"{self.user} cannot log in by SSH: {said[-1] if said else 'no reason'}"
            )
        return Completed(done.returncode, printed, b"")


def host_keys(port: int) -> dict[str, str]:
    """The fingerprints of an SSH server's host keys by type, as anybody can ask for them."""
    argv = ["ssh-keyscan", "-T", str(_KEY_PATIENCE), "-p", str(port), "127.0.0.1"]
    try:
        done = run(
            argv,
            sandbox=Sandbox(network=True),
            limits=Limits(wall=4 * _KEY_PATIENCE, memory=1 << 30),
            check=False,
        )
    except ToolFailed:
        return {}
    lines = done.stdout.decode("ascii", "replace").splitlines()
    return fingerprints(line.partition(" ")[2] for line in lines if line[:1] not in ("#", ""))
