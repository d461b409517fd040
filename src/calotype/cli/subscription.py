"""``calotype subscription``: whom resources belong to, and how much there may be of them."""

from typing import Any

from cyclopts import App

from calotype import units
from calotype.cli import GROUPS
from calotype.cli.common import Common, session
from calotype.cli.output import Columns, emit, plain
from calotype.cli.text import size as show_size
from calotype.engine import subscriptions
from calotype.engine.subscriptions import SubscriptionView
from calotype.errors import InvalidInput
from calotype.model import Quota, QuotaKind

app = App(name="subscription", help=GROUPS["subscription"])
quota = App(name="quota", help="How much a subscription may have.")
app.command(quota)
app.command(
    "calotype.cli.entitlement:app",
    name="entitlement",
    help="Offers that are not for everybody, such as msdn: who may use them.",
)

COLUMNS: Columns = {
    "Name": lambda s: s["name"],
    "Id": lambda s: s["id"],
    "Created": lambda s: s["createdAt"][:19],
}
QUOTAS: Columns = {
    "Kind": lambda q: q["kind"],
    "Used": lambda q: _amount(q["kind"], q["used"]),
    "Limit": lambda q: "none" if q["most"] is None else _amount(q["kind"], q["most"]),
}
_NO_LIMIT = "none"


@app.command
def create(name: str, *, common: Common | None = None) -> None:
    """Create a subscription.

    Parameters
    ----------
    name
        Its name.
    """
    with session(common) as context:
        emit(common, subscriptions.create(context, name))


@app.command(name="list")
def list_(*, common: Common | None = None) -> None:
    """List the subscriptions: for a principal, those that it has a role in."""
    with session(common) as context:
        emit(common, subscriptions.list_all(context), COLUMNS)


@app.command
def show(name: str | None = None, *, common: Common | None = None) -> None:
    """Show a subscription, what it has and may have.

    Parameters
    ----------
    name
        Name or id (default: the one that --subscription names).
    """
    with session(common) as context:
        emit(common, _record(subscriptions.show(context, name)))


@app.command
def delete(name: str, *, common: Common | None = None) -> None:
    """Delete a subscription that holds nothing; its roles, quotas, terms and entitlements go with it.

    Parameters
    ----------
    name
        Name or id.
    """
    with session(common) as context:
        subscriptions.delete(context, name)


@quota.command(name="set")
def set_(kind: QuotaKind, limit: str, *, common: Common | None = None) -> None:
    """Say how much a subscription may have; what it has already, it keeps.

    Parameters
    ----------
    kind
        What is limited; bytes are the virtual sizes of images and image versions.
    limit
        A number; for bytes also 500G; or none.
    """
    most = None if limit.lower() == _NO_LIMIT else _limit(kind, limit)
    with session(common) as context:
        emit(common, subscriptions.set_quota(context, kind, most), QUOTAS)


@quota.command(name="list")
def list_quotas(*, common: Common | None = None) -> None:
    """List what a subscription has of each kind, and may have."""
    with session(common) as context:
        emit(common, subscriptions.show(context).quotas, QUOTAS)


def _limit(kind: QuotaKind, text: str) -> int:
    if kind is QuotaKind.BYTES:
        return units.size(text)
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise InvalidInput(f"'{text}' is no number of {kind}", hint="such as 10, or none")
    return int(text)


def _record(view: SubscriptionView) -> dict[str, Any]:
    return {**plain(view.subscription), "quotas": {q.kind.value: _told(q) for q in view.quotas}}


def _told(found: Quota) -> dict[str, int | None]:
    return {"used": found.used, "limit": found.most}


def _amount(kind: str, count: int) -> str:
    return show_size(count) if kind == QuotaKind.BYTES else str(count)
