"""S3 buckets: of AWS, or of any server that speaks its protocol."""

import configparser
import datetime as dt
import hashlib
import hmac
import html
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import urllib3
from obstore.store import S3Store

from calotype.errors import InvalidInput, StoreUnavailable
from calotype.store.location import Location, endpoint
from calotype.store.remote import ONCE, PARTS, Connection, Timeouts

if TYPE_CHECKING:  # obstore has this name for type checkers only
    from obstore.store import S3Config

ABANDONED = dt.timedelta(days=1)  # an upload older than this has no writer any more
_MOST = 4 << 20  # bytes of a listing
_PAGES = 1000
_UPLOAD = re.compile(r"<Upload>(.*?)</Upload>", re.DOTALL)


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """Who signs the requests."""

    access_key: str
    secret_key: str
    token: str | None = None


def connect(location: Location, timeouts: Timeouts, below: str = "") -> Connection:
    """A connection to ``s3://bucket/prefix``.

    Credentials: ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY``, or the file of shared credentials
    (``AWS_PROFILE``), or what else obstore finds (a web identity, the instance's role).

    Raises:
        InvalidInput: the endpoint cannot be used.
    """
    region = (
        location.options.get("region")
        or os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION")
        or "us-east-1"
    )
    if not re.fullmatch(r"[a-z0-9-]{1,40}", region):
        raise InvalidInput("the region of a bucket is a word such as eu-central-1")
    wanted = (
        location.options.get("endpoint")
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or f"https://s3.{region}.amazonaws.com"
    )
    server = endpoint(location, wanted)
    config: S3Config = {
        "bucket": location.host,
        "region": region,
        "endpoint": server,
        "aws_endpoint_url_s3": server,
        "virtual_hosted_style_request": False,
        "conditional_put": "etag",
        "disable_bulk_delete": True,  # one kind of delete, which every server knows
        "disable_tagging": True,
    }
    credentials = find_credentials()
    if credentials:
        config["access_key_id"] = credentials.access_key
        config["secret_access_key"] = credentials.secret_key
        if credentials.token:
            config["session_token"] = credentials.token
    options = timeouts.options(allow_http=server.startswith("http:"))
    place = "/".join((*location.path, *((below,) if below else ())))
    try:
        once, parts = (
            S3Store(prefix=place or None, config=config, client_options=options, retry_config=retry)
            for retry in (ONCE, PARTS)
        )
    except Exception:  # noqa: BLE001 - whatever it says may quote a secret
        raise InvalidInput(f"{location.name}: this bucket cannot be used") from None
    uploads = None
    if credentials:
        prefix = f"{place}/" if place else ""
        uploads = AbandonedUploads(server, location.host, prefix, region, credentials, timeouts)
    return Connection(
        location.name,
        once,
        parts,
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the file ~/.aws/credentials",
        credentials is not None,
        uploads,
    )


def find_credentials() -> Credentials | None:
    """The credentials of the environment, or of the file of shared credentials."""
    environment = os.environ
    if (key := environment.get("AWS_ACCESS_KEY_ID")) and (
        secret := environment.get("AWS_SECRET_ACCESS_KEY")
    ):
        return Credentials(key, secret, environment.get("AWS_SESSION_TOKEN"))
    path = environment.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials"
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(path, encoding="utf-8")
        profile = parser[environment.get("AWS_PROFILE", "default")]
    except (KeyError, configparser.Error, UnicodeDecodeError):
        return None
    if (key := profile.get("aws_access_key_id")) and (
        secret := profile.get("aws_secret_access_key")
    ):
        return Credentials(key, secret, profile.get("aws_session_token"))
    return None


@dataclass(frozen=True, slots=True, repr=False)
class AbandonedUploads:
    """The bucket's multipart uploads that were started long ago; obstore does not list them."""

    server: str
    bucket: str
    prefix: str
    region: str
    credentials: Credentials
    timeouts: Timeouts
    age: dt.timedelta = ABANDONED

    def find(self) -> Sequence[str]:
        """Their names: key and upload id."""
        return sorted(f"{key} (upload {upload})" for key, upload in self._old())

    def remove(self) -> Sequence[str]:
        """Abort them."""
        removed: list[str] = []
        for key, upload in self._old():
            self._ask("DELETE", f"/{self.prefix}{key}", {"uploadId": upload})
            removed.append(f"{key} (upload {upload})")
        return sorted(removed)

    def _old(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        query = {"uploads": "", "prefix": self.prefix}
        before = dt.datetime.now(dt.UTC) - self.age
        for _ in range(_PAGES):
            listing = self._ask("GET", "", query)
            for upload in _UPLOAD.findall(listing):
                key, started = _field(upload, "Key"), _field(upload, "Initiated")
                if key.startswith(self.prefix) and _time(started) < before:
                    found.append((key.removeprefix(self.prefix), _field(upload, "UploadId")))
            if _field(listing, "IsTruncated") != "true":
                break
            query["key-marker"] = _field(listing, "NextKeyMarker")
            query["upload-id-marker"] = _field(listing, "NextUploadIdMarker")
        return found

    def _ask(self, method: str, path: str, query: Mapping[str, str]) -> str:
        url = f"{self.server}/{self.bucket}{path}"
        address, headers = sign(method, url, query, self.region, self.credentials)
        timeout = urllib3.Timeout(connect=self.timeouts.connect, read=self.timeouts.answer)
        try:
            with urllib3.PoolManager(retries=False, timeout=timeout) as pool:
                answer = pool.request(method, address, headers=headers, preload_content=False)
                body = answer.read(_MOST).decode(errors="replace")
        except urllib3.exceptions.HTTPError:
            raise StoreUnavailable(f"s3://{self.bucket}: the server broke off") from None
        if answer.status >= 500:
            raise StoreUnavailable(f"s3://{self.bucket}: the server answered {answer.status}")
        if answer.status >= 400 and answer.status != 404:
            raise InvalidInput(f"s3://{self.bucket}: the server refuses to list or abort uploads")
        return body


def sign(
    method: str, url: str, query: Mapping[str, str], region: str, credentials: Credentials
) -> tuple[str, dict[str, str]]:
    """The address and headers of a request without a body, signed as AWS's Signature Version 4 asks."""
    now = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    parts = urlsplit(url)
    path = quote(parts.path, safe="/~-._")
    asked = "&".join(
        f"{quote(k, safe='~-._')}={quote(v, safe='~-._')}" for k, v in sorted(query.items())
    )
    nothing = hashlib.sha256(b"").hexdigest()
    headers = {"host": parts.netloc, "x-amz-content-sha256": nothing, "x-amz-date": now}
    if credentials.token:
        headers["x-amz-security-token"] = credentials.token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    request = f"{method}\n{path}\n{asked}\n{lines}\n{names}\n{nothing}"
    scope = f"{now[:8]}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{credentials.secret_key}".encode()
    for step in (*scope.split("/"), text):
        key = hmac.digest(key, step.encode(), "sha256")
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, "
        f"SignedHeaders={names}, Signature={key.hex()}"
    )
    return f"{parts.scheme}://{parts.netloc}{path}?{asked}", headers


def _field(text: str, name: str) -> str:
    found = re.search(rf"<{name}>([^<]*)</{name}>", text)
    return html.unescape(found[1]) if found else ""


def _time(text: str) -> dt.datetime:
    try:
        when = dt.datetime.fromisoformat(text)
    except ValueError:
        return dt.datetime.max.replace(tzinfo=dt.UTC)  # unknown: not old
    return when if when.tzinfo else when.replace(tzinfo=dt.UTC)
