"""What the publishers of the shipped catalogue serve, in small: pages, indexes, checksums, signatures.

Each layout is a table from a publisher's real address to bytes. :func:`offer` gives the record that ships,
with keys of the tests in it; :func:`rebased` and :func:`put` move record and layout to a server on loopback.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from email.utils import formatdate
from typing import Any

import msgspec
from tests.openpgp import BORN, Signer
from tests.unit.web import File, Web

from calotype.market import Key, Offer, load_default
from calotype.market.offer import Checksums, SimpleStreams

Layout = dict[str, bytes]

CLOUD = "https://cloud.debian.org/images/cloud/bookworm/"
FEDORA = "https://dl.fedoraproject.org/pub/fedora/linux/releases/44/Cloud/x86_64/images/"
ALMA = "https://repo.almalinux.org/almalinux/9/cloud/x86_64/images/"
ROCKY = "https://dl.rockylinux.org/pub/rocky/9/images/x86_64/"
LEAP = "https://download.opensuse.org/distribution/leap/16.0/appliances/"
ALPINE = "https://dl-cdn.alpinelinux.org/alpine/v3.24/releases/cloud/"
FREEBSD = "https://download.freebsd.org/releases/VM-IMAGES/"
UBUNTU = "https://cloud-images.ubuntu.com/releases/"
INCUS = "https://images.linuxcontainers.org/"


def offer(name: str, signer: Signer | None = None) -> Offer:
    """A record that ships; what it says is signed is signed by ``signer``."""
    found = load_default().find(name)
    keys = (key(signer),) if signer is not None else ()
    return msgspec.structs.replace(found, keys=keys)


def key(signer: Signer) -> Key:
    return Key(fingerprint=signer.fingerprint, armored=signer.armored)


def rebased(record: Offer, root: str) -> Offer:
    """The record of a publisher who serves from ``root`` on loopback (an URL without a slash at its end)."""
    source = record.source
    assert isinstance(source, Checksums | SimpleStreams)
    fields = ("url", "listing", "images", "signature")
    moved = {f: _moved(getattr(source, f), root) for f in fields if getattr(source, f, None)}
    return msgspec.structs.replace(record, source=msgspec.structs.replace(source, **moved))


def put(web: Web, layout: Layout) -> None:
    """Serve a layout."""
    for url, body in layout.items():
        web.files[_moved(url, "")] = File(body)


def _moved(url: str, root: str) -> str:
    return url.replace("https://", f"{root}/", 1)


# -- pages of directories


def apache(names: Iterable[str]) -> bytes:
    rows = "".join(
        f'<tr><td><a href="{n}">{n[:20]}..&gt;</a></td><td>2024-05-07 17:43</td></tr>\n'
        for n in names
    )
    sort = '<th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th>'
    parent = '<tr><td><a href="/images/">Parent Directory</a></td></tr>\n'
    return f"<html><head><title>Index of /</title></head><table>{sort}\n{parent}{rows}</table>".encode()


def nginx(names: Iterable[str]) -> bytes:
    rows = "".join(f'<a href="{n}">{n}</a>      07-May-2024 17:43      1234\n' for n in names)
    return f'<html><h1>Index of /</h1><pre><a href="../">../</a>\n{rows}</pre></html>'.encode()


def absolute(names: Iterable[str], path: str) -> bytes:
    rows = "".join(f"<li><a href='{path}{n}'>{n}</a></li>" for n in names)
    return f"<html><body><ul>{rows}</ul></body></html>".encode()


# -- publishers


def debian(images: Mapping[str, bytes]) -> Layout:
    """``images``: by version (20240507-1740); a directory for each, checksums that nobody signs."""
    layout = {CLOUD: apache([*(f"{label}/" for label in images), "daily/", "latest/"])}
    for label, body in images.items():
        names = [f"debian-12-{kind}-amd64-{label}.qcow2" for kind in ("genericcloud", "generic")]
        sums = "".join(f"{_sha512(body)}  {name}\n" for name in names)
        layout[f"{CLOUD}{label}/SHA512SUMS"] = sums.encode()
        layout |= {f"{CLOUD}{label}/{name}": body for name in names}
    return layout


def fedora(images: Mapping[str, bytes], signer: Signer) -> Layout:
    """``images``: by version (44-1.7); a clearsigned file of each compose, in BSD's style with sizes."""
    names = []
    layout: Layout = {}
    for label, body in images.items():
        name = f"Fedora-Cloud-Base-Generic-{label}.x86_64.qcow2"
        text = f"# {name}: {len(body)} bytes\nSHA256 ({name}) = {_sha256(body)}\n"
        sums = f"Fedora-Cloud-{label}-x86_64-CHECKSUM"
        layout |= {FEDORA + name: body, FEDORA + sums: signer.clear(text.encode(), hashed="sha256")}
        names += [name, sums]
    return {FEDORA: apache(names), **layout}


