"""Terms and entitlements: whether a subscription may use an image.

Both bind a subscription, are asked for before any file of a VM is made, and follow an image to whatever
descends from it.
"""

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from calotype.catalog import Act
from calotype.catalog.audit import current_actor
from calotype.engine.context import Context
from calotype.errors import InvalidInput, NotFound, PurchaseRefused
from calotype.market.urn import NAME
from calotype.model import Acceptance, Entitlement, Image, PurchasePlan
from calotype.units import one_line

if TYPE_CHECKING:
    from calotype.engine.marketplace.offers import Offers


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What must be accepted before the first VM, and what of it was."""

    plan: PurchasePlan
    text: str
    digest: str  # SHA-256 (hex) of the text
    acceptance: Acceptance | None = None  # of this text or of an older one

    @property
    def accepted(self) -> bool:
        """Whether this text was accepted."""
        return self.acceptance is not None and self.acceptance.digest == self.digest


def require(context: Context, image: Image) -> None:
    """Refuse an image that the caller's subscription may not use.

    Raises:
        PurchaseRefused: its terms were not accepted, or the subscription is not entitled to it.
    """
    require_entitlement(context, image.entitlement, f"image '{image.name}'")
    if image.plan is not None:
        _require_accepted(context, image, image.plan)


def require_entitlement(context: Context, name: str | None, what: str) -> None:
    """Refuse what is for entitled subscriptions only; ``what`` names it in the message.

    Raises:
        PurchaseRefused: the caller's subscription has not that entitlement, or has it no longer.
    """
    if name is None:
        return
    held = context.catalog.marketplace.entitlement(name)
    subscription = context.scope.subscription
    cure = f"calotype subscription entitlement grant {name} --subscription {subscription}"
    if held is None:
        raise PurchaseRefused(
            f"{what} is for subscriptions entitled to '{name}', and {subscription} is not",
            hint=f"the installation's owner can grant it: {cure}",
        )
    if held.expires_at is not None and held.expires_at <= datetime.now(UTC):
        raise PurchaseRefused(
            f"{what} is for subscriptions entitled to '{name}', and the entitlement of {subscription} "
            f"expired on {held.expires_at:%Y-%m-%d}",
            hint=f"the installation's owner can renew it: {cure} --expires YYYY-MM-DD",
        )


def _require_accepted(context: Context, image: Image, plan: PurchasePlan) -> None:
    accepted = context.catalog.marketplace.acceptance(plan)
    cure = f"read them: calotype marketplace terms show {plan}; then the same with accept"
    if accepted is None:
        raise PurchaseRefused(
            f"the terms of plan '{plan}' were not accepted for this subscription; image "
            f"'{image.name}' is to be had only after that",
            hint=cure,
        )
    text = _text(context, _offers(context, ask=False), plan)
    if text is not None and accepted.digest != digest(text):
        raise PurchaseRefused(
            f"the terms of plan '{plan}' were changed since {accepted.principal} accepted them on "
            f"{accepted.accepted_at:%Y-%m-%d}; image '{image.name}' is to be had only after they are again",
            hint=cure,
        )


# -- terms


def terms(context: Context, text: str) -> Terms:
    """The terms of an offer (a urn or an alias), or of a plan (``PUBLISHER:PRODUCT:PLAN``).

    Raises:
        NotFound: there is no such offer or plan, or the offer needs no acceptance.
    """
    known = _offers(context)
    plan = _plan(context, known, text)
    shown = _text(context, known, plan) or f"Plan {plan}: no text is known."
    acceptance = context.catalog.marketplace.acceptance(plan)
    return Terms(plan=plan, text=shown, digest=digest(shown), acceptance=acceptance)


def accept(context: Context, text: str) -> Terms:
    """Accept terms for the caller's subscription; again is no error.

    Raises:
        NotFound: as of :func:`terms`; Forbidden: the caller may not bind the subscription.
    """
    found = terms(context, text)
    if found.accepted:
        return found
    acceptance = Acceptance(
        subscription=context.scope.subscription,
        plan=found.plan,
        digest=found.digest,
        text=found.text,
        principal=current_actor(context.caller.principal),
        accepted_at=datetime.now(UTC),
    )
    detail = {"subscription": acceptance.subscription, "sha256": found.digest}
    act = Act("marketplace.terms.accept", f"plan {found.plan}", detail)
    context.catalog.marketplace.accept(acceptance, act)
    return replace(found, acceptance=acceptance)


def cancel(context: Context, text: str) -> Terms:
    """Take an acceptance back; VMs that there are go on.

    Raises:
        NotFound: nothing was accepted; Forbidden: the caller may not bind the subscription.
    """
    found = terms(context, text)
    detail = {"subscription": context.scope.subscription}
    act = Act("marketplace.terms.cancel", f"plan {found.plan}", detail)
    context.catalog.marketplace.cancel(found.plan, act)
    return replace(found, acceptance=None)


def digest(text: str) -> str:
    """SHA-256 (hex) of a text of terms."""
    return hashlib.sha256(text.encode()).hexdigest()


def _offers(context: Context, *, ask: bool = True) -> "Offers":
    from calotype.engine.marketplace import offers  # noqa: PLC0415 (loads much; few images have a plan)

    return offers.load(context, ask=ask)


def _plan(context: Context, known: "Offers", text: str) -> PurchasePlan:
    urn = known.urn(text)
    named = PurchasePlan(urn.publisher, urn.offer, urn.sku)
    if any(offer.purchase_plan == named for offer in known.catalogue):
        return named
    if context.catalog.marketplace.eula(named) is not None:
        return named
    found = known.find(urn)
    if found.purchase_plan is None:
        raise NotFound(f"{urn.base} has no terms: everybody may make VMs of it")
    return found.purchase_plan


def _text(context: Context, known: "Offers", plan: PurchasePlan) -> str | None:
    """The terms of a plan today: its catalogue's, else those of an image that has it; ``None``: unknown."""
    for offer in known.catalogue:
        if offer.plan is not None and offer.purchase_plan == plan:
            return offer.plan.terms
    return context.catalog.marketplace.eula(plan) or None


