"""Public galleries by their names, and what people report of them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select

from calotype.catalog.audit import Act, append
from calotype.catalog.galleries import to_gallery
from calotype.catalog.part import Part
from calotype.catalog.tables import community_reports, galleries
from calotype.model import CommunityReport, Gallery, ReportCategory, Role

_REPORTS = 1000  # the most that are listed


class Community(Part):
    """The community's side of a catalogue; each method is one transaction."""

    def require_owner(self, gallery_id: str) -> None:
        """Refuse whoever does not own a gallery.

        Raises:
            NotFound, Forbidden: there is none, or the caller has not the role.
        """
        with self._read() as db:
            self._access.find(db, "gallery", gallery_id, Role.OWNER)

    def bearer(self, public_name: str) -> Gallery | None:
        """The gallery that has this public name, also when it was withdrawn: names never change hands."""
        with self._read() as db:
            row = _bearer(db, public_name)
            return None if row is None else to_gallery(db, row)

    def report(self, report: CommunityReport, act: Act) -> None:
        """Keep what somebody reported, and record it in the same transaction."""
        row = {
            "id": report.id,
            "public_name": report.public_name,
            "reference": report.reference,
            "category": report.category.value,
            "reason": report.reason,
            "reporter": report.reporter,
            "at": report.at,
        }
        with self._write() as db:
            db.execute(insert(community_reports), row)
            append(db, act)

    def reports(self) -> Sequence[CommunityReport]:
        """The newest reports of galleries that the caller owns; the installation's owner sees all."""
        query = select(community_reports).order_by(community_reports.c.at.desc())
        with self._read() as db:
            mine: dict[str, bool] = {}
            found: list[CommunityReport] = []
            for row in db.execute(query).mappings():
                name = row["public_name"]
                if name not in mine:
                    mine[name] = self._owns(db, name)
                if mine[name]:
                    found.append(_report(row))
                if len(found) == _REPORTS:
                    break
            return found

    def _owns(self, db: Connection, public_name: str) -> bool:
        if self._access.unlimited:
            return True
        row = _bearer(db, public_name)
        return row is not None and self._access.has(db, Role.OWNER, row)


def _bearer(db: Connection, public_name: str) -> dict[str, Any] | None:
    query = select(galleries).where(galleries.c.public_name == public_name)
    row = db.execute(query).mappings().first()
    return None if row is None else dict(row)


def _report(row: RowMapping) -> CommunityReport:
    return CommunityReport(
        id=row["id"],
        public_name=row["public_name"],
        reference=row["reference"],
        category=ReportCategory(row["category"]),
        reason=row["reason"],
        reporter=row["reporter"],
        at=row["at"],
    )
