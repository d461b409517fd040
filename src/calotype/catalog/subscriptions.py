"""Subscriptions, what they may have and have, and who has which role in them."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Column, Connection, Table, delete, exists, insert, select

from calotype.catalog.access import RESOURCES, missing
from calotype.catalog.audit import Act, append
from calotype.catalog.part import Part
from calotype.catalog.tables import (
    entitlements,
    gallery_subscriptions,
    quotas,
    role_assignments,
    subscriptions,
    terms,
    usage,
)
from calotype.errors import Conflict, NotAllowed, NotFound
from calotype.model import (
    DEFAULT_SUBSCRIPTION,
    Quota,
    QuotaKind,
    Role,
    RoleAssignment,
    Scope,
    Shelf,
    Subscription,
)

#: What goes with a subscription, as nothing without it.
_ITS_OWN = (role_assignments, quotas, usage, terms, entitlements, gallery_subscriptions)


class Subscriptions(Part):
    """The subscriptions in a catalogue; they and their quotas are the installation's owner's to change."""

    def add(self, subscription: Subscription, act: Act) -> None:
        """Make a subscription exist.

        Raises:
            Conflict: the name is taken.
            Forbidden: the caller is not the installation's owner.
        """
        self._access.require_all("make a subscription")
        row = {name: getattr(subscription, name) for name in ("id", "name", "created_at")}
        with self._write() as db:
            same = subscriptions.c.name == subscription.name
            if db.scalar(select(subscriptions.c.id).where(same)) is not None:
                raise Conflict(
                    f"subscription '{subscription.name}' exists already",
                    hint="choose another name",
                )
            db.execute(insert(subscriptions), row)
            append(db, act)

    def get(self, name_or_id: str) -> Subscription:
        """The subscription of that name or id.

        Raises:
            NotFound: there is none, or the caller has no role in it.
        """
        with self._read() as db:
            return Subscription(**self._found(db, name_or_id))

    def list(self) -> list[Subscription]:
        """The subscriptions that the caller has a role in, by name."""
        with self._read() as db:
            rows = db.execute(select(subscriptions).order_by(subscriptions.c.name)).mappings().all()
            return [Subscription(**row) for row in rows if self._access.belongs(db, row["id"])]

    def delete(self, name_or_id: str, act: Act) -> None:
        """Take an empty subscription out of the catalogue, with its roles, quotas, terms and entitlements.

        Raises:
            NotFound: there is none.
            NotAllowed: it is the one that every installation has.
            Conflict: there is something in it.
            Forbidden: the caller is not the installation's owner.
        """
        self._access.require_all("delete a subscription")
        with self._write() as db:
            found = self._found(db, name_or_id)
            there, name = found["id"], found["name"]
            if there == DEFAULT_SUBSCRIPTION:
                raise NotAllowed(
                    f"subscription '{name}' is the one that every installation has",
                    hint="delete what is in it instead",
                )
            for kind, table in RESOURCES.items():
                inside = select(table.c.name).where(table.c.subscription == there)
                if (left := db.scalar(inside.limit(1))) is not None:
                    raise Conflict(
                        f"subscription '{name}' is not empty: there is {kind} '{left}'",
                        hint="delete what is in it first",
                    )
            for table in _ITS_OWN:
                db.execute(delete(table).where(table.c.subscription == there))
            db.execute(delete(subscriptions).where(subscriptions.c.id == there))
            append(db, act)

    def quotas(self, name_or_id: str) -> Sequence[Quota]:
        """What a subscription has of each kind, and may have.

        Raises:
            NotFound: there is none, or the caller has no role in it.
        """
        with self._read() as db:
            there = self._found(db, name_or_id)["id"]
            used = _by_kind(db, usage, usage.c.used, there)
            most = _by_kind(db, quotas, quotas.c.most, there)
            return [Quota(kind, used.get(kind, 0), most.get(kind)) for kind in QuotaKind]

    def set_quota(self, name_or_id: str, kind: QuotaKind, most: int | None, act: Act) -> None:
        """Say how much a subscription may have (``None``: as much as it likes); what it has, it keeps.

        Raises:
            NotFound: there is no such subscription.
            Forbidden: the caller is not the installation's owner.
        """
        self._access.require_all("set quotas")
        with self._write() as db:
            there = self._found(db, name_or_id)["id"]
            here = (quotas.c.subscription == there, quotas.c.kind == kind.value)
            db.execute(delete(quotas).where(*here))
            if most is not None:
                row = {"subscription": there, "kind": kind.value, "most": most}
                db.execute(insert(quotas), row)
            append(db, act)

    def _found(self, db: Connection, name_or_id: str) -> dict[str, Any]:
        """The row of that id, or of that name."""
        found = (subscriptions.c.id == name_or_id.lower(), subscriptions.c.name == name_or_id)
        for condition in found:
            row = db.execute(select(subscriptions).where(condition)).mappings().first()
            if row is not None and self._access.belongs(db, row["id"]):
                return dict(row)
        raise missing("subscription", name_or_id)


class Roles(Part):
    """Who has which role where: an Owner's to give, in the scope that he owns."""

    def assign(self, assignment: RoleAssignment, act: Act) -> None:
        """Give a role.

        Raises:
            Conflict: the principal has it there already.
            NotFound: there is no such resource there.
            Forbidden: the caller is no Owner there.
        """
        row = _row(assignment)
        same = (
            role_assignments.c[name].is_not_distinct_from(row[name])
            for name in row
            if name not in ("id", "created_at")
        )
        with self._write() as db:
            self._access.require_place(db, Role.OWNER, _scope(row), _place(row))
            if assignment.resource is not None and not _is_there(db, row):
                raise NotFound(
                    f"there is no resource '{assignment.resource}' in that group",
                    hint="it may just have been deleted: list what there is",
                )
            if db.scalar(select(role_assignments.c.id).where(*same)) is not None:
                raise Conflict(
                    f"'{assignment.principal}' has the role {assignment.role} there already",
                    hint="calotype role list shows who has which",
                )
            db.execute(insert(role_assignments), row)
            append(db, act)

    def list(self, subscription_id: str) -> list[RoleAssignment]:
        """The roles in a subscription that the caller may read, and its own; by principal."""
        query = select(role_assignments).where(role_assignments.c.subscription == subscription_id)
        order = (role_assignments.c.principal, role_assignments.c.created_at)
        with self._read() as db:
            rows = db.execute(query.order_by(*order, role_assignments.c.id)).mappings().all()
            return [_assignment(row) for row in map(dict, rows) if self._readable(db, row)]

    def get(self, assignment_id: str) -> RoleAssignment:
        """The assignment of that id.

        Raises:
            NotFound: there is none, or the caller may not know of it.
        """
        with self._read() as db:
            return _assignment(self._found(db, assignment_id))

    def delete(self, assignment_id: str, act: Act) -> None:
        """Take a role away.

        Raises:
            NotFound, Forbidden: there is no such assignment, or the caller is no Owner there.
        """
        with self._write() as db:
            row = self._found(db, assignment_id)
            self._access.require_place(db, Role.OWNER, _scope(row), _place(row))
            db.execute(delete(role_assignments).where(role_assignments.c.id == assignment_id))
            append(db, act)

    def resource(self, name_or_id: str) -> tuple[str, str, Scope]:
        """The id, the kind and the place of the resource of that id, or of the one that has that name here.

        Raises:
            NotFound: there is none that the caller may see.
            Conflict: several kinds of resources have that name here.
            NotAllowed: it is a version in a gallery.
        """
        with self._read() as db:
            seen = [(kind, self._seen(db, kind, name_or_id)) for kind in RESOURCES]
        found = []
        for kind, row in seen:
            if row is None:
                continue
            if row.get("shelf") == Shelf.GALLERY.value:
                raise NotAllowed(
                    f"'{row['name']}' is a version in a gallery, and has the gallery's roles",
                    hint="calotype role assign PRINCIPAL ROLE --resource GALLERY",
                )
            found.append((row["id"], kind, Scope(row["subscription"], row["resource_group"])))
        if not found:
            raise NotFound(
                f"there is no image, VM, disk, snapshot or gallery '{name_or_id}'",
                hint="write its name in the command's group (-g), or its id, as -o json shows it",
            )
        if len(found) > 1:
            raise Conflict(
                f"'{name_or_id}' is {' and '.join(kind for _, kind, _ in found)}",
                hint="name it by its id, as -o json shows it",
            )
        return found[0]

    def _found(self, db: Connection, assignment_id: str) -> dict[str, Any]:
        here = role_assignments.c.id == assignment_id
        row = dict(db.execute(select(role_assignments).where(here)).mappings().first() or {})
        if not row or not self._readable(db, row):
            raise NotFound(
                f"there is no role assignment '{assignment_id}'",
                hint="calotype role list shows them",
            )
        return row

    def _readable(self, db: Connection, row: Mapping[str, Any]) -> bool:
        mine = row["principal"] == self._access.caller.principal
        return mine or self._access.has(db, Role.READER, _scope(row))

    def _seen(self, db: Connection, kind: str, name_or_id: str) -> dict[str, Any] | None:
        try:
            return self._access.find(db, kind, name_or_id)
        except NotFound:
            return None


