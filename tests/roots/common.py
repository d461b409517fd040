"""What all families share: the skeleton of a root file system, its accounts and its programs."""

from pathlib import Path

from tests.roots.layout import Root

#: (name, uid, home, shell) of the system accounts that every family has.
SYSTEM = (
    ("root", 0, "/root", "/bin/bash"),
    ("daemon", 2, "/sbin", "/sbin/nologin"),
    ("nobody", 65534, "/", "/sbin/nologin"),
)


def skeleton(root: Root) -> None:
    """Directories of every Linux, and a program from which the processor is told."""
    for path in ("/dev", "/etc", "/home", "/mnt", "/opt", "/proc", "/run", "/srv", "/sys", "/var"):
        root.directory(path)
    for path in ("/etc/ssh", "/var/lib", "/var/log", "/var/cache", "/var/spool", "/usr/sbin"):
        root.directory(path)
    root.directory("/root", 0o700)
    root.directory("/tmp", 0o1777)
    root.directory("/var/tmp", 0o1777)
    root.file("/usr/bin/bash", Path("/bin/sh").resolve().read_bytes()[:4096], 0o755)


def merged(root: Root) -> None:
    """A merged /usr."""
    for name in ("bin", "sbin", "lib"):
        root.link(f"/{name}", f"usr/{name}")


def systemd(root: Root) -> None:
    """The init of all but Alpine, and the empty machine-id that an image ships."""
    root.file("/usr/lib/systemd/systemd", b"\x7fELF", 0o755)
    root.file("/etc/machine-id", "", 0o444)
    root.link("/var/lib/dbus/machine-id", "/etc/machine-id")
    root.directory("/var/lib/systemd/timers")
    root.directory("/var/lib/systemd/coredump")


def programs(root: Root, *paths: str) -> None:
    """Programs that are installed."""
    for path in paths:
        root.file(path, b"#!/bin/sh\n", 0o755)


def accounts(root: Root, *more: tuple[str, int, str, str], locked: str = "*") -> None:
    """The account files of a system without people."""
    everyone = (*SYSTEM, *more)
    passwd = "".join(f"{n}:x:{u}:{u}:{n}:{h}:{s}\n" for n, u, h, s in everyone)
    shadow = "".join(f"{n}:{locked}:19600:0:99999:7:::\n" for n, *_ in everyone)
    group = "".join(f"{n}:x:{u}:\n" for n, u, *_ in everyone)
    gshadow = "".join(f"{n}:*::\n" for n, *_ in everyone)
    for suffix in ("", "-"):
        root.file(f"/etc/passwd{suffix}", passwd)
        root.file(f"/etc/shadow{suffix}", shadow, 0o640, 0, 42)
        root.file(f"/etc/group{suffix}", group + "sudo:x:27:\nwheel:x:10:\nadm:x:4:\n")
        root.file(f"/etc/gshadow{suffix}", gshadow + "sudo:*::\nwheel:*::\nadm:*::\n", 0o640, 0, 42)
        root.file(f"/etc/subuid{suffix}", "")
        root.file(f"/etc/subgid{suffix}", "")


def hosts(root: Root) -> None:
    """The /etc/hosts of a machine that nobody named."""
    root.file(
        "/etc/hosts",
        "127.0.0.1 localhost localhost.localdomain\n::1 localhost ip6-localhost ip6-loopback\n",
    )


def cloud_init(root: Root, user: str) -> None:
    """cloud-init as its package leaves it: configured, and never run."""
    root.file("/etc/cloud/cloud.cfg", f"system_info:\n  default_user:\n    name: {user}\n")
    root.file("/usr/bin/cloud-init", "#!/usr/bin/python3\n", 0o755)
    for name in (
        "handlers",
        "scripts/per-boot",
        "scripts/per-instance",
        "scripts/per-once",
        "seed",
    ):
        root.directory(f"/var/lib/cloud/{name}")
