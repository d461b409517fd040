"""What cloud-init keeps of the machine that it provisioned, and what it wrote from it."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="cloud-init",
    heading="cloud-init's instance data and generated configuration",
    order=300,
    concern=Concern.IDENTITY,
    remove=(
        "/var/lib/cloud/instance",
        "/var/lib/cloud/seed",
        "/etc/sudoers.d/90-cloud-init-users",
        "/etc/ssh/sshd_config.d/50-cloud-init.conf",
        "/etc/netplan/50-cloud-init.yaml*",
        "/etc/network/interfaces.d/50-cloud-init*",
        "/etc/systemd/network/*cloud-init*",
        "/etc/NetworkManager/system-connections/cloud-init-*",
        "/etc/NetworkManager/conf.d/*cloud-init*",
        "/etc/udev/rules.d/*persistent-net-cloud-init*",
        "/etc/cloud/cloud.cfg.d/curtin*",
        "/etc/cloud/cloud.cfg.d/subiquity*",
        "/etc/cloud/cloud.cfg.d/99-installer.cfg",
        "/etc/cloud/cloud.cfg.d/90-installer-network.cfg",
    ),
    empty=("/var/lib/cloud/instances", "/var/lib/cloud/data", "/var/lib/cloud/sem"),
)