def almalinux(images: Mapping[str, bytes], signer: Signer) -> Layout:
    """``images``: by version (9.8-20260526); one file of them all, with a detached signature."""
    names = {
        f"AlmaLinux-9-GenericCloud-{label}.x86_64.qcow2": body for label, body in images.items()
    }
    names["AlmaLinux-9-GenericCloud-latest.x86_64.qcow2"] = next(iter(images.values()))
    sums = "".join(f"{_sha256(body)}  {name}\n" for name, body in names.items()).encode()
    return {
        ALMA + "CHECKSUM": sums,
        ALMA + "CHECKSUM.asc": signer.detached(sums),
        **{ALMA + name: body for name, body in names.items()},
    }


def rocky(images: Mapping[str, bytes]) -> Layout:
    """``images``: by version (9.8-20260525.0); one file of them all that nobody signs."""
    names = {
        f"Rocky-9-GenericCloud-Base-{label}.x86_64.qcow2": body for label, body in images.items()
    }
    text = "".join(
        f"# {name}: {len(body)} bytes\nSHA256 ({name}) = {_sha256(body)}\n"
        for name, body in names.items()
    )
    return {
        ROCKY + "CHECKSUM": text.encode(),
        **{ROCKY + name: body for name, body in names.items()},
    }


def opensuse(images: Mapping[str, bytes], signer: Signer) -> Layout:
    """``images``: by version (18.72); beside each its digest, and that one's detached signature."""
    layout: Layout = {}
    names = ["Leap-16.0-Minimal-VM.x86_64-Cloud.qcow2"]
    for label, body in images.items():
        name = f"Leap-16.0-Minimal-VM.x86_64-Cloud-Build{label}.qcow2"
        sums = f"{_sha256(body)}  {name}\n".encode()
        layout |= {LEAP + name: body, f"{LEAP}{name}.sha256": sums}
        layout[f"{LEAP}{name}.sha256.asc"] = signer.version3(sums)
        names += [name, f"{name}.sha256", f"{name}.sha256.asc"]
    return {LEAP: absolute(names, "./"), **layout}


def alpine(images: Mapping[str, bytes]) -> Layout:
    """``images``: by version (3.24.2-r0); beside each a bare digest that nobody signs."""
    layout: Layout = {}
    names = []
    for label, body in images.items():
        version, _, revision = label.rpartition("-")
        name = f"alpine-{version}-x86_64-cloudinit-{revision}.qcow2"
        layout |= {ALPINE + name: body, f"{ALPINE}{name}.sha512": f"{_sha512(body)}\n".encode()}
        names += [name, f"{name}.sha512", f"{name}.asc"]
    return {ALPINE: nginx(names), **layout}


def freebsd(images: Mapping[str, bytes], signer: Signer) -> Layout:
    """``images``: by version (15.1), compressed; checksums clearsigned on another server."""
    layout = {FREEBSD: nginx(["README.TXT", *(f"{label}-RELEASE/" for label in images)])}
    for label, body in images.items():
        name = f"FreeBSD-{label}-RELEASE-amd64-BASIC-CLOUDINIT-ufs.qcow2.xz"
        text = f"SHA512 ({name}) = {_sha512(body)}\n".encode()
        sums = f"CHECKSUM.SHA512-FreeBSD-{label}-RELEASE-amd64-vm.asc"
        layout[f"https://www.freebsd.org/releases/{label}R/checksums/{sums}"] = signer.clear(text)
        layout[f"{FREEBSD}{label}-RELEASE/amd64/Latest/{name}"] = body
    return layout


