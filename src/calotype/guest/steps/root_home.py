"""Root's caches and traces of editors and desktops."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="root-home",
    heading="Root's caches and traces of editors and desktops",
    order=160,
    concern=Concern.TRACE,
    remove=(
        "/root/.vim/.netrwhist",
        "/root/.cache",
        "/root/.local/share/recently-used.xbel",
        "/root/.local/share/nano",
        "/root/.nano",
        "/root/.Xauthority",
        "/root/.ICEauthority",
        "/root/.xsession-errors",
        "/root/.dbus",
        "/root/.gvfs",
        "/root/.config/pulse",
        "/root/.gnupg/random_seed",
    ),
)
