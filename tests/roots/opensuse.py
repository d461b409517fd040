"""openSUSE Leap 15.6 (the layout of SLES 15), as its cloud image lays it out, on ext4."""

import tests.roots.used as leavings
from tests.roots import common
from tests.roots.layout import Family, Root

RELEASE = """NAME="openSUSE Leap"
VERSION="15.6"
ID="opensuse-leap"
ID_LIKE="suse opensuse"
VERSION_ID="15.6"
PRETTY_NAME="openSUSE Leap 15.6"
"""
KERNEL = "6.4.0-150600.23.47-default"


def fresh(root: Root) -> None:
    """The image as it is published."""
    common.skeleton(root)
    for name in ("bin", "sbin"):
        common.programs(root, f"/{name}/true")
    root.file("/usr/lib/os-release", RELEASE)
    root.link("/etc/os-release", "../usr/lib/os-release")
    common.systemd(root)
    common.accounts(
        root,
        ("sshd", 474, "/var/lib/sshd", "/usr/sbin/nologin"),
        ("polkitd", 475, "/var/lib/polkit", "/usr/sbin/nologin"),
        locked="!",
    )
    common.hosts(root)
    common.cloud_init(root, "opensuse")
    common.programs(root, "/usr/sbin/sshd", "/usr/sbin/waagent", "/usr/bin/qemu-ga")
    root.file("/usr/etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf\n")
    root.file("/etc/ssh/sshd_config", "ClientAliveInterval 180\n")
    root.file("/etc/fstab", "UUID=11f1a2b3-0f21-4b6e-8d2e-9a8b7c6d5e4f / ext4 noatime 0 1\n")
    root.file(
        "/boot/grub2/grub.cfg",
        f"\tlinux /boot/vmlinuz-{KERNEL} root=UUID=11f1a2b3-0f21-4b6e-8d2e-9a8b7c6d5e4f console=ttyS0"
        " net.ifnames=0\n",
    )
    root.file(f"/boot/vmlinuz-{KERNEL}", "kernel")
    root.file("/usr/lib/sysimage/rpm/Packages.db", "RpmP")
    root.file("/etc/sysconfig/network/ifcfg-eth0", "BOOTPROTO='dhcp'\nSTARTMODE='auto'\n")
    root.file("/etc/sysconfig/network/dhcp", 'DHCLIENT_SET_HOSTNAME="no"\n')
    root.file("/var/log/zypp/history", "2025-01-01 00:00:00|install|bash|5|x86_64||repo|\n")
    root.link("/etc/localtime", "/usr/share/zoneinfo/UTC")
    root.directory("/var/lib/wicked")
    root.directory("/etc/zypp/credentials.d", 0o700)
    root.directory("/etc/zypp/services.d")
    root.link("/var/mail", "spool/mail")
    root.directory("/var/spool/mail", 0o1777)


def used(root: Root) -> None:
    """Installed by AutoYaST, provisioned, registered and used."""
    leavings.everything(root, "wheel")
    c = root.canary
    root.file("/etc/HOSTNAME", f"{leavings.HOST}.corp.example\n")
    root.file(
        "/etc/sysconfig/network/ifcfg-eth0",
        f"BOOTPROTO='static'\nIPADDR='10.0.0.4/24'\nLLADDR='{leavings.MAC}'\nSTARTMODE='auto'\n"
        f"NAME='{c('ifcfg-name')}'\n",
    )
    root.file("/etc/sysconfig/network/ifroute-eth0", f"default 10.0.0.1 - - # {c('ifroute')}\n")
    root.file("/etc/sysconfig/network/routes", f"default 10.0.0.1 - - # {c('routes')}\n")
    root.file("/etc/sysconfig/network/ifcfg-wlan0", f"WIRELESS_WPA_PSK='{c('wifi')}'\n", 0o600)
    root.file(
        "/etc/udev/rules.d/70-persistent-net.rules",
        f'ATTR{{address}}=="{leavings.MAC}", NAME="eth0" # {c("udev")}\n',
    )
    root.file("/etc/udev/rules.d/85-persistent-net-cloud-init.rules", c("udev-cloud"))
    root.file(
        "/var/lib/wicked/lease-eth0-dhcp-ipv4.xml", f"<h>{leavings.HOST}</h>{c('lease')}", 0o600
    )
    root.file("/var/lib/wicked/duid.xml", c("duid"))
    root.file("/var/lib/wicked/iaid.xml", c("iaid"))
    root.file("/etc/zypp/credentials.d/SCCcredentials", f"username={c('scc')}\npassword=x\n", 0o600)
    root.file("/etc/zypp/credentials.d/Basesystem_Module_15.6_x86_64", c("scc-module"), 0o600)
    root.file("/etc/zypp/services.d/Basesystem_Module_15.6_x86_64.service", c("scc-service"))
    root.file("/etc/SUSEConnect", f"url: https://scc.suse.com\nregcode: {c('regcode')}\n", 0o600)
    root.file("/var/lib/suseconnect/state.json", c("suseconnect"))
    root.file("/var/lib/cloudregister/servers", c("cloudregister"))
    root.file("/var/lib/zypp/AnonymousUniqueId", c("zypp-id"))
    root.file(
        "/var/adm/autoinstall/cache/installedSystem.xml",
        f"<password>{c('autoyast')}</password>",
        0o600,
    )
    root.file("/root/autoinst.xml", f"<user_password>{c('autoinst')}</user_password>", 0o600)
    root.file("/var/log/YaST2/y2log", f"{leavings.HOST} {c('y2log')}")
    root.file("/var/log/YaST2/y2log-1.gz", c("y2log-old"))
    root.file("/var/adm/backup/sysconfig/x", c("adm-backup"))
    root.file("/var/spool/cron/tabs/alice", f"@daily echo {c('crontab')}\n", 0o600, 1000, 1000)
    for name in ("messages", "mail", "warn", "audit/audit.log"):
        root.file(f"/var/log/{name}", f"{leavings.HOST} {c(name.replace('/', '-'))}\n", 0o640)
    root.file("/var/log/messages-20250101.xz", c("messages-old"))
    root.file("/var/lib/chrony/drift", c("drift"))
    root.file("/var/lib/misc/random-seed", c("misc-seed"), 0o600)


OPENSUSE = Family(fresh, used)
