"""AlmaLinux 9 (the layout of RHEL 9), as its generic cloud image lays it out, on ext4."""

import tests.roots.used as leavings
from tests.roots import common
from tests.roots.layout import Family, Root

RELEASE = """NAME="AlmaLinux"
VERSION="9.5 (Teal Serval)"
ID="almalinux"
ID_LIKE="rhel centos fedora"
VERSION_ID="9.5"
PLATFORM_ID="platform:el9"
PRETTY_NAME="AlmaLinux 9.5 (Teal Serval)"
"""
KERNEL = "5.14.0-503.40.1.el9_5.x86_64"
LABEL = "system_u:object_r:etc_t:s0"
BUILD_ID = "f" * 32  # what the builders of images name boot entries after


def fresh(root: Root) -> None:
    """The image as it is published."""
    root.label = LABEL
    common.skeleton(root)
    common.merged(root)
    root.file("/usr/lib/os-release", RELEASE)
    root.link("/etc/os-release", "../usr/lib/os-release")
    common.systemd(root)
    common.accounts(
        root,
        ("systemd-coredump", 999, "/", "/sbin/nologin"),
        ("sshd", 74, "/usr/share/empty.sshd", "/usr/sbin/nologin"),
        ("chrony", 998, "/var/lib/chrony", "/sbin/nologin"),
        locked="!!",
    )
    common.hosts(root)
    common.cloud_init(root, "almalinux")
    common.programs(root, "/usr/sbin/sshd", "/usr/sbin/waagent", "/usr/bin/qemu-ga")
    root.file("/etc/hostname", "localhost.localdomain\n")
    root.file("/etc/selinux/config", "SELINUX=enforcing\nSELINUXTYPE=targeted\n")
    root.file(
        "/etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf\nClientAliveInterval 180\n"
    )
    root.file("/etc/ssh/sshd_config.d/50-redhat.conf", "X11Forwarding yes\nUsePAM yes\n")
    root.file("/etc/fstab", "UUID=b7fa3a6f-40a2-4f65-9c9c-4a3a1c2d3e4f / ext4 defaults 0 0\n")
    root.file(
        f"/boot/loader/entries/{BUILD_ID}-{KERNEL}.conf",
        f"title AlmaLinux ({KERNEL})\nlinux /boot/vmlinuz-{KERNEL}\n"
        "options root=UUID=b7fa3a6f-40a2-4f65-9c9c-4a3a1c2d3e4f ro console=tty0 console=ttyS0,115200n8\n",
    )
    root.file("/boot/grub2/grubenv", _grubenv(BUILD_ID))
    root.file(f"/boot/vmlinuz-{KERNEL}", "kernel")
    root.file("/var/lib/rpm/rpmdb.sqlite", "SQLite format 3\0")
    root.file(
        "/etc/sysconfig/network-scripts/ifcfg-eth0",
        "BOOTPROTO=dhcp\nDEVICE=eth0\nONBOOT=yes\nTYPE=Ethernet\nUSERCTL=no\n",
    )
    root.file("/etc/sysconfig/network", "NETWORKING=yes\nNOZEROCONF=yes\n")
    root.file("/var/log/dnf.log", "2025-01-01T00:00:00+0000 INFO --- logging initialized ---\n")
    root.link("/etc/localtime", "../usr/share/zoneinfo/UTC")
    root.directory("/etc/NetworkManager/system-connections", 0o700)
    root.directory("/etc/pki/consumer")
    root.directory("/etc/pki/entitlement")
    root.directory("/var/lib/NetworkManager", 0o700)
    root.directory("/var/lib/rhsm")
    root.link("/var/mail", "spool/mail")
    root.directory("/var/spool/mail", 0o775, 0, 12)