# -- entitlements


def grant(context: Context, name: str, expires_at: datetime | None = None) -> Entitlement:
    """Entitle the caller's subscription, instead of what it was granted under that name before.

    Raises:
        InvalidInput: the name or the time cannot be; Forbidden: the caller is not the installation's owner.
    """
    if NAME.fullmatch(name) is None:
        raise InvalidInput(
            f"'{one_line(name, 80)}' cannot name an entitlement",
            hint="lower-case letters, digits, '.', '_' and '-', such as msdn",
        )
    now = datetime.now(UTC)
    if expires_at is not None and expires_at <= now:
        raise InvalidInput(f"{expires_at:%Y-%m-%d} is past", hint="choose a day that is to come")
    entitlement = Entitlement(
        subscription=context.scope.subscription,
        name=name,
        expires_at=expires_at,
        granted_by=current_actor(context.caller.principal),
        granted_at=now,
    )
    until = expires_at.isoformat() if expires_at is not None else None
    act = Act("entitlement.grant", _held(entitlement.subscription, name), {"expires": until})
    context.catalog.marketplace.grant(entitlement, act)
    return entitlement


def revoke(context: Context, name: str) -> None:
    """Take an entitlement of the caller's subscription back; VMs that there are go on.

    Raises:
        NotFound: it has none; Forbidden: the caller is not the installation's owner.
    """
    subscription = context.scope.subscription
    act = Act("entitlement.revoke", _held(subscription, name))
    context.catalog.marketplace.revoke(subscription, name, act)


def _held(subscription: str, name: str) -> str:
    return f"entitlement {name} of subscription {subscription}"
