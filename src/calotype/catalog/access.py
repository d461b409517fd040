"""Who may do what: checked where rows are read and written, so no way in goes around it.

Whoever may not read a resource is told that there is none; whoever may read it and not change it is told
which role is missing.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, false, or_, select, true

from calotype.catalog.tables import role_assignments
from calotype.errors import Forbidden, NotFound
from calotype.model import INSTALLATION, Caller, Role

#: Role -> the roles that include it.
_INCLUDED_IN: Mapping[Role, tuple[str, ...]] = {
    Role.READER: (Role.READER, Role.CONTRIBUTOR, Role.OWNER),
    Role.CONTRIBUTOR: (Role.CONTRIBUTOR, Role.OWNER),
    Role.OWNER: (Role.OWNER,),
}


class Access:
    """What one caller may see and change."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller

    @property
    def unlimited(self) -> bool:
        """Whether the caller is the installation's owner."""
        return self.caller.principal is None

    def visible(self, db: Connection, table: Table) -> ColumnElement[bool]:
        """The condition under which rows of a table with a scope may be read.

        What belongs to the installation is everybody's to read.
        """
        if self.unlimited:
            return true()
        shared = table.c.subscription == INSTALLATION
        places = [shared]
        for row in self._assignments(db, Role.READER):
            place: ColumnElement[bool] = table.c.subscription == row["subscription"]
            if row["resource_group"] is not None:
                place = and_(place, table.c.resource_group == row["resource_group"])
            if row["resource"] is not None:
                place = and_(place, table.c.id == row["resource"])
            places.append(place)
        return or_(false(), *places)

    def has(self, db: Connection, role: Role, row: Mapping[str, Any]) -> bool:
        """Whether the caller has a role for a row's resource, by its scope and its id."""
        if self.unlimited:
            return True
        if row["subscription"] == INSTALLATION:
            return role is Role.READER
        return self._holds(
            db, role, row["subscription"], row["resource_group"], str(row.get("id", ""))
        )

    def require(self, db: Connection, role: Role, row: Mapping[str, Any], what: str) -> None:
        """Refuse what the caller may not do with the resource of a row; ``what`` names it.

        Raises:
            NotFound: the caller may not even see it.
            Forbidden: the caller may see it, and has no such role.
        """
        if self.has(db, role, row):
            return
        if not self.has(db, Role.READER, row):
            raise NotFound(f"there is no {what}", hint="or you may not see it")
        raise self._refusal(role, what)

    def require_here(self, db: Connection, role: Role, what: str) -> None:
        """Refuse what the caller may not do in its own scope, such as making a resource.

        Raises:
            Forbidden: the caller has no such role there.
        """
        scope = self.caller.scope
        if not (self.unlimited or self._holds(db, role, scope.subscription, scope.group, "")):
            raise self._refusal(role, what)

    def _refusal(self, role: Role, what: str) -> Forbidden:
        scope = self.caller.scope
        return Forbidden(
            f"'{self.caller.principal}' has not the role {role} for {what}",
            hint=f"an owner can give it: calotype role assign {self.caller.principal} {role} "
            f"--subscription {scope.subscription} --resource-group {scope.group}",
        )

    def _holds(
        self, db: Connection, role: Role, subscription: str, group: str, resource: str
    ) -> bool:
        return any(
            row["subscription"] == subscription
            and row["resource_group"] in (None, group)
            and row["resource"] in (None, resource)
            for row in self._assignments(db, role)
        )

    def _assignments(self, db: Connection, role: Role) -> list[Mapping[str, Any]]:
        mine = role_assignments.c.principal == self.caller.principal
        query = select(role_assignments).where(
            mine, role_assignments.c.role.in_(_INCLUDED_IN[role])
        )
        return [dict(row) for row in db.execute(query).mappings()]
