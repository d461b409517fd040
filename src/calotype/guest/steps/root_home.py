"""Root's keys, histories and traces of editors."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="root-home",
    heading="Root's keys, known hosts and histories",
    order=160,
    concern=Concern.CREDENTIAL,
    remove=(
        "/root/.ssh",
        "/root/.*_history",
        "/root/.lesshst",
        "/root/.viminfo",
        "/root/.vim/.netrwhist",
        "/root/.wget-hsts",
        "/root/.cache",
        "/root/.local/share/recently-used.xbel",
        "/root/.local/share/nano",
        "/root/.nano",
        "/root/.lesskey",
        "/root/.Xauthority",
        "/root/.ICEauthority",
        "/root/.xsession-errors",
        "/root/.sudo_as_admin_successful",
        "/root/.dbus",
        "/root/.gvfs",
        "/root/.config/pulse",
        "/root/anaconda-ks.cfg",
        "/root/original-ks.cfg",
        "/root/install.log",
        "/root/.gnupg/random_seed",
    ),
)
