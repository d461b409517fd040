"""``calotype role``: who may do what, and where."""

from typing import Any

from cyclopts import App

from calotype.cli import GROUPS
from calotype.cli.common import Common, session
from calotype.cli.output import Columns, emit
from calotype.engine import roles
from calotype.engine.roles import Where
from calotype.model import Role

app = App(name="role", help=GROUPS["role"])


def _where(record: dict[str, Any]) -> str:
    if record["resource"]:
        return f"resource {record['resource']}"
    return f"group {record['group']}" if record["group"] else "the subscription"


COLUMNS: Columns = {
    "Principal": lambda r: r["principal"],
    "Role": lambda r: r["role"],
    "In": _where,
    "Id": lambda r: r["id"],
}


@app.command
def assign(
    principal: str, role: Role, *, resource: str | None = None, common: Common | None = None
) -> None:
    """Give a role: in the subscription; with --resource-group in that group alone; or for one resource.

    Parameters
    ----------
    principal
        Who: a name, an address or an id, as --as takes it.
    role
        Owner: also give roles, and share. Contributor: make, change and delete. Reader: see and use.
    resource
        Only for this image, VM, disk, snapshot or gallery: its id, or its name in the group.
    """
    with session(common) as context:
        group = common.resource_group if common else None
        emit(common, roles.assign(context, principal, role, Where(group, resource)))


@app.command(name="list")
def list_(*, common: Common | None = None) -> None:
    """List who has which role in the subscription."""
    with session(common) as context:
        emit(common, roles.list_all(context), COLUMNS)


@app.command
def delete(assignment: str, *, common: Common | None = None) -> None:
    """Take a role away.

    Parameters
    ----------
    assignment
        Its id, as calotype role list shows it.
    """
    with session(common) as context:
        roles.delete(context, assignment)
