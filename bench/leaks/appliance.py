"""What libguestfs needs to start its appliance here: a kernel, which a container or a cloud host may lack."""

import subprocess
from pathlib import Path

from bench.images import cache
from bench.leaks.guest import Refused

from calotype.machine.probe import acceleration


def environment(work: Path) -> dict[str, str]:
    """Variables for libguestfs' tools; a kernel is unpacked from Debian's package where there is none."""
    found = {"LIBGUESTFS_BACKEND": "direct"}
    if acceleration(work).name == "tcg":
        found["LIBGUESTFS_BACKEND_SETTINGS"] = "force_tcg"
    if not list(Path("/boot").glob("vmlinuz-*")):
        found |= _kernel(work / "kernel")
    return found


def _modules_directory() -> None:
    """Supermin copies the modules from elsewhere, but the mode of their directory from the host's."""
    try:
        Path("/lib/modules").mkdir(exist_ok=True)
    except PermissionError:
        raise Refused("libguestfs wants a directory /lib/modules: make one") from None


def _kernel(target: Path) -> dict[str, str]:
    """The kernel that the recipe's packages bring."""
    _modules_directory()
    if not target.exists():
        packages = sorted((cache() / "packages").rglob("linux-image-6*-cloud-amd64_*.deb"))
        if not packages:
            raise Refused("no kernel for libguestfs: install linux-image-cloud-amd64")
        subprocess.run(["dpkg-deb", "-x", packages[-1], f"{target}.new"], check=True)
        version = next(Path(f"{target}.new/lib/modules").iterdir()).name
        subprocess.run(["depmod", "-b", f"{target}.new", version], check=True)
        Path(f"{target}.new").rename(target)
    version = next((target / "lib/modules").iterdir()).name
    return {
        "SUPERMIN_KERNEL": str(target / f"boot/vmlinuz-{version}"),
        "SUPERMIN_KERNEL_VERSION": version,
        "SUPERMIN_MODULES": str(target / f"lib/modules/{version}"),
    }
