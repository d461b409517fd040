"""Who may do what: roles in a subscription, in a group of it, or for one resource."""

from dataclasses import dataclass
from datetime import UTC, datetime

from calotype.catalog import Act
from calotype.engine import names
from calotype.engine.context import Context
from calotype.errors import NotAllowed
from calotype.model import INSTALLATION, Role, RoleAssignment


@dataclass(frozen=True, slots=True)
class Where:
    """Where a role is to hold in the subscription: everywhere, in a group, or for one resource."""

    group: str | None = None
    resource: str | None = None  # its id, or its name in the command's group


def assign(context: Context, principal: str, role: Role, where: Where) -> RoleAssignment:
    """Give a role.

    Raises:
        InvalidInput: no principal can be called so.
        NotFound: there is no such resource.
        Conflict: the principal has the role there already, or several resources have that name.
        NotAllowed: the resource was pulled for the whole installation.
        Forbidden: the caller is no Owner there.
    """
    names.principal(principal)
    subscription, group, resource = context.scope.subscription, where.group, None
    if where.resource is not None:
        resource, kind, scope = context.catalog.roles.resource(where.resource)
        subscription, group = scope.subscription, scope.group
        if subscription == INSTALLATION:
            raise NotAllowed(
                f"{kind} '{where.resource}' was pulled for everybody, and everybody may use it",
                hint="what changes it is for the installation's owner alone",
            )
    made = RoleAssignment(
        id=names.new_id(),
        principal=principal,
        role=role,
        subscription=subscription,
        group=group,
        resource=resource,
        created_at=datetime.now(UTC),
    )
    context.catalog.roles.assign(made, _act("role.assign", made))
    return made


def list_all(context: Context) -> list[RoleAssignment]:
    """The roles in the subscription that the caller may know of, by principal."""
    return context.catalog.roles.list(context.scope.subscription)


def delete(context: Context, assignment_id: str) -> None:
    """Take a role away.

    Raises:
        NotFound: there is no such assignment.
        Forbidden: the caller is no Owner there.
    """
    found = context.catalog.roles.get(assignment_id)
    context.catalog.roles.delete(found.id, _act("role.delete", found))


def _act(action: str, assignment: RoleAssignment) -> Act:
    detail = {
        "role": assignment.role.value,
        "subscription": assignment.subscription,
        "group": assignment.group,
        "resource": assignment.resource,
    }
    return Act(action, f"principal {assignment.principal}", detail)
