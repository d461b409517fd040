"""SSH host keys: each clone makes its own at its first start."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="ssh-host-keys",
    heading="SSH host keys of OpenSSH and Dropbear",
    order=200,
    concern=Concern.IDENTITY,
    remove=(
        "/etc/ssh/ssh_host_*",
        "/usr/local/etc/ssh/ssh_host_*",
        "/etc/dropbear/dropbear_*_host_key*",
        "/etc/dropbear/*_host_key*",
        "/etc/dropbear-initramfs/dropbear_*_host_key*",
        "/etc/dropbear/initramfs/dropbear_*_host_key*",
    ),
)
