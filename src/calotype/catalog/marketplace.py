"""Catalogues of offers beside the one that ships, accepted terms, and entitlements.

Catalogues and entitlements are the installation's owner's to give; terms are accepted by whoever may make
resources anywhere in the subscription that they bind.
"""

from typing import Any

from sqlalchemy import Connection, case, delete, insert, select

from calotype.catalog import rows
from calotype.catalog.audit import Act, append
from calotype.catalog.part import Part
from calotype.catalog.tables import (
    definitions,
    entitlements,
    galleries,
    images,
    market_catalogs,
    subscriptions,
    terms,
    versions,
)
from calotype.errors import Conflict, Forbidden, NotFound
from calotype.model import (
    INSTALLATION,
    Acceptance,
    Entitlement,
    MarketCatalog,
    PurchasePlan,
    Role,
    Sharing,
    Shelf,
)


class Marketplace(Part):
    """What the installation knows of offers; each method is one transaction."""

    # -- catalogues

    def catalogs(self) -> list[MarketCatalog]:
        """The catalogues that were added, in the order in which they were."""
        query = select(market_catalogs).order_by(market_catalogs.c.added_at, market_catalogs.c.name)
        with self._read() as db:
            return [_to_catalog(dict(row)) for row in db.execute(query).mappings()]

    def add_catalog(self, catalog: MarketCatalog, act: Act) -> None:
        """Take a catalogue in.

        Raises:
            Conflict: the name is taken.
            Forbidden: the caller is not the installation's owner.
        """
        self._access.require_all("add a catalogue of offers")
        row = {
            "name": catalog.name,
            "location": catalog.location,
            "kind": catalog.kind,
            "publisher": catalog.publisher,
            "keyring": catalog.keyring,
            "allow_addresses": list(catalog.allow_addresses),
            "added_at": catalog.added_at,
        }
        named = market_catalogs.c.name == catalog.name
        with self._write() as db:
            if db.scalar(select(market_catalogs.c.name).where(named)) is not None:
                raise Conflict(
                    f"there is a catalogue '{catalog.name}' already",
                    hint=f"calotype marketplace catalog remove {catalog.name}, or choose another name",
                )
            db.execute(insert(market_catalogs), row)
            append(db, act)

    def remove_catalog(self, name: str, act: Act) -> None:
        """Forget a catalogue; what was pulled from it stays.

        Raises:
            NotFound: there is none.
            Forbidden: the caller is not the installation's owner.
        """
        self._access.require_all("remove a catalogue of offers")
        with self._write() as db:
            gone = db.execute(delete(market_catalogs).where(market_catalogs.c.name == name))
            if not gone.rowcount:
                raise NotFound(
                    f"there is no catalogue '{name}' that was added",
                    hint="calotype marketplace catalog list shows them",
                )
            append(db, act)

    # -- what was pulled

    def require_puller(self) -> None:
        """Refuse whoever may make nothing in its group: what is pulled takes room.

        Raises:
            Forbidden: the caller is no Contributor there.
        """
        with self._read() as db:
            here, what = self._access.caller.scope, "pulling images of the marketplace"
            self._access.require_in(db, Role.CONTRIBUTOR, here, what)

    def pulled(self, prefix: str) -> list[str]:
        """The names of the images pulled from the marketplace that begin so."""
        query = select(images.c.name).where(
            images.c.shelf == Shelf.MARKETPLACE.value,
            images.c.subscription == INSTALLATION,
            images.c.resource_group == Shelf.MARKETPLACE.value,
            images.c.name.startswith(prefix, autoescape=True),
        )
        with self._read() as db:
            return list(db.scalars(query.order_by(images.c.name)))

    def eula(self, plan: PurchasePlan) -> str | None:
        """The licence of an image that has a plan; "" where none names one, ``None``: no image has the plan.

        Of the images that the caller may use, that is the newest that was pulled for the whole installation,
        else the first that there was: whoever names the plan of others later does not change their terms.
        """
        like = [images.c.plan[key].as_string() == text for key, text in rows.plan_row(plan).items()]
        pulled = images.c.subscription == INSTALLATION
        query = (
            select(images)
            .where(images.c.plan.is_not(None), *like)
            .order_by(images.c.eula.is_(None), pulled.desc())
            .order_by(case((pulled, images.c.created_at)).desc(), images.c.created_at, images.c.id)
        )
        with self._read() as db:
            for row in db.execute(query).mappings():
                image = dict(row)
                if self._access.may(db, Role.READER, images, image) or _is_public(db, image):
                    return image["eula"] or ""
        return None

    # -- terms

    def acceptance(self, plan: PurchasePlan) -> Acceptance | None:
        """What the caller's subscription accepted of a plan."""
        with self._read() as db:
            row = db.execute(select(terms).where(*self._mine(plan))).mappings().first()
        if row is None:
            return None
        values = {key: row[key] for key in ("subscription", "digest", "text", "principal")}
        return Acceptance(**values, plan=plan, accepted_at=row["accepted_at"])

    def accept(self, acceptance: Acceptance, act: Act) -> None:
        """Write down that terms were accepted for a subscription, instead of any before.

        Raises:
            Forbidden: the caller may not make resources in all of it.
        """
        row = {
            "subscription": acceptance.subscription,
            **rows.plan_row(acceptance.plan),
            "digest": acceptance.digest,
            "text": acceptance.text,
            "principal": acceptance.principal,
            "accepted_at": acceptance.accepted_at,
        }
        with self._write() as db:
            self._require(db, acceptance.subscription, "accept terms")
            there = terms.c.subscription == acceptance.subscription
            db.execute(delete(terms).where(there, *_of(acceptance.plan)))
            db.execute(insert(terms), row)
            append(db, act)

    def cancel(self, plan: PurchasePlan, act: Act) -> None:
        """Take an acceptance back; VMs that there are go on.

        Raises:
            NotFound: the terms were not accepted.
            Forbidden: the caller may not make resources in all of the subscription.
        """
        with self._write() as db:
            self._require(db, self._access.caller.scope.subscription, "take back terms")
            if not db.execute(delete(terms).where(*self._mine(plan))).rowcount:
                raise NotFound(
                    f"this subscription has not accepted the terms of plan '{plan}'",
                    hint=f"calotype marketplace terms show {plan} says whether it has",
                )
            append(db, act)

    # -- entitlements

    def entitlement(self, name: str) -> Entitlement | None:
        """The caller's subscription's entitlement of that name, expired or not."""
        mine = entitlements.c.subscription == self._access.caller.scope.subscription
        query = select(entitlements).where(mine, entitlements.c.name == name)
        with self._read() as db:
            row = db.execute(query).mappings().first()
        return None if row is None else Entitlement(**dict(row))

    def entitlements(self, subscription: str | None = None) -> list[Entitlement]:
        """All entitlements, or one subscription's; others see those of their own subscription alone."""
        query = select(entitlements).order_by(entitlements.c.subscription, entitlements.c.name)
        if not self._access.unlimited:
            subscription = self._access.caller.scope.subscription
        if subscription is not None:
            query = query.where(entitlements.c.subscription == subscription)
        with self._read() as db:
            if subscription is not None and not self._access.belongs(db, subscription):
                return []
            return [Entitlement(**dict(row)) for row in db.execute(query).mappings()]

    def grant(self, entitlement: Entitlement, act: Act) -> None:
        """Entitle a subscription, instead of what it was granted before under that name.

        Raises:
            NotFound: there is no such subscription.
            Forbidden: the caller is not the installation's owner.
        """
        self._access.require_all("grant entitlements")
        row = {name: getattr(entitlement, name) for name in entitlements.c.keys()}  # noqa: SIM118 (a column set)
        with self._write() as db:
            known = subscriptions.c.id == entitlement.subscription
            if db.scalar(select(subscriptions.c.id).where(known)) is None:
                raise NotFound(
                    f"there is no subscription '{entitlement.subscription}'",
                    hint="calotype subscription list shows them",
                )
            db.execute(
                delete(entitlements).where(*_held(entitlement.subscription, entitlement.name))
            )
            db.execute(insert(entitlements), row)
            append(db, act)

    def revoke(self, subscription: str, name: str, act: Act) -> None:
        """Take an entitlement back; VMs that there are go on.

        Raises:
            NotFound: the subscription has no such entitlement.
            Forbidden: the caller is not the installation's owner.
        """
        self._access.require_all("revoke entitlements")
        with self._write() as db:
            if not db.execute(delete(entitlements).where(*_held(subscription, name))).rowcount:
                raise NotFound(
                    f"the subscription has no entitlement '{name}'",
                    hint="calotype subscription entitlement list shows them",
                )
            append(db, act)

    # -- inside a transaction

    def _mine(self, plan: PurchasePlan) -> list[Any]:
        """The condition of being the acceptance of a plan for the caller's subscription."""
        return [terms.c.subscription == self._access.caller.scope.subscription, *_of(plan)]

    def _require(self, db: Connection, subscription: str, what: str) -> None:
        """Refuse whoever has a role in a part of the subscription only: terms bind all of it."""
        caller = self._access.caller
        whole = {"subscription": subscription, "resource_group": None}
        if not self._access.has(db, Role.CONTRIBUTOR, whole):
            raise Forbidden(
                f"'{caller.principal}' may not {what}: they bind the whole subscription",
                hint=f"an owner of it can: calotype role assign {caller.principal} Contributor "
                f"--subscription {subscription}",
            )


def _of(plan: PurchasePlan) -> list[Any]:
    """The condition of being about a plan."""
    return [terms.c[name] == value for name, value in rows.plan_row(plan).items()]


def _is_public(db: Connection, image: rows.Row) -> bool:
    """Whether an image is a version in a gallery that everybody may use."""
    query = (
        select(versions.c.image_id)
        .join(definitions, versions.c.definition_id == definitions.c.id)
        .join(galleries, definitions.c.gallery_id == galleries.c.id)
        .where(versions.c.image_id == image["id"], galleries.c.sharing == Sharing.COMMUNITY.value)
    )
    return db.scalar(query) is not None


def _held(subscription: str, name: str) -> tuple[Any, ...]:
    return entitlements.c.subscription == subscription, entitlements.c.name == name


def _to_catalog(row: rows.Row) -> MarketCatalog:
    return MarketCatalog(**{**row, "allow_addresses": tuple(row["allow_addresses"])})
