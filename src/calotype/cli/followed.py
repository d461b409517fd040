"""``calotype community`` between installations: a public tree written and served; others followed, pulled."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from calotype.cli.arguments import Repeat
from calotype.cli.common import Common, session
from calotype.cli.image import summary
from calotype.cli.output import Columns, emit, for_people, plain
from calotype.cli.text import say, visible
from calotype.cli.text import size as show_size
from calotype.engine import references
from calotype.engine.community import followed as engine
from calotype.engine.community import public_tree
from calotype.engine.community.followed import Followed
from calotype.engine.community.public_tree import Refreshed
from calotype.engine.community.publisher import Publisher
from calotype.engine.community.serve import TreeServer
from calotype.errors import InvalidInput
from calotype.public.metadata import Lifetimes

COLUMNS: Columns = {
    "Name": lambda r: r["name"],
    "Galleries": lambda r: len(r["galleries"]),
    "Seen": lambda r: (r["updatedAt"] or "never")[:19],
    "Ends": lambda r: (r["expiresAt"] or "")[:19],
    "Mirrors": lambda r: " ".join(r["mirrors"]),
}

#: How many root keys there are, or must sign.
_Keys = Annotated[int, Parameter(validator=Number(gte=1, lte=16))]


def export(
    target: str,
    *,
    refresh: Annotated[bool, Parameter(negative="")] = False,
    root_keys: _Keys = 1,
    threshold: _Keys = 1,
    list_days: Annotated[int, Parameter(validator=Number(gte=1, lte=3650))] = 30,
    timestamp_hours: Annotated[int, Parameter(validator=Number(gte=1, lte=87600))] = 48,
    grace_days: Annotated[int, Parameter(validator=Number(gte=0, lte=3650))] = 7,
    common: Common | None = None,
) -> None:
    """Write the public galleries as signed static files that any web server or bucket can hold.

    Others follow them with calotype community add URL --fingerprint FINGERPRINT. Only what is new is read and
    written. Let a timer call it with --refresh: what is not renewed is not believed any more.

    Parameters
    ----------
    target
        A directory, s3://BUCKET/PREFIX, az://ACCOUNT/CONTAINER/PREFIX, or a name under [stores].
    refresh
        Renew the timestamp alone.
    root_keys
        How many root keys are made, the first time.
    threshold
        How many of them must sign a change of keys.
    list_days
        How long the lists are believed.
    timestamp_hours
        How long the newest state is believed to be the newest.
    grace_days
        How long what is not needed any more stays for those who are reading.
    """
    if not target:  # else it would be the current directory
        raise InvalidInput(
            "to which directory or bucket?",
            hint="such as /srv/www/images, or s3://BUCKET/PREFIX",
        )
    lists = timedelta(days=list_days)
    lifetimes = Lifetimes(targets=lists, snapshot=lists, timestamp=timedelta(hours=timestamp_hours))
    with session(common) as context:
        if refresh:
            renewed = public_tree.refresh(context, target, lifetimes=lifetimes)
            _emit_renewed(common, renewed)
            return
        done = public_tree.export(
            context,
            target,
            lifetimes=lifetimes,
            grace=timedelta(days=grace_days),
            root_keys=root_keys,
            threshold=threshold,
        )
        if not for_people(common):
            emit(common, done)
            return
        shown = {
            "target": done.target,
            "fingerprint": done.fingerprint,
            "galleries": done.galleries,
            "versions": done.versions,
            "read": show_size(done.read),
            "stored": show_size(done.stored),
            "removed": f"{done.removed} objects" if done.removed else None,
            "renew before": plain(done.expires_at)[:16],
        }
        emit(common, shown)
        for warning in done.warnings:
            say("warning", warning)


def rotate(
    *roles: Literal["root", "targets", "snapshot", "timestamp"],
    root_keys: _Keys | None = None,
    threshold: _Keys | None = None,
    root_key: Annotated[tuple[Path, ...], Repeat] = (),
    common: Common | None = None,
) -> None:
    """Sign a new root: with new keys for roles whose keys were lost or stolen, or only for another year.

    Then export again: with that, whatever the old keys sign is refused by all who follow.

    Parameters
    ----------
    roles
        Whose keys are made anew; none: the root is renewed as it is.
    root_keys
        How many root keys there are from now on.
    threshold
        How many of them must sign.
    root_key
        A private root key that is kept elsewhere.
    """
    with session(common) as context:
        context.require_all("change the keys of the public galleries")
        done = Publisher(context.home).rotate(
            roles, root_keys=root_keys, threshold=threshold, extra=root_key
        )
        emit(common, done)
        if for_people(common):
            print("calotype community export shows the new root to those who follow")


def serve(
    directory: Path,
    *,
    bind: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8640,
    common: Common | None = None,
) -> None:
    """Serve an exported tree over HTTP, for those without a web server. Ctrl-C ends it.

    Everything in it is signed, so plain HTTP lets nobody change it; it does let others see what is read.

    Parameters
    ----------
    directory
        Where calotype community export wrote it.
    bind
        The address to listen at; 0.0.0.0 or :: for all.
    port
        The port; 0: any free one.
    """
    if not bind:  # else it would be all of them
        raise InvalidInput("at which address?", hint="127.0.0.1, or 0.0.0.0 for all")
    quiet = (common or Common()).quiet

    def told(line: str) -> None:
        if not quiet:
            print(visible(line), file=sys.stderr)

    with TreeServer(directory, bind, port, told) as server:
        print(f"serving {directory} at {server.url}", flush=True)
        server.serve_forever()


def add(
    url: str,
    *,
    mirror: Annotated[tuple[str, ...], Repeat] = (),
    name: str | None = None,
    fingerprint: str | None = None,
    allow_address: Annotated[tuple[str, ...], Repeat] = (),
    common: Common | None = None,
) -> None:
    """Follow the public galleries of another installation.

    Its root is trusted from then on. Without --fingerprint it is the root that is there at this moment:
    compare the printed fingerprint with what the publisher says over another way.

    Parameters
    ----------
    url
        Where the publisher's tree is.
    mirror
        Another place that has the same tree.
    name
        What to call it here; else its host's name.
    fingerprint
        What the publisher's export prints; another root is refused.
    allow_address
        A network (CIDR) that may be reached although it is not public.
    """
    with session(common) as context:
        done = engine.add(
            context,
            url,
            mirrors=mirror,
            name=name,
            fingerprint=fingerprint,
            allow=allow_address,
        )
        _emit_followed(common, done)
        if fingerprint is None and for_people(common):
            print(f"trusted on first use: ask the publisher whether {done.fingerprint} is right")


def update(
    name: str | None = None,
    *,
    mirror: Annotated[tuple[str, ...], Repeat] = (),
    common: Common | None = None,
) -> None:
    """Ask followed installations (all, without a name) what they show now.

    Parameters
    ----------
    name
        The installation, as it is called here.
    mirror
        From now on its tree is at these places, and no others.
    """
    with session(common) as context:
        if name is None and mirror:
            raise InvalidInput("whose mirrors are these?", hint="name the installation")
        known = [name] if name is not None else [c.name for c in engine.followed(context)]
        done = [engine.update(context, each, mirrors=mirror or None) for each in known]
        emit(common, done, COLUMNS)
        for each in done:
            for warning in (*each.warnings, *each.refused.values()):
                say("warning", warning)


def remove(name: str, *, common: Common | None = None) -> None:
    """Follow an installation no longer; images that were pulled stay.

    Parameters
    ----------
    name
        The installation, as it is called here.
    """
    with session(common) as context:
        engine.remove(context, name)


def followed(*, common: Common | None = None) -> None:
    """List the followed installations, as they were seen last."""
    with session(common) as context:
        emit(common, engine.followed(context), COLUMNS)


def pull(reference: str, *, common: Common | None = None) -> None:
    """Bring an image of a followed gallery here: only the chunks that are missing, from several mirrors.

    What was interrupted goes on where it was.

    Parameters
    ----------
    reference
        community/PUBLIC_NAME/DEFINITION[/VERSION]; without a version, the latest.
    """
    wanted = references.public_image(reference)
    with session(common) as context:
        done = engine.bring(context, *wanted)
        if not for_people(common):
            emit(common, done)
            return
        emit(common, summary(done.image))
        if done.existed:
            print("it is here already: nothing was done")
            return
        print(f"moved {show_size(done.moved)}; {show_size(done.known)} of its data were here")
        if done.resumed:
            print(f"{show_size(done.resumed)} came with an earlier attempt")
        for use in done.mirrors:
            state = f" (dropped: {use.problem})" if use.problem else ""
            print(visible(f"  {use.name}: {show_size(use.bytes)}{state}"))


def _emit_followed(common: Common | None, done: Followed) -> None:
    shown: Any = done
    if for_people(common):
        shown = {
            "name": done.name,
            "fingerprint": done.fingerprint,
            "galleries": "\n".join(done.galleries),
            "ends": (plain(done.expires_at) or "")[:16],
        }
    emit(common, shown)
    for warning in (*done.warnings, *done.refused.values()):
        say("warning", warning)


def _emit_renewed(common: Common | None, renewed: Refreshed) -> None:
    if not for_people(common):
        emit(common, renewed)
        return
    emit(common, {"target": renewed.target, "renew before": plain(renewed.expires_at)[:16]})
    for warning in renewed.warnings:
        say("warning", warning)
