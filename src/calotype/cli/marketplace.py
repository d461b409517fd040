"""``calotype marketplace``: publishers' images, by name."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from calotype.cli import GROUPS
from calotype.cli.arguments import Repeat
from calotype.cli.common import Common, session
from calotype.cli.image import summary
from calotype.cli.output import Columns, emit, for_people, plain
from calotype.cli.text import size as show_size
from calotype.engine.marketplace import marketplace, offers, purchase
from calotype.engine.marketplace.purchase import Terms
from calotype.errors import InvalidInput

app = App(name="marketplace", help=GROUPS["marketplace"])
catalog = App(name="catalog", help="Catalogues of offers, beside the one that ships.")
terms = App(name="terms", help="Terms of offers: read, accept, take back, for a subscription.")
app.command(catalog)
app.command(terms)


def _needs(offer: dict[str, Any]) -> str:
    """What must be there before the first VM."""
    needs = [] if offer["plan"] is None else ["terms"]
    if offer["entitlement"] is not None:
        needs.append(f"entitlement {offer['entitlement']}")
    return ", ".join(needs)


OFFERS: Columns = {
    "Urn": lambda o: o["urn"],
    "Title": lambda o: o["title"],
    "Arch": lambda o: o["architecture"],
    "Known by": lambda o: o["verified"],
    "Pulled": lambda o: ", ".join(o["pulled"][:3]),
    "Needs": _needs,
}
VERSIONS: Columns = {
    "Urn": lambda v: v["urn"],
    "Publisher's": lambda v: v["label"] or "(no longer published)",
    "Size": lambda v: show_size(v["size"]),
    "Signed by": lambda v: v["signedBy"],
    "Latest": lambda v: "never" if v["excluded"] else "",
    "Pulled": lambda v: "yes" if v["pulled"] else "",
}
CATALOGS: Columns = {
    "Name": lambda c: c["name"],
    "Kind": lambda c: c["kind"],
    "Publisher": lambda c: c["publisher"],
    "Signed": lambda c: "yes" if c["keyring"] else "no",
    "Location": lambda c: c["location"],
    "Added": lambda c: c["addedAt"][:10],
}
UPDATED: Columns = {
    "Name": lambda u: u["name"],
    "Offers": lambda u: u["offers"],
    "Problem": lambda u: u["error"],
}


@app.command(name="list")
def list_(
    *,
    publisher: str | None = None,
    offer: str | None = None,
    sku: str | None = None,
    all: Annotated[bool, Parameter(negative="")] = False,  # noqa: A002 (az's name for it)
    common: Common | None = None,
) -> None:
    """List the offers of all catalogues.

    Parameters
    ----------
    publisher
        Of this publisher alone.
    offer
        Of this offer alone.
    sku
        Of this SKU alone.
    all
        Every version of each, asked of the publishers.
    """
    with session(common) as context:
        found = marketplace.search(context, publisher=publisher, offer=offer, sku=sku)
        if all:
            emit(common, marketplace.versions(context, found), VERSIONS)
        else:
            emit(common, found, OFFERS)


@app.command
def search(*words: str, common: Common | None = None) -> None:
    """Find offers by words in their names and descriptions.

    Parameters
    ----------
    words
        All of them must occur.
    """
    with session(common) as context:
        emit(common, marketplace.search(context, words), OFFERS)


@app.command
def show(urn: str, *, common: Common | None = None) -> None:
    """Show an offer: its versions, who signed them, its terms, what is pulled.

    Parameters
    ----------
    urn
        PUBLISHER:OFFER:SKU, or an alias.
    """
    with session(common) as context:
        found = marketplace.show(context, urn)
        if not for_people(common):
            emit(common, found)
            return
        offer = plain(found.offer)
        words = {None: None, True: "accepted", False: "not accepted yet"}[found.accepted]
        pulled = ", ".join(found.offer.pulled)
        emit(common, {**offer, "pulled": pulled, "terms": words})
        print()
        emit(common, found.versions, VERSIONS)


@app.command
def pull(
    *urns: str,
    force: Annotated[bool, Parameter(negative="")] = False,
    common: Common | None = None,
) -> None:
    """Make images of offers, for the whole installation; what is here already is not fetched again.

    Interrupted, the same command goes on where it was.

    Parameters
    ----------
    urns
        PUBLISHER:OFFER:SKU[:VERSION], or aliases; without a version the latest.
    force
        Take them although their disks contradict the OS state that the publisher declares (recorded).
    """
    if not urns:
        raise InvalidInput("nothing to pull", hint="calotype marketplace pull URN...")
    with session(common) as context:
        known = offers.load(context)
        wanted = [known.urn(urn) for urn in urns]
        for urn in wanted:
            known.find(urn)  # before anything is fetched
        pulled = [marketplace.pull(context, urn, force=force, known=known) for urn in wanted]
        if for_people(common):
            for item in pulled:
                emit(common, summary(item.image) | {"existed": item.existed or None})
        else:
            emit(common, [item.image for item in pulled])


@app.command
def aliases(*, common: Common | None = None) -> None:
    """List short names, and what they stand for."""
    with session(common) as context:
        known = offers.load(context).catalogue.aliases
        emit(common, [{"alias": a, "urn": str(urn)} for a, urn in sorted(known.items())])


# -- catalogues


@catalog.command(name="add")
def catalog_add(
    name: str,
    location: str,
    *,
    kind: Literal["offers", "simplestreams"] = "offers",
    publisher: str | None = None,
    keyring: Path | None = None,
    allow_address: Annotated[tuple[str, ...], Repeat] = (),
    common: Common | None = None,
) -> None:
    """Add a catalogue; only the installation's owner can.

    Parameters
    ----------
    name
        What it is to be called here.
    location
        Its URL, or a file; of simplestreams the index: https://…/streams/v1/index.json (or .sjson).
    kind
        How it is written: a TOML file of offers, or a simplestreams index (as Ubuntu's and Incus's).
    publisher
        Of simplestreams: under which publisher its products stand.
    keyring
        OpenPGP keys (armored); one of them must have signed it (clearsigned, or with a .asc beside a file of
        offers, a .gpg beside an index.json).
    allow_address
        A network (CIDR) that it and its images may be fetched from although it is not public.
    """
    with session(common) as context:
        record = offers.record(
            name,
            location,
            kind,
            publisher=publisher,
            keyring=keyring,
            allow_addresses=allow_address,
        )
        added = offers.add(context, record)
        emit(common, {"name": name, "offers": len(added), "publishers": sorted(added.publishers)})


@catalog.command(name="list")
def catalog_list(*, common: Common | None = None) -> None:
    """List the catalogues that were added."""
    with session(common) as context:
        emit(common, context.catalog.marketplace.catalogs(), CATALOGS)


@catalog.command(name="remove")
def catalog_remove(name: str, *, common: Common | None = None) -> None:
    """Forget a catalogue; images that were pulled stay.

    Parameters
    ----------
    name
        The catalogue.
    """
    with session(common) as context:
        offers.remove(context, name)


@catalog.command(name="update")
def catalog_update(*, common: Common | None = None) -> int:
    """Ask for every catalogue again, and ask publishers anew when they are next needed.

    Ends with status 1 when one of them could not be had: it is used as it was.
    """
    with session(common) as context:
        updated = offers.update(context)
        emit(common, updated, UPDATED)
        return int(any(item.error for item in updated))


# -- terms


@terms.command(name="show")
def terms_show(urn: str, *, common: Common | None = None) -> None:
    """Print the terms of an offer, and whether this subscription accepted them.

    Parameters
    ----------
    urn
        PUBLISHER:OFFER:SKU, an alias, or a plan (PUBLISHER:PRODUCT:PLAN).
    """
    with session(common) as context:
        found = purchase.terms(context, urn)
        if not for_people(common):
            emit(common, _terms(found))
            return
        emit(common, found.text)
        print()
        emit(common, {key: value for key, value in _terms(found).items() if key != "text"})


@terms.command(name="accept")
def terms_accept(urn: str, *, common: Common | None = None) -> None:
    """Accept the terms of an offer for this subscription: who, when and which text is recorded.

    Parameters
    ----------
    urn
        PUBLISHER:OFFER:SKU, an alias, or a plan (PUBLISHER:PRODUCT:PLAN).
    """
    with session(common) as context:
        _emit_terms(common, purchase.accept(context, urn))


@terms.command(name="cancel")
def terms_cancel(urn: str, *, common: Common | None = None) -> None:
    """Take an acceptance back; VMs that there are go on.

    Parameters
    ----------
    urn
        PUBLISHER:OFFER:SKU, an alias, or a plan (PUBLISHER:PRODUCT:PLAN).
    """
    with session(common) as context:
        _emit_terms(common, purchase.cancel(context, urn))


def _emit_terms(common: Common | None, found: Terms) -> None:
    shown = _terms(found)
    if for_people(common):
        shown.pop("text")
    emit(common, shown)


def _terms(found: Terms) -> dict[str, Any]:
    plan, acceptance = found.plan, found.acceptance
    return {
        "plan": str(plan),
        "sha256": found.digest,
        "accepted": found.accepted,
        "acceptedBy": acceptance.principal if acceptance is not None else None,
        "acceptedAt": plain(acceptance.accepted_at) if acceptance is not None else None,
        "subscription": acceptance.subscription if acceptance is not None else None,
        "text": found.text,
    }
