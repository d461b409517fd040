"""Ubuntu 24.04, as its server cloud image lays it out."""

import tests.roots.used as leavings
from tests.roots import common, debian
from tests.roots.layout import Family, Root

RELEASE = """PRETTY_NAME="Ubuntu 24.04.2 LTS"
NAME="Ubuntu"
VERSION_ID="24.04"
VERSION="24.04.2 LTS (Noble Numbat)"
VERSION_CODENAME=noble
ID=ubuntu
ID_LIKE=debian
"""
KERNEL = "6.8.0-60-generic"


def fresh(root: Root) -> None:
    """The image as it is published."""
    debian.fresh(root)
    root.entries = {p: e for p, e in root.entries.items() if debian.KERNEL not in p}
    root.file("/usr/lib/os-release", RELEASE)
    root.file("/etc/hostname", "ubuntu\n")
    common.cloud_init(root, "ubuntu")
    root.file(
        "/etc/fstab", "LABEL=cloudimg-rootfs / ext4 discard,commit=30,errors=remount-ro 0 1\n"
    )
    root.file(
        "/boot/grub/grub.cfg",
        f"linux /vmlinuz-{KERNEL} root=LABEL=cloudimg-rootfs ro console=tty1 console=ttyS0\n",
    )
    root.file(f"/boot/vmlinuz-{KERNEL}", "kernel")
    root.link("/etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")
    root.directory("/etc/netplan")
    root.directory("/var/lib/ubuntu-advantage")
    root.directory("/var/lib/snapd/device")


def used(root: Root) -> None:
    """Provisioned by the installer and by cloud-init, and used."""
    debian.used(root)
    c = root.canary
    root.link("/etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")
    root.gone.remove("CANARY-search-domain-xyzzy")
    root.file(
        "/etc/netplan/50-cloud-init.yaml",
        f"network:\n  ethernets:\n    eth0:\n      match: {{macaddress: '{leavings.MAC}'}}\n"
        f"      dhcp4: true # {c('netplan')}\n",
        0o600,
    )
    root.file(
        "/etc/netplan/00-installer-config.yaml",
        f"network:\n  ethernets:\n    ens3:\n      addresses: [10.0.0.4/24] # {c('installer-net')}\n",
    )
    root.file(
        "/etc/netplan/60-wifi.yaml", f"network: {{wifis: {{wlan0: {{password: {c('wifi')}}}}}}}\n"
    )
    root.file("/etc/cloud/cloud.cfg.d/99-installer.cfg", f"users: [{c('installer-user')}]\n", 0o600)
    root.file("/etc/cloud/cloud.cfg.d/curtin-preserve-sources.cfg", c("curtin"))
    root.file("/etc/cloud/cloud.cfg.d/subiquity-disable-cloudinit-networking.cfg", c("subiquity"))
    root.file("/etc/cloud/ds-identify.cfg", f"policy: enabled # {c('ds-identify')}\n")
    root.file("/var/lib/ubuntu-advantage/private/machine-token.json", c("pro-private"), 0o600)
    root.file("/var/lib/ubuntu-advantage/machine-token.json", c("pro-token"), 0o600)
    root.file(
        "/etc/apt/auth.conf.d/90ubuntu-advantage", f"login bearer password {c('pro-apt')}\n", 0o600
    )
    root.file("/var/log/installer/autoinstall-user-data", c("autoinstall"), 0o600)
    root.file("/var/log/curtin/install.log", c("curtin-log"))
    root.file("/var/lib/whoopsie/whoopsie-id", c("whoopsie"))
    root.file("/var/crash/_usr_bin_app.1000.crash", c("apport"))
    root.file(f"/var/lib/systemd/network/{leavings.MAC}", c("networkd-lease"))
    root.file("/home/alice/.sudo_as_admin_successful", "", uid=1000, gid=1000)
    root.file("/var/lib/landscape/client/broker.bpickle", c("landscape"), 0o600)


UBUNTU = Family(fresh, used)
