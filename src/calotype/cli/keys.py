"""``calotype keys``: the key that signs evidence reports here, and the keys that are believed."""

from pathlib import Path

from cyclopts import App

from calotype.catalog import Act
from calotype.cli import GROUPS
from calotype.cli.common import Common, session
from calotype.cli.output import Columns, emit, for_people
from calotype.engine.context import Context
from calotype.engine.proof.signing import Keys, read_key

app = App(name="keys", help=GROUPS["keys"])

COLUMNS: Columns = {"Key": lambda k: k["id"], "Whose": lambda k: k["whose"]}


@app.command
def show(*, common: Common | None = None) -> None:
    """Print this installation's public key, for those who check its reports."""
    with session(common) as context:
        key = _keys(context).own()
        if for_people(common):
            print(f"key {key.id}")
            print(key.pem, end="")
        else:
            emit(common, key)


@app.command(name="list")
def list_(*, common: Common | None = None) -> None:
    """List the keys whose reports are believed here."""
    with session(common) as context:
        keys = _keys(context)
        own = keys.own().id
        rows = [
            {
                "id": key.id,
                "whose": "this installation's" if key.id == own else "trusted",
                "pem": key.pem,
            }
            for key in keys.known()
        ]
        emit(common, rows, COLUMNS)


@app.command
def trust(file: Path, *, common: Common | None = None) -> None:
    """Believe what another installation signs.

    Parameters
    ----------
    file
        Its public key in PEM, as `calotype keys show` prints it there.
    """
    key = read_key(file)
    with session(common) as context:
        keys = _keys(context)
        context.catalog.audit.append(Act("keys.trust", f"key {key.id}"))
        keys.trust(key)
        emit(common, key.id)


@app.command
def forget(key_id: str, *, common: Common | None = None) -> None:
    """Believe a key no longer.

    Parameters
    ----------
    key_id
        Its id, as calotype keys list shows it.
    """
    with session(common) as context:
        _keys(context).forget(key_id)
        context.catalog.audit.append(Act("keys.forget", f"key {key_id}"))


@app.command
def rotate(*, common: Common | None = None) -> None:
    """Make a new key; the old private key is destroyed, and what it signed is still believed here.

    Give the new public key to those who check your reports elsewhere.
    """
    with session(common) as context:
        keys = _keys(context)
        context.catalog.audit.append(Act("keys.rotate", f"key {keys.own().id}"))
        emit(common, keys.rotate().id)


def _keys(context: Context) -> Keys:
    """The installation's keys, for its owner: who is believed, all subscriptions believe."""
    context.require_all("look after the keys")
    return Keys(context.home)
