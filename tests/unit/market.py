"""A publisher on loopback for tests of the marketplace: a small disk, and catalogues that name it."""

import hashlib
import subprocess

from tests.unit.web import File

from calotype.engine.marketplace import offers

LOOPBACK = ("127.0.0.0/8",)


def make_disk(room, machine_id=""):
    """A raw "OS" disk of 8 MiB: ext4, with what a generalized Debian has of files that are looked at."""
    (room / "tree" / "etc").mkdir(parents=True)
    (room / "tree" / "usr").mkdir()
    (room / "tree" / "etc" / "os-release").write_text('ID=debian\nPRETTY_NAME="Test"\n')
    (room / "tree" / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (room / "tree" / "etc" / "machine-id").write_text(machine_id)
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-d", room / "tree", room / "os.raw", "8M"], check=True
    )
    return (room / "os.raw").read_bytes()


def offer(web, body, versions=("1.0.0",), *, sku="small", publisher="acme", more=""):
    """An offer with versions at fixed addresses, as TOML; each version's file is put on the server."""
    files = []
    for version in versions:
        path = f"/{publisher}/{sku}-{version}.raw"
        web.files[path] = File(body)
        digest = hashlib.sha256(body).hexdigest()
        files.append(f'{{ version = "{version}", url = "{web.url(path)}", sha256 = "{digest}" }}')
    return f"""
[[offers]]
publisher = "{publisher}"
offer = "os"
sku = "{sku}"
title = "A small OS"
os_type = "Linux"
{more}
[offers.source]
kind = "url"
format = "raw"
files = [{", ".join(files)}]
"""


def catalogue(*parts):
    return "format = 1\n" + "\n".join(parts)


def put(web, *parts, path="/offers.toml"):
    """Serve a catalogue; it is another one than before."""
    web.files[path] = File(catalogue(*parts).encode())
    return web.url(path)


def add(context, location, name="acme", kind="offers", **more):
    return offers.add(
        context, offers.record(name, location, kind, allow_addresses=LOOPBACK, **more)
    )
