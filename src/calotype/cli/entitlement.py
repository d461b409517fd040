"""``calotype subscription entitlement``: who may use offers that are not for everybody."""

from cyclopts import App

from calotype.cli.arguments import moment
from calotype.cli.common import Common, session
from calotype.cli.output import Columns, emit
from calotype.engine.marketplace import purchase

app = App(
    name="entitlement", help="Offers that are not for everybody, such as msdn: who may use them."
)

COLUMNS: Columns = {
    "Subscription": lambda e: e["subscription"],
    "Name": lambda e: e["name"],
    "Expires": lambda e: (e["expiresAt"] or "never")[:10],
    "Granted by": lambda e: e["grantedBy"],
    "Granted": lambda e: e["grantedAt"][:10],
}


@app.command
def grant(name: str, *, expires: str | None = None, common: Common | None = None) -> None:
    """Entitle the subscription (--subscription); only the installation's owner can.

    Parameters
    ----------
    name
        The entitlement, as offers name it.
    expires
        Until when (UTC): 2027-01-31. Without it, until it is revoked.
    """
    until = moment(expires or "none")
    with session(common) as context:
        emit(common, purchase.grant(context, name, until))


@app.command
def revoke(name: str, *, common: Common | None = None) -> None:
    """Take an entitlement of the subscription (--subscription) back; VMs that there are go on.

    Parameters
    ----------
    name
        The entitlement.
    """
    with session(common) as context:
        purchase.revoke(context, name)


@app.command(name="list")
def list_(*, common: Common | None = None) -> None:
    """List the entitlements: all of them for the installation's owner, with --subscription one's own."""
    with session(common) as context:
        of = common.subscription and context.scope.subscription if common else None
        emit(common, context.catalog.marketplace.entitlements(of or None), COLUMNS)
