"""Alpine 3.21, as its cloud image lays it out: OpenRC, no systemd, no merged /usr, apk."""

import tests.roots.used as leavings
from tests.roots import common
from tests.roots.layout import Family, Root

RELEASE = """NAME="Alpine Linux"
ID=alpine
VERSION_ID=3.21.3
PRETTY_NAME="Alpine Linux v3.21"
"""


def fresh(root: Root) -> None:
    """The image as it is published."""
    common.skeleton(root)
    root.file("/bin/busybox", root.entries["/usr/bin/bash"].content or b"", 0o755)
    root.link("/bin/sh", "/bin/busybox")
    root.link("/sbin/init", "/bin/busybox")
    root.file("/usr/lib/os-release", RELEASE)
    root.link("/etc/os-release", "../usr/lib/os-release")
    root.file("/etc/alpine-release", "3.21.3\n")
    common.accounts(
        root,
        ("sshd", 22, "/dev/null", "/sbin/nologin"),
        ("chrony", 100, "/var/log/chrony", "/sbin/nologin"),
    )
    common.hosts(root)
    common.cloud_init(root, "alpine")
    common.programs(root, "/usr/sbin/sshd", "/usr/bin/qemu-ga", "/sbin/openrc")
    root.file("/etc/hostname", "localhost\n")
    root.file("/etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf\n")
    root.file("/etc/fstab", "UUID=9c1d0a52-1111-4222-8333-444455556666\t/\text4\trw,relatime 0 1\n")
    root.file(
        "/boot/extlinux.conf",
        "LABEL virt\n  LINUX vmlinuz-virt\n"
        "  APPEND root=UUID=9c1d0a52-1111-4222-8333-444455556666 modules=ext4 console=ttyS0,115200n8\n",
    )
    root.file("/boot/vmlinuz-virt", "kernel")
    root.file("/lib/apk/db/installed", "P:alpine-base\nV:3.21.3-r0\n\nP:busybox\nV:1\n")
    root.file(
        "/etc/network/interfaces",
        "auto lo\niface lo inet loopback\nauto eth0\niface eth0 inet dhcp\n",
    )
    root.directory("/var/lib/seedrng", 0o700)
    root.file("/etc/crontabs/root", "*/15 * * * * run-parts /etc/periodic/15min\n", 0o600)
    root.directory("/var/spool/cron")
    root.link("/var/spool/cron/crontabs", "/etc/crontabs")
    root.link("/var/mail", "spool/mail")
    root.directory("/var/spool/mail")


def used(root: Root) -> None:
    """Set up by setup-alpine, provisioned and used."""
    leavings.everything(root, "wheel", systemd=False)
    c = root.canary
    root.file("/etc/conf.d/hostname", f'hostname="{leavings.HOST}"\n')
    root.file(
        "/etc/network/interfaces",
        "auto lo\niface lo inet loopback\nauto eth0\niface eth0 inet dhcp\n"
        f"\thostname {leavings.HOST}\n\thwaddress ether {leavings.MAC}\n",
    )
    root.file("/var/lib/seedrng/seed.credit", c("seedrng"), 0o400)
    root.file("/var/lib/udhcpd/udhcpd.leases", c("udhcpd"))
    root.file("/var/lib/dhcpcd/eth0.lease", c("dhcpcd"))
    root.file("/var/lib/dhcpcd/duid", c("duid"))
    root.file("/root/.ash_history", c("ash-history"), 0o600)
    root.file("/home/alice/.ash_history", c("alice-ash"), 0o600, 1000, 1000)
    root.file("/etc/crontabs/alice", f"@daily echo {c('crontab')}\n", 0o600)
    root.file("/var/log/messages", f"{leavings.HOST} {c('messages')}\n", 0o640)
    root.file("/var/log/messages.0", c("messages-0"), 0o640)
    root.file("/etc/apk/keys/acme-1234.rsa.pub", "public")
    root.file("/var/lib/misc/random-seed", c("misc-seed"), 0o600)
    root.file("/etc/dropbear/dropbear_rsa_host_key", c("dropbear"), 0o600)
    root.file("/var/log/chrony/tracking.log", c("chrony"))


ALPINE = Family(fresh, used)