def ubuntu(
    images: Mapping[str, bytes],
    signer: Signer | None = None,
    *,
    clear: bool = True,
    at: int = BORN + 5000,
    product: str = "com.ubuntu.cloud:server:24.04:amd64",
) -> Layout:
    """``images``: by version (20240126.1); clearsigned, signed beside (``.gpg``), or not at all."""
    versions = {}
    layout: Layout = {}
    for label, body in images.items():
        path = f"server/releases/noble/release-{label}/ubuntu-24.04-server-cloudimg-amd64.img"
        layout[UBUNTU + path] = body
        versions[label] = {
            "items": {
                "disk1.img": _item("disk1.img", path, body),
                "root.tar.xz": _item("root.tar.xz", path.replace(".img", "-root.tar.xz"), b"tar"),
            },
            "label": "release",
            "pubname": f"ubuntu-noble-24.04-amd64-server-{label}",
        }
    record = {
        "aliases": "24.04,default,lts,n,noble",
        "arch": "amd64",
        "os": "ubuntu",
        "release": "noble",
        "release_title": "24.04 LTS",
        "support_eol": "2029-05-31",
        "version": "24.04",
        "versions": versions,
    }
    end = "sjson" if signer is not None and clear else "json"
    stream = f"streams/v1/com.ubuntu.cloud:released:download.{end}"
    listed = {"datatype": "image-downloads", "path": stream, "products": [product]}
    aws = {"datatype": "image-ids", "path": "streams/v1/aws.json", "products": [product]}
    index = {"com.ubuntu.cloud:released:aws": aws, "com.ubuntu.cloud:released:download": listed}
    files = {
        f"streams/v1/index.{end}": {"index": index, "format": "index:1.0"},
        stream: {
            "products": {product: record},
            "format": "products:1.0",
            "content_id": "com.ubuntu.cloud:released:download",
        },
    }
    return layout | signed_streams(UBUNTU, files, signer, clear=clear, at=at)


def incus(
    images: Mapping[str, bytes],
    signer: Signer | None = None,
    *,
    product: str = "debian:bookworm:amd64:cloud",
) -> Layout:
    """``images``: by version (20240101_07:42); LXC's and Incus's layout: a disk beside its description."""
    versions = {}
    layout: Layout = {}
    for label, body in images.items():
        root = f"images/debian/bookworm/amd64/cloud/{label}/"
        meta = b"metadata of " + label.encode()
        layout |= {f"{INCUS}{root}disk.qcow2": body, f"{INCUS}{root}incus.tar.xz": meta}
        versions[label] = {
            "items": {
                "disk.qcow2": _item("disk-kvm.img", f"{root}disk.qcow2", body),
                "incus.tar.xz": _item("incus.tar.xz", f"{root}incus.tar.xz", meta),
                "root.squashfs": _item("squashfs", f"{root}rootfs.squashfs", b"squash"),
                "a.vcdiff": _item("disk-kvm.img.vcdiff", f"{root}delta-a.vcdiff", b"a"),
                "b.vcdiff": _item("disk-kvm.img.vcdiff", f"{root}delta-b.vcdiff", b"b"),
            }
        }
    record = {
        "aliases": "debian/12/cloud,debian/bookworm/cloud",
        "arch": "amd64",
        "os": "Debian",
        "release": "bookworm",
        "release_title": "bookworm",
        "variant": "cloud",
        "versions": versions,
    }
    path = "streams/v1/images.json"
    listed = {"datatype": "image-downloads", "path": path, "products": [product]}
    files = {
        "streams/v1/index.json": {"index": {"images": listed}, "format": "index:1.0"},
        path: {"products": {product: record}, "format": "products:1.0", "content_id": "images"},
    }
    return layout | signed_streams(INCUS, files, signer, clear=False, at=None)


def signed_streams(
    root: str,
    files: Mapping[str, dict[str, Any]],
    signer: Signer | None,
    *,
    clear: bool,
    at: int | None,
) -> Layout:
    """The files of an index as they are published; ``at``: when, if they say so."""
    layout: Layout = {}
    for path, value in files.items():
        dated = value if at is None else {**value, "updated": formatdate(at)}
        text = json.dumps(dated, indent=1).encode() + b"\n"
        when = at or BORN + 5000
        if signer is not None and not clear:
            layout[f"{root}{path}.gpg"] = signer.detached(text, at=when)
        layout[root + path] = signer.clear(text, at=when) if signer and clear else text
    return layout


def _item(kind: str, path: str, body: bytes) -> dict[str, Any]:
    return {"ftype": kind, "path": path, "sha256": _sha256(body), "size": len(body)}


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _sha512(body: bytes) -> str:
    return hashlib.sha512(body).hexdigest()
