"""Debian 12, as its genericcloud image lays it out."""

import tests.roots.used as leavings
from tests.roots import common
from tests.roots.layout import Family, Root

RELEASE = """PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
VERSION="12 (bookworm)"
VERSION_CODENAME=bookworm
ID=debian
HOME_URL="https://www.debian.org/"
"""
KERNEL = "6.1.0-32-cloud-amd64"


def fresh(root: Root) -> None:
    """The image as it is published."""
    common.skeleton(root)
    common.merged(root)
    root.file("/usr/lib/os-release", RELEASE)
    root.link("/etc/os-release", "../usr/lib/os-release")
    common.systemd(root)
    common.accounts(
        root,
        ("www-data", 33, "/var/www", "/usr/sbin/nologin"),
        ("_chrony", 100, "/var/lib/chrony", "/usr/sbin/nologin"),
        ("sshd", 102, "/run/sshd", "/usr/sbin/nologin"),
    )
    common.hosts(root)
    common.cloud_init(root, "debian")
    common.programs(root, "/usr/sbin/sshd", "/usr/sbin/waagent", "/usr/sbin/qemu-ga")
    root.file("/etc/hostname", "localhost\n")
    root.file(
        "/etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf\nClientAliveInterval 120\n"
    )
    root.file("/etc/fstab", "PARTUUID=0e1c1e5c-01 / ext4 rw,discard,errors=remount-ro 0 1\n")
    root.file(
        "/boot/grub/grub.cfg",
        f"linux /boot/vmlinuz-{KERNEL} root=PARTUUID=0e1c1e5c-01 ro console=tty0 console=ttyS0,115200"
        " earlyprintk=ttyS0,115200 consoleblank=0\n",
    )
    root.file(f"/boot/vmlinuz-{KERNEL}", "kernel")
    root.link("/etc/localtime", "/usr/share/zoneinfo/Etc/UTC")
    root.file("/var/lib/dpkg/status", "Package: dpkg\nStatus: install ok installed\nVersion: 1\n\n")
    root.file("/var/log/dpkg.log", "2025-01-01 00:00:00 startup archives install\n")
    root.file("/var/log/apt/history.log", "Start-Date: 2025-01-01  00:00:00\n")
    root.file("/etc/cron.d/e2scrub_all", "30 3 * * 0 root /sbin/e2scrub_all_cron\n")
    root.directory("/var/lib/dhcp")
    root.link("/var/mail", "spool/mail")
    root.directory("/var/spool/mail", 0o2775, 0, 8)


def used(root: Root) -> None:
    """Provisioned and used."""
    leavings.everything(root, "sudo", "adm")
    c = root.canary
    root.file("/etc/mailname", f"{leavings.HOST}.corp.example\n")
    root.file("/etc/postfix/main.cf", f"myhostname = {leavings.HOST}.corp.example\n")
    root.file(
        "/var/lib/dhcp/dhclient.eth0.leases", f'option host-name "{leavings.HOST}";\n{c("lease")}'
    )
    root.file(
        "/etc/network/interfaces.d/50-cloud-init", f"iface eth0 inet dhcp # {c('interfaces')}\n"
    )
    root.file(
        "/etc/udev/rules.d/70-persistent-net.rules",
        f'SUBSYSTEM=="net", ATTR{{address}}=="{leavings.MAC}", NAME="eth0" # {c("udev")}\n',
    )
    root.file("/etc/systemd/network/10-eth0.link", f"[Match]\nMACAddress={leavings.MAC}\n")
    root.file(
        "/var/backups/shadow.bak", f"alice:$6${c('backup-shadow')}:19700:0:99999:7:::\n", 0o600
    )
    root.file(
        "/var/backups/passwd.bak", f"alice:x:1000:1000:{c('backup-passwd')}:/home/alice:/bin/sh\n"
    )
    root.file("/var/cache/debconf/passwords.dat", f"Value: {c('debconf')}\n", 0o600)
    root.file("/var/spool/cron/crontabs/alice", f"@daily echo {c('crontab')}\n", 0o600, 1000, 1000)
    for name in ("auth.log", "syslog", "kern.log", "user.log", "cron.log"):
        root.file(f"/var/log/{name}", f"{leavings.HOST} {c(name)}\n", 0o640)
    root.file("/var/log/syslog.1", c("syslog-1"))
    root.file("/var/log/syslog.2.gz", c("syslog-2"))
    root.file("/var/log/installer/syslog", c("installer"))
    root.file("/etc/popularity-contest.conf", f'PARTICIPATE="yes"\nMY_HOSTID="{c("popcon")}"\n')
    root.file("/var/lib/apt/periodic/update-stamp", c("periodic"))


DEBIAN = Family(fresh, used)
