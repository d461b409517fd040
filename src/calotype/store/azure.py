"""Azure Blob containers. Azure itself drops uploads that nobody finished, after a week."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from obstore.store import AzureStore

from calotype.errors import InvalidInput
from calotype.store.location import Location, endpoint
from calotype.store.remote import ONCE, PARTS, Connection, Timeouts

if TYPE_CHECKING:  # obstore has this name for type checkers only
    from obstore.store import AzureConfig


def connect(location: Location, timeouts: Timeouts, below: str = "") -> Connection:
    """A connection to ``az://account/container/prefix``.

    Credentials: ``AZURE_STORAGE_CONNECTION_STRING``, ``AZURE_STORAGE_ACCOUNT_KEY``,
    ``AZURE_STORAGE_SAS_TOKEN``, or what else obstore finds (a service principal, a managed identity).

    Raises:
        InvalidInput: the endpoint or the credentials cannot be used.
    """
    container, *prefix = location.path
    given = _connection_string(os.environ.get("AZURE_STORAGE_CONNECTION_STRING", ""))
    if given.get("AccountName", location.host) != location.host:
        given = {}  # of another account
    default = f"https://{location.host}.blob.core.windows.net"
    wanted = location.options.get("endpoint") or given.get("BlobEndpoint") or default
    config: AzureConfig = {
        "account_name": location.host,
        "container_name": container,
        "endpoint": endpoint(location, wanted),
    }
    if key := given.get("AccountKey") or os.environ.get("AZURE_STORAGE_ACCOUNT_KEY"):
        config["account_key"] = key
    elif token := given.get("SharedAccessSignature") or os.environ.get("AZURE_STORAGE_SAS_TOKEN"):
        config["sas_key"] = token.removeprefix("?")
    options = timeouts.options(allow_http=wanted.startswith("http:"))
    place = "/".join((*prefix, *((below,) if below else ()))) or None
    try:
        once, parts = (
            AzureStore(prefix=place, config=config, client_options=options, retry_config=retry)
            for retry in (ONCE, PARTS)
        )
    except Exception:  # noqa: BLE001 - whatever it says may quote the key
        raise InvalidInput(
            f"{location.name}: the account or its credentials cannot be used",
            hint="AZURE_STORAGE_ACCOUNT_KEY is the account's key in base64",
        ) from None
    return Connection(
        location.name,
        once,
        parts,
        "AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_CONNECTION_STRING",
        bool({"account_key", "sas_key"} & config.keys()),
    )


def _connection_string(text: str) -> Mapping[str, str]:
    pairs = (part.partition("=") for part in text.split(";") if "=" in part)
    return {name.strip(): value.strip() for name, _, value in pairs}
