"""Other installations that are followed; for the installation's owner to change."""

from collections.abc import Mapping

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from calotype.catalog.audit import Act, append
from calotype.catalog.lineage import mark_revoked
from calotype.catalog.part import Part
from calotype.catalog.tables import communities
from calotype.errors import Conflict, NotFound
from calotype.model import FollowedCommunity

_FOLLOW = "say which installations are followed"


class Communities(Part):
    """The followed installations in a catalogue; each method is one transaction."""

    def add(self, community: FollowedCommunity, act: Act) -> None:
        """Follow an installation.

        Raises:
            Conflict: the name is taken.
            Forbidden: the caller does not own this installation.
        """
        self._access.require_all(_FOLLOW)
        with self._write() as db:
            if _row(db, community.name) is not None:
                raise Conflict(
                    f"'{community.name}' is followed already",
                    hint=f"calotype community update {community.name}, or choose another --name",
                )
            row = {
                "name": community.name,
                "mirrors": list(community.mirrors),
                "root": community.root,
                "allow_addresses": list(community.allow_addresses),
                "added_at": community.added_at,
            }
            db.execute(insert(communities), row)
            append(db, act)

    def get(self, name: str) -> FollowedCommunity:
        """The followed installation of that name.

        Raises:
            NotFound: there is none.
        """
        with self._read() as db:
            row = _row(db, name)
            if row is None:
                raise NotFound(
                    f"no followed installation is called '{name}'",
                    hint="calotype community followed lists them",
                )
            return _community(row)

    def list(self) -> list[FollowedCommunity]:
        """All of them, by name."""
        with self._read() as db:
            query = select(communities).order_by(communities.c.name)
            return [_community(row) for row in db.execute(query).mappings()]

    def set_mirrors(self, name: str, mirrors: tuple[str, ...], act: Act) -> None:
        """Say where an installation's tree is to be had."""
        self._access.require_all(_FOLLOW)
        with self._write() as db:
            here = communities.c.name == name
            db.execute(update(communities).where(here).values(mirrors=list(mirrors)))
            append(db, act)

    def remove(self, name: str, act: Act) -> None:
        """Follow an installation no longer; harmless when it is gone."""
        self._access.require_all(_FOLLOW)
        with self._write() as db:
            db.execute(delete(communities).where(communities.c.name == name))
            append(db, act)

    def revoke(self, reasons: Mapping[str, str | None], act: Act) -> None:
        """Write down what publishers say of pulled images (by id): why they are revoked, or that not.

        Raises:
            Forbidden: the caller does not own this installation.
        """
        self._access.require_all(_FOLLOW)
        with self._write() as db:
            for image_id, reason in reasons.items():
                mark_revoked(db, image_id, reason)
            append(db, act)


def _row(db: Connection, name: str) -> RowMapping | None:
    return db.execute(select(communities).where(communities.c.name == name)).mappings().first()


def _community(row: RowMapping) -> FollowedCommunity:
    return FollowedCommunity(
        name=row["name"],
        mirrors=tuple(row["mirrors"]),
        root=row["root"],
        allow_addresses=tuple(row["allow_addresses"]),
        added_at=row["added_at"],
    )