def used(root: Root) -> None:
    """Installed by anaconda, provisioned, registered and used."""
    leavings.everything(root, "wheel", "adm")
    c = root.canary
    machine_id = leavings.MACHINE_ID
    entry = root.entries.pop(f"/boot/loader/entries/{BUILD_ID}-{KERNEL}.conf")
    root.file(f"/boot/loader/entries/{machine_id}-{KERNEL}.conf", entry.content or b"")
    root.file(
        f"/boot/loader/entries/{machine_id}-0-rescue.conf",
        f"title rescue\nlinux /vmlinuz-0-rescue-{machine_id}\n",
    )
    root.file(f"/boot/vmlinuz-0-rescue-{machine_id}", c("rescue-kernel"))
    root.file(f"/boot/initramfs-0-rescue-{machine_id}.img", c("rescue-initramfs"))
    root.file("/boot/grub2/grubenv", _grubenv(machine_id))
    root.file("/root/anaconda-ks.cfg", f"rootpw --iscrypted $6${c('kickstart')}\n", 0o600)
    root.file("/root/original-ks.cfg", c("original-kickstart"), 0o600)
    root.file("/var/log/anaconda/anaconda.log", c("anaconda"))
    root.file(
        "/etc/sysconfig/network-scripts/ifcfg-eth0",
        f"BOOTPROTO=none\nDEVICE=eth0\nHWADDR={leavings.MAC}\nIPADDR=10.0.0.4\nPREFIX=24\n"
        f"GATEWAY=10.0.0.1\nDNS1=10.0.0.2\nDHCP_HOSTNAME={leavings.HOST}\nUUID={c('ifcfg-uuid')}\n"
        "ONBOOT=yes\n",
    )
    root.file("/etc/sysconfig/network-scripts/keys-wlan0", f"WPA_PSK={c('wifi')}\n", 0o600)
    root.file("/etc/sysconfig/network", f"NETWORKING=yes\nHOSTNAME={leavings.HOST}.corp.example\n")
    root.file(
        "/etc/NetworkManager/system-connections/vpn.nmconnection",
        f"[connection]\nid=vpn\ntype=vpn\n[vpn-secrets]\npassword={c('vpn')}\n",
        0o600,
    )
    root.file("/var/lib/NetworkManager/internal-x-eth0.lease", c("nm-lease"), 0o600)
    root.file("/var/lib/NetworkManager/secret_key", c("nm-secret"), 0o600)
    root.file("/var/lib/NetworkManager/seen-bssids", c("bssids"))
    root.file("/etc/pki/consumer/cert.pem", c("consumer"), 0o640)
    root.file("/etc/pki/consumer/key.pem", KEYLESS.format(c("consumer-key")), 0o640)
    root.file("/etc/pki/entitlement/1234.pem", c("entitlement"))
    root.file("/var/lib/rhsm/facts/facts.json", f'{{"network.hostname": "{leavings.HOST}"}}')
    root.file("/var/lib/rhsm/cache/profile.json", c("rhsm-profile"))
    root.file("/etc/insights-client/machine-id", c("insights"))
    root.file("/var/spool/abrt/ccpp-1/coredump", c("abrt"))
    root.file("/var/spool/cron/alice", f"@daily echo {c('crontab')}\n", 0o600, 1000, 1000)
    root.file("/var/lib/dnf/repos/baseos-1/countme", c("countme"))
    for name in ("messages", "secure", "cron", "maillog", "audit/audit.log"):
        root.file(f"/var/log/{name}", f"{leavings.HOST} {c(name.replace('/', '-'))}\n", 0o600)
    root.file("/var/log/messages-20250101", c("messages-old"), 0o600)
    root.file("/var/log/sa/sa01", c("sar"))
    root.file("/var/lib/chrony/drift", c("drift"))
    root.file("/var/lib/logrotate/logrotate.status", c("logrotate"))


#: A key in the form of RHSM.
KEYLESS = "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n"


def _grubenv(machine_id: str) -> str:
    """GRUB's environment block, which is 1,024 bytes whatever it holds."""
    return f"# GRUB Environment Block\nsaved_entry={machine_id}-{KERNEL}\n".ljust(1024, "#")


ALMA = Family(fresh, used)
