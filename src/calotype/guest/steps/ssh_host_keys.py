"""SSH host keys: each clone makes its own at its first start."""

from calotype.guest.steps.step import clearing

STEP = clearing(
    name="ssh-host-keys",
    heading="SSH host keys of OpenSSH and Dropbear",
    order=200,
    remove=(
        "/etc/ssh/ssh_host_*",
        "/etc/dropbear/dropbear_*_host_key*",
        "/etc/dropbear/*_host_key*",
        "/etc/dropbear-initramfs/dropbear_*_host_key*",
        "/etc/dropbear/initramfs/dropbear_*_host_key*",
    ),
)
