"""Who may do what: checked where rows are read and written, so no way in goes around it.

Whoever may not read a resource is told that there is none; whoever may read it and not change it is told
which role is missing.
"""

import shlex
from collections.abc import Iterator, Mapping
from itertools import chain, count
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    and_,
    exists,
    or_,
    select,
    true,
)

from calotype.catalog.rows import Row
from calotype.catalog.tables import (
    definitions,
    disks,
    galleries,
    gallery_subscriptions,
    images,
    role_assignments,
    snapshots,
    subscriptions,
    versions,
    vms,
)
from calotype.errors import Conflict, Forbidden, NotFound
from calotype.model import INSTALLATION, Caller, Role, Scope, Sharing, Shelf

#: What is said instead of the name of a VM that the caller may not see.
HIDDEN: Final = "(of others)"

#: The resources that roles can be given for, by what people call them.
RESOURCES: Final[Mapping[str, Table]] = {
    "image": images,
    "VM": vms,
    "disk": disks,
    "snapshot": snapshots,
    "gallery": galleries,
}

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

    # -- conditions on rows

    def visible(self, db: Connection, table: Table) -> ColumnElement[bool]:
        """The condition under which rows of a table with a scope may be read.

        What belongs to the installation is everybody's to read.
        """
        if self.unlimited:
            return true()
        places = [table.c.subscription == INSTALLATION]
        for row in db.execute(self._assignments(Role.READER)).mappings():
            place: ColumnElement[bool] = table.c.subscription == row["subscription"]
            if row["resource_group"] is not None:
                place = and_(place, table.c.resource_group == row["resource_group"])
            if row["resource"] is not None:
                place = and_(place, table.c.id == row["resource"])
            places.append(place)
        return or_(*places)

    def here(self, table: Table) -> ColumnElement[bool]:
        """The condition of being in the caller's group."""
        return in_group(table, self.caller.scope)

    def listed(self, db: Connection, table: Table) -> Select[Any]:
        """What the caller may see of a table's rows in its group, by name."""
        query = select(table).where(self.here(table), self.visible(db, table))
        return query.order_by(table.c.name)

    def shared(self, db: Connection) -> ColumnElement[bool]:
        """The condition of a gallery that others share with the caller's subscription."""
        mine = self.caller.scope.subscription
        offered: ColumnElement[bool] = galleries.c.everyone.is_(True)
        # Who only says that it is his has nothing of what is shared with it.
        if self.belongs(db, mine):
            named = exists().where(
                gallery_subscriptions.c.gallery_id == galleries.c.id,
                gallery_subscriptions.c.subscription == mine,
            )
            offered = or_(named, offered)
        groups = galleries.c.sharing != Sharing.PRIVATE.value  # a public one may be shared too
        return and_(groups, offered, galleries.c.subscription != mine)

    # -- questions

    def has(self, db: Connection, role: Role, row: Row) -> bool:
        """Whether the caller has a role for a row's resource, by its scope and its id."""
        if self.unlimited:
            return True
        if row["subscription"] == INSTALLATION:
            return role is Role.READER
        held = role_assignments.c
        query = self._assignments(role).where(
            held.subscription == row["subscription"],
            or_(held.resource_group.is_(None), held.resource_group == row["resource_group"]),
            or_(held.resource.is_(None), held.resource == row.get("id")),
        )
        return db.execute(query).first() is not None

    def may(self, db: Connection, role: Role, table: Table, row: Row) -> bool:
        """As :meth:`has`; the roles for a VM count for its disks, those for a gallery for its versions."""
        return any(
            self.has(db, role, bearer) or (role is Role.READER and self._offered(db, kind, bearer))
            for kind, bearer in _bearers(db, table, row)
        )

    def belongs(self, db: Connection, subscription: str) -> bool:
        """Whether the caller has any role in a subscription."""
        there = role_assignments.c.subscription == subscription
        held = self._assignments(Role.READER).where(there)
        return self.unlimited or db.execute(held).first() is not None

    # -- refusals

    def find(
        self, db: Connection, kind: str, name_or_id: str, role: Role = Role.READER
    ) -> dict[str, Any]:
        """The row of a resource (of a ``kind`` in :data:`RESOURCES`) that the caller has a role for.

        An id means what it names, wherever that is; a name is one in the caller's group.

        Raises:
            NotFound: there is none, or the caller may not even see it.
            Forbidden: the caller may see it, and has no such role.
        """
        table = RESOURCES[kind]
        named = (table.c.id == name_or_id, and_(table.c.name == name_or_id, self.here(table)))
        for condition in named:
            found = db.execute(select(table).where(condition)).mappings().first()
            row = dict(found or {})
            if not row:
                continue
            if self.may(db, role, table, row):
                return row
            if self.may(db, Role.READER, table, row):
                raise self._refusal(db, role, row, f"{kind} '{row['name']}'")
        raise missing(kind, name_or_id)

    def require(self, db: Connection, role: Role, row: Row, what: str) -> None:
        """Refuse what the caller may not do with the resource of a row; ``what`` names it.

        Raises:
            NotFound: the caller may not even see it.
            Forbidden: the caller may see it, and has no such role.
        """
        if self.has(db, role, row):
            return
        if not self.has(db, Role.READER, row) and not self._offered(db, galleries, row):
            raise NotFound(f"there is no {what}", hint="or you may not see it")
        raise self._refusal(db, role, row, what)

    def require_in(self, db: Connection, role: Role, scope: Scope, what: str) -> None:
        """Refuse what the caller may not do in a group, such as making a resource.

        Raises:
            Forbidden: the caller has no such role there.
        """
        place = {"subscription": scope.subscription, "resource_group": scope.group}
        self.require_place(db, role, place, what)

    def require_place(self, db: Connection, role: Role, place: Row, what: str) -> None:
        """As :meth:`require_in`, for a group, a whole subscription (no group), or a resource (its ``id``)."""
        if not self.has(db, role, place):
            raise self._refusal(db, role, place, what)

    def require_all(self, what: str) -> None:
        """Refuse to everybody but the installation's owner what concerns all of it; ``what`` is the act.

        Raises:
            Forbidden: the caller works with roles.
        """
        if not self.unlimited:
            raise Forbidden(
                f"'{self.caller.principal}' may not {what}: that is for the installation's owner",
                hint="run it without --as (and without CALOTYPE_AS)",
            )

    def _refusal(self, db: Connection, role: Role, row: Row, what: str) -> Forbidden:
        message = f"'{self.caller.principal}' has not the role {role} for {what}"
        if row["subscription"] == INSTALLATION:
            return Forbidden(
                f"{message}, which is everybody's to use",
                hint="the installation's owner can do it, without --as",
            )
        foreign = row["subscription"] != self.caller.scope.subscription
        # What is only shared with the caller is of a subscription that is not for it to know.
        if foreign and not self.belongs(db, row["subscription"]):
            return Forbidden(message, hint="an owner of it can give that role")
        there = subscriptions.c.id == row["subscription"]
        name = db.scalar(select(subscriptions.c.name).where(there)) or row["subscription"]
        words = ["role", "assign", self.caller.principal or "", role, "--subscription", name]
        if row["resource_group"] is not None:
            words += ["--resource-group", row["resource_group"]]
        return Forbidden(message, hint=f"an owner can give it: calotype {shlex.join(words)}")

    def _offered(self, db: Connection, table: Table, row: Row) -> bool:
        """Whether a row is that of a gallery that others share with the caller's subscription.

        What is public is not: everybody has of it what :mod:`calotype.engine.community.community` shows, and
        no more.
        """
        if table is not galleries:
            return False
        query = select(galleries.c.id).where(galleries.c.id == row.get("id"), self.shared(db))
        return db.scalar(query) is not None

    def _assignments(self, role: Role) -> Select[Any]:
        """The caller's roles that are this one, or include it."""
        mine = role_assignments.c.principal == self.caller.principal
        return select(role_assignments).where(mine, role_assignments.c.role.in_(_INCLUDED_IN[role]))


