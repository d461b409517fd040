"""Root's histories and traces of editors and desktops."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="root-home",
    heading="Root's histories, caches and traces of editors",
    order=160,
    concern=Concern.TRACE,
    remove=(
        "/root/.*_history",
        "/root/.lesshst",
        "/root/.viminfo",
        "/root/.vim/.netrwhist",
        "/root/.wget-hsts",
        "/root/.cache",
        "/root/.local/share/recently-used.xbel",
        "/root/.local/share/nano",
        "/root/.nano",
        "/root/.Xauthority",
        "/root/.ICEauthority",
        "/root/.xsession-errors",
        "/root/.sudo_as_admin_successful",
        "/root/.dbus",
        "/root/.gvfs",
        "/root/.config/pulse",
        "/root/.gnupg/random_seed",
    ),
)
