"""``calotype doctor``: what this machine can do."""

from calotype.cli.common import Common, session
from calotype.cli.output import Columns, emit
from calotype.engine import doctor as engine

COLUMNS: Columns = {
    "": lambda r: {"ok": "ok", "limited": "!!", "missing": "NO"}[r["state"]],
    "What": lambda r: r["what"],
    "Found": lambda r: r["found"],
    "Cure": lambda r: r["cure"],
}


def doctor(*, common: Common | None = None) -> int:
    """Say what this machine can do, and how to get what is missing."""
    with session(common) as context:
        findings = engine.examine(context)
        emit(common, findings, COLUMNS)
        return 5 if any(finding.state == "missing" for finding in findings) else 0
