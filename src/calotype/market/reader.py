"""Fetch what a publisher says, hold it against its signature, and against what was seen before."""

from collections.abc import MutableMapping, Sequence
from datetime import datetime, timedelta

from calotype.errors import NotFound, Untrusted
from calotype.market.offer import Fetch, Key
from calotype.market.signature import MAX_SIGNATURE, Vouched, clearsigned, detached

#: What an engine remembers between questions: for each index (its URL) the latest time (Unix seconds) that a
#: signature or the index itself gave. An older one is not believed: somebody hides newer versions.
Seen = MutableMapping[str, int]

CLEAR = "clear"
_AHEAD = timedelta(days=1)  # clocks differ, but not by more


class Reader:
    """One question's worth of fetching."""

    def __init__(self, fetch: Fetch, seen: Seen, now: datetime) -> None:
        self._fetch = fetch
        self._seen = seen
        self.now = now

    def page(self, url: str, limit: int) -> bytes:
        """What stands at ``url``; nobody vouches for it."""
        return self._fetch(url, limit)

    def text(self, url: str, limit: int, signature: str | None, keys: Sequence[Key]) -> Vouched:
        """What stands at ``url``, as its signature vouches for it.

        Args:
            url: of the file.
            limit: bytes.
            signature: ``clear``, what is added to the URL, a URL, or ``None``: it is not signed.
            keys: who may have signed.

        Raises:
            NotFound: there is no such file.
            Untrusted: a signature is missing or does not hold, or is older than one that was seen.
        """
        data = self._fetch(url, limit)
        if signature is None:
            return Vouched(data)
        if signature == CLEAR:
            vouched = clearsigned(data, keys, url)
        else:
            beside = signature if "://" in signature else url + signature
            vouched = detached(data, self._signature(beside, url), keys, url)
        if vouched.signed_at is not None:
            self.require_newer(url, vouched.signed_at)
        return vouched

    def _signature(self, beside: str, url: str) -> bytes:
        try:
            return self._fetch(beside, MAX_SIGNATURE)
        except NotFound:
            raise Untrusted(
                f"{url} has no signature: there is no {beside}",
                hint="nothing of it was used; try again later: a publisher puts both there at once",
            ) from None

    def require_newer(self, url: str, time: int | None) -> None:
        """Refuse an index that is older than one that was seen, and remember what is newer.

        Raises:
            Untrusted: it is older, or has no time any more, or is of tomorrow.
        """
        before = self._seen.get(url)
        if before is not None and (time is None or time < before):
            raise Untrusted(
                f"{url} is older than what was there before: newer versions may be hidden",
                hint="nothing of it was used; a mirror may lag behind, so try again later",
            )
        if time is None:
            return
        if time > (self.now + _AHEAD).timestamp():
            raise Untrusted(
                f"{url} says that it was made in the future", hint="check this machine's clock"
            )
        self._seen[url] = time