def _scope(row: Mapping[str, Any]) -> dict[str, Any]:
    """Where an assignment holds, as the row of a resource."""
    return {
        "subscription": row["subscription"],
        "resource_group": row["resource_group"],
        "id": row["resource"],
    }


def _place(row: Mapping[str, Any]) -> str:
    if row["resource"] is not None:
        return f"resource '{row['resource']}'"
    if row["resource_group"] is not None:
        return f"resource group '{row['resource_group']}'"
    return "the whole subscription"


def _is_there(db: Connection, row: Mapping[str, Any]) -> bool:
    """Whether the resource of an assignment is where the assignment says."""
    return any(
        db.scalar(
            select(
                exists().where(
                    table.c.id == row["resource"],
                    table.c.subscription == row["subscription"],
                    table.c.resource_group == row["resource_group"],
                )
            )
        )
        for table in RESOURCES.values()
    )


def _row(assignment: RoleAssignment) -> dict[str, Any]:
    return {
        "id": assignment.id,
        "principal": assignment.principal,
        "role": assignment.role.value,
        "subscription": assignment.subscription,
        "resource_group": assignment.group,
        "resource": assignment.resource,
        "created_at": assignment.created_at,
    }


def _assignment(row: Mapping[str, Any]) -> RoleAssignment:
    return RoleAssignment(
        id=row["id"],
        principal=row["principal"],
        role=Role(row["role"]),
        subscription=row["subscription"],
        group=row["resource_group"],
        resource=row["resource"],
        created_at=row["created_at"],
    )


def _by_kind(
    db: Connection, table: Table, column: Column[int], subscription_id: str
) -> dict[QuotaKind, int]:
    query = select(table.c.kind, column).where(table.c.subscription == subscription_id)
    return {QuotaKind(kind): count for kind, count in db.execute(query)}