def in_group(table: Table, scope: Scope) -> ColumnElement[bool]:
    """The condition of being in a group."""
    return and_(table.c.subscription == scope.subscription, table.c.resource_group == scope.group)


def require_name(db: Connection, kind: str, name: str, scope: Scope) -> None:
    """Refuse a name that another resource of a ``kind`` (in :data:`RESOURCES`) has in a group.

    Raises:
        Conflict: it is taken.
    """
    if _is_taken(db, kind, name, scope):
        raise Conflict(
            f"{kind} '{name}' exists already", hint="choose another name, or delete it first"
        )


def free_name(db: Connection, kind: str, wanted: str, scope: Scope) -> str:
    """The first of ``wanted``, ``wanted-2``, ``wanted-3``, … that is free for a ``kind`` in a group."""
    names = chain([wanted], (f"{wanted}-{number}" for number in count(2)))
    return next(name for name in names if not _is_taken(db, kind, name, scope))


def _is_taken(db: Connection, kind: str, name: str, scope: Scope) -> bool:
    table = RESOURCES[kind]
    same = select(table.c.id).where(in_group(table, scope), table.c.name == name)
    return db.scalar(same) is not None


def missing(kind: str, name: str) -> NotFound:
    """The error for a resource that is not there, or not there for the caller: both sound the same."""
    return NotFound(f"there is no {kind} '{name}'", hint=f"calotype {kind.lower()} list shows them")


def _bearers(db: Connection, table: Table, row: Row) -> Iterator[tuple[Table, Row]]:
    """The resources whose roles count for a row: itself, the VM that a disk is on, a version's gallery."""
    yield table, row
    if table is disks:
        above, query = vms, select(vms).where(vms.c.id == row["vm_id"])
    elif table is images and row["shelf"] == Shelf.GALLERY.value:
        above = galleries
        query = (
            select(galleries)
            .join(definitions, definitions.c.gallery_id == galleries.c.id)
            .join(versions, versions.c.definition_id == definitions.c.id)
            .where(versions.c.image_id == row["id"])
        )
    else:
        return
    for found in db.execute(query).mappings():
        yield above, dict(found)
