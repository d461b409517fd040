"""Subscriptions and their quotas; and whom a command works for."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from calotype.catalog import Act
from calotype.engine import names
from calotype.engine.context import Context
from calotype.errors import InvalidInput
from calotype.model import (
    DEFAULT_GROUP,
    DEFAULT_SUBSCRIPTION,
    INSTALLATION,
    Caller,
    Quota,
    QuotaKind,
    Scope,
    Subscription,
)

_GROUP = re.compile(r"[A-Za-z0-9_()-]([A-Za-z0-9_().-]{0,88}[A-Za-z0-9_()-])?")
_MOST = 1 << 62  # what a counter holds without an end


@dataclass(frozen=True, slots=True)
class SubscriptionView:
    """A subscription, what it has and may have."""

    subscription: Subscription
    quotas: tuple[Quota, ...]


def caller(
    context: Context, principal: str | None, subscription: str | None, group: str | None
) -> Caller:
    """Whom a command works for, and where; ``subscription`` by name or id, the default ones for ``None``.

    Raises:
        InvalidInput: no principal or group can be called so.
        NotFound: there is no such subscription, or the principal has no role in it.
    """
    if principal is not None:
        names.principal(principal)
    if group is not None and not _GROUP.fullmatch(group):
        raise InvalidInput(
            f"'{group}' cannot name a resource group",
            hint="1 to 90 letters, digits, '.', '_', '-' and brackets, with no '.' at the end",
        )
    where = DEFAULT_SUBSCRIPTION
    if subscription is not None:
        where = context.catalog.of(Caller(principal)).subscriptions.get(subscription).id
    return Caller(principal, Scope(where, group or DEFAULT_GROUP))


def create(context: Context, name: str) -> Subscription:
    """Make a subscription.

    Raises:
        Conflict: the name is taken.
        Forbidden: the caller is not the installation's owner.
    """
    names.resource(name, "a subscription")
    if name.lower() == INSTALLATION or _is_id(name):
        raise InvalidInput(f"'{name}' cannot name a subscription: it would be taken for another")
    made = Subscription(id=names.new_id(), name=name, created_at=datetime.now(UTC))
    act = Act("subscription.create", f"subscription {name}", {"id": made.id})
    context.catalog.subscriptions.add(made, act)
    return made


def list_all(context: Context) -> list[Subscription]:
    """The subscriptions that the caller has a role in."""
    return context.catalog.subscriptions.list()


def show(context: Context, name: str | None = None) -> SubscriptionView:
    """A subscription (the one that the command works in), what it has and may have.

    Raises:
        NotFound: there is none, or the caller has no role in it.
    """
    found = _find(context, name)
    return SubscriptionView(found, tuple(context.catalog.subscriptions.quotas(found.id)))


def delete(context: Context, name: str) -> None:
    """Delete an empty subscription.

    Raises:
        NotFound: there is none.
        Conflict: there is something in it.
        NotAllowed: it is the default one.
        Forbidden: the caller is not the installation's owner.
    """
    found = _find(context, name)
    act = Act("subscription.delete", f"subscription {found.name}", {"id": found.id})
    context.catalog.subscriptions.delete(found.id, act)


def set_quota(context: Context, kind: QuotaKind, most: int | None) -> list[Quota]:
    """Say how much the subscription may have of a kind (``None``: as much as it likes).

    Raises:
        InvalidInput: ``most`` is no amount.
        Forbidden: the caller is not the installation's owner.
    """
    if most is not None and not 0 <= most <= _MOST:
        raise InvalidInput(f"{most} is no quota", hint="0 or more, or none for no limit")
    found = _find(context, None)
    detail = {"kind": kind.value, "most": most}
    act = Act("subscription.quota", f"subscription {found.name}", detail)
    context.catalog.subscriptions.set_quota(found.id, kind, most, act)
    return list(context.catalog.subscriptions.quotas(found.id))


def _find(context: Context, name: str | None) -> Subscription:
    return context.catalog.subscriptions.get(name or context.scope.subscription)


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
