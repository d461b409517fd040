"""What installers keep of the installation: kickstarts, profiles and logs, often with password hashes."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="installer-files",
    heading="Files of installers: kickstart, AutoYaST, curtin, preseed",
    order=310,
    concern=Concern.TRACE,
    remove=(
        "/root/anaconda-ks.cfg",
        "/root/original-ks.cfg",
        "/root/initial-setup-ks.cfg",
        "/root/ks-*.log",
        "/root/install.log",
        "/root/install.log.syslog",
        "/root/autoinst.xml",
        "/root/curtin-install*",
        "/root/inst-sys",
        "/var/adm/autoinstall/*",
        "/var/lib/autoinstall/*",
        "/var/adm/backup/*/*",
        "/etc/cloud/ds-identify.cfg",
        "/autoinstall.yaml",
        "/preseed.cfg",
    ),
)
