"""The user-data of a seed: our cloud-config around the user's custom data.

Three MIME parts, which cloud-init merges in this order, a later part's keys replacing an earlier's:

1. defaults (time zone, password logins, …): the custom data may override them, as on Azure;
2. the custom data, as its own part, read by cloud-init exactly as if it stood alone;
3. the admin user. It is the *default user* (key ``user``), which cloud-init adds to whatever list
   of ``users`` it is given, so no custom data can lose it.
"""

import base64
import email
import json
import zlib
from email.message import Message
from email.mime.base import MIMEBase
from email.mime.multipart import MIMEMultipart
from typing import Any

from calotype.errors import InvalidInput

#: The longest custom data after decompression, in bytes.
MAX_UNPACKED = 1 << 20

#: Where bytes that no part of cloud-init understands are put, as Azure's agent does.
CUSTOM_DATA_FILE = "/var/lib/waagent/CustomData"

_GZIP = b"\x1f\x8b"

#: The first line decides what a part is (cloud-init's own rule; matched without regard to case).
_TYPES = {
    b"#include-once": "text/x-include-once-url",
    b"#include": "text/x-include-url",
    b"#!": "text/x-shellscript",
    b"#cloud-config-archive": "text/cloud-config-archive",
    b"#cloud-config-jsonp": "text/cloud-config-jsonp",
    b"#cloud-config": "text/cloud-config",
    b"#cloud-boothook": "text/cloud-boothook",
    b"#part-handler": "text/part-handler",
    b"## template: jinja": "text/jinja2",
}


def user_data(
    defaults: dict[str, Any], user: dict[str, Any] | None, custom_data: bytes | None
) -> bytes:
    """The MIME document of the parts above; ``user`` is cloud-init's record of the admin user.

    Raises:
        InvalidInput: the custom data is damaged gzip, or unpacks to more than `MAX_UNPACKED`.
    """
    document = MIMEMultipart()
    document.attach(_cloud_config(defaults))
    last: dict[str, Any] = {"user": user} if user else {}
    if custom_data is not None:
        part = custom_part(custom_data)
        if part is None:
            last["write_files"] = [_as_file(custom_data)]
        else:
            document.attach(part)
    if last:
        document.attach(_cloud_config(last))
    return document.as_bytes()


def custom_part(custom_data: bytes) -> Message | None:
    """The custom data as a MIME part; ``None``: cloud-init would not know what to do with it."""
    data = _gunzip(custom_data) if custom_data.startswith(_GZIP) else custom_data
    if b"mime-version:" in data[:4096].lower():
        return email.message_from_bytes(data)
    head = data[:64].lower()
    for prefix, content_type in _TYPES.items():
        if head.startswith(prefix):
            return _part(content_type, data)
    return None


def _part(content_type: str, data: bytes) -> MIMEBase:
    part = MIMEBase(*content_type.split("/"))
    part.set_payload(base64.encodebytes(data).decode("ascii"))
    part["Content-Transfer-Encoding"] = "base64"
    return part


def _cloud_config(config: dict[str, Any]) -> MIMEBase:
    # JSON is YAML: no second serialiser, and every string is quoted.
    text = "#cloud-config\n" + json.dumps(config, indent=1, ensure_ascii=False) + "\n"
    part = _part("text/cloud-config", text.encode())
    part["Merge-Type"] = "dict(replace)+list()+str()"
    return part


def _as_file(data: bytes) -> dict[str, str]:
    return {
        "path": CUSTOM_DATA_FILE,
        "owner": "root:root",
        "permissions": "0600",
        "encoding": "b64",
        "content": base64.b64encode(data).decode("ascii"),
    }


def _gunzip(data: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        unpacked = unpacker.decompress(data, MAX_UNPACKED)
    except zlib.error as error:
        raise InvalidInput(f"the custom data is damaged gzip: {error}") from error
    if unpacker.unconsumed_tail:
        raise InvalidInput(f"the custom data unpacks to more than {MAX_UNPACKED} bytes")
    if not unpacker.eof:
        raise InvalidInput("the custom data is damaged gzip: it ends too early")
    return unpacked
