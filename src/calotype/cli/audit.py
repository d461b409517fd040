"""``calotype audit``: what somebody must answer for."""

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from calotype.cli import GROUPS
from calotype.cli.common import Common, session
from calotype.cli.output import Columns, emit, for_people
from calotype.errors import InvalidInput, StoreDamaged

app = App(name="audit", help=GROUPS["audit"])


def _detail(entry: dict[str, Any]) -> str:
    return "; ".join(
        f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in entry["detail"].items()
    )


COLUMNS: Columns = {
    "No": lambda e: e["number"],
    "When": lambda e: e["at"][:19],
    "Who": lambda e: e["actor"],
    "Did": lambda e: e["action"],
    "To": lambda e: e["resource"],
    "Detail": _detail,
}


@app.command(name="list")
def list_(
    *,
    limit: int = 100,
    before: Annotated[int | None, Parameter(help="Only entries with a lower number.")] = None,
    common: Common | None = None,
) -> None:
    """List what was recorded, the newest first.

    Parameters
    ----------
    limit
        As many entries as are shown.
    """
    if not 0 < limit <= 1_000_000:
        raise InvalidInput(f"{limit} is no number of entries")
    with session(common) as context:
        emit(common, context.catalog.audit.list(limit, before=before), COLUMNS)


@app.command
def verify(*, against: Path | None = None, common: Common | None = None) -> None:
    """Check that no entry was changed, put in, or taken out.

    Parameters
    ----------
    against
        An evidence report: the entry that was the newest when it was signed must be there too. Without
        it, entries that were cut off at the end are not missed.
    """
    with session(common) as context:
        noted = None
        if against is not None:
            from calotype.engine.proof.evidence import audit_head  # noqa: PLC0415 (only with --against)

            noted = audit_head(context, against)
        audit = context.catalog.audit
        broken = audit.verify(against=noted)
        if broken is not None:
            raise StoreDamaged(
                f"the audit is broken at entry {broken.number}: {broken.problem}",
                hint="compare it with a backup; all before that entry is as it was written",
            )
        head = audit.head()
        if for_people(common):
            print(f"the audit is whole: {head.number if head else 0} entries")
            if head:
                print(f"its end is {head.digest}")
        else:
            emit(common, head)
