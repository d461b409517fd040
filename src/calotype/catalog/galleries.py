"""Galleries and image definitions; whoever may read a gallery may read what is in it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, exists, func, insert, select, tuple_, update

from calotype.catalog import quotas, rows
from calotype.catalog.audit import Act, append
from calotype.catalog.part import Part
from calotype.catalog.tables import definitions, galleries, gallery_subscriptions, versions
from calotype.errors import Conflict, NotFound
from calotype.model import (
    Architecture,
    CommunityInfo,
    Gallery,
    Generation,
    ImageDefinition,
    OsState,
    OsType,
    QuotaKind,
    Range,
    Retention,
    Role,
    Sharing,
)


class Galleries(Part):
    """The galleries in a catalogue, and their definitions; each method is one transaction."""

    # -- galleries

    def add(self, gallery: Gallery, act: Act) -> None:
        """Make a gallery exist.

        Raises:
            Conflict: the name is taken.
            Forbidden: the caller may not make resources there.
            QuotaExceeded: the subscription may not have so many.
        """
        row = {
            "id": gallery.id,
            **rows.scope_row(gallery.scope),
            "name": gallery.name,
            "soft_delete_days": gallery.soft_delete_days,
            "created_at": gallery.created_at,
            **_changeable(gallery),
        }
        with self._write() as db:
            what = f"gallery '{gallery.name}'"
            self._access.require_in(db, Role.CONTRIBUTOR, gallery.scope, what)
            mine = galleries.c.subscription == gallery.scope.subscription
            same = select(galleries.c.resource_group).where(mine, galleries.c.name == gallery.name)
            if (group := db.scalar(same)) is not None:
                raise Conflict(
                    f"there is a gallery '{gallery.name}' in resource group '{group}' already",
                    hint="choose another name: they are unique in a subscription, whatever their case",
                )
            quotas.charge(db, gallery.scope.subscription, {QuotaKind.GALLERIES: 1})
            db.execute(insert(galleries), row)
            append(db, act)

    def get(self, name_or_id: str) -> Gallery:
        """The gallery of that id, or of that name in the caller's group.

        Raises:
            NotFound: there is none, or the caller may not read it.
        """
        with self._read() as db:
            return to_gallery(db, self._access.find(db, "gallery", name_or_id))

    def at(self, subscription: str, name: str, group: str | None = None) -> Gallery:
        """The gallery of that name in a subscription, and in that group of it; case does not matter.

        Raises:
            NotFound: there is none, or the caller may not read it.
        """
        where = [galleries.c.subscription == subscription.lower(), galleries.c.name == name]
        if group is not None:
            where.append(galleries.c.resource_group == group)
        with self._read() as db:
            row = db.execute(select(galleries).where(*where)).mappings().first()
            if row is None or not self._access.may(db, Role.READER, galleries, dict(row)):
                raise NotFound(
                    f"there is no gallery '{name}' in subscription '{subscription}'",
                    hint="or you may not see it; calotype gallery list --shared shows what others share",
                )
            return to_gallery(db, dict(row))

    def list(
        self,
        *,
        shared: bool = False,
        community: bool = False,
        limit: int = 1000,
        after: Sequence[str] = (),
    ) -> list[Gallery]:
        """A page of the galleries in the caller's group, by name.

        Instead, those that others share, by (subscription, name); or the community's, by public name.
        ``after`` is what the page before ended with, by the same order.
        """
        with self._read() as db:
            order: tuple[Any, ...] = (galleries.c.name,)
            if community:
                where = galleries.c.sharing == Sharing.COMMUNITY.value
                order = (galleries.c.public_name,)
            elif shared:
                where = self._access.shared(db)
                order = (galleries.c.subscription, galleries.c.name)
            else:
                where = self._access.here(galleries) & self._access.visible(db, galleries)
            if after:
                where &= tuple_(*order) > tuple_(*after)
            query = select(galleries).where(where).order_by(*order).limit(limit)
            return [to_gallery(db, dict(row)) for row in db.execute(query).mappings()]

    def each(self, *, community: bool = False) -> Iterator[Gallery]:
        """All that :meth:`list` has pages of."""
        after: tuple[str, ...] = ()
        while page := self.list(community=community, after=after):
            yield from page
            info = page[-1].community if community else None
            after = (info.public_name if info else page[-1].name,)

    def update(self, gallery: Gallery, act: Act, role: Role = Role.CONTRIBUTOR) -> None:
        """Change what can change of a gallery; with whom it is shared is an Owner's to say.

        Raises:
            NotFound, Forbidden: there is none, or the caller has not ``role`` for it.
            Conflict: the public name is taken.
        """
        with self._write() as db:
            row = self._access.find(db, "gallery", gallery.id)
            if _sharing(to_gallery(db, row)) != _sharing(gallery):
                role = Role.OWNER
            self._access.require(db, role, row, f"gallery '{row['name']}'")
            values = {**_changeable(gallery), "soft_delete_days": gallery.soft_delete_days}
            db.execute(update(galleries).where(galleries.c.id == gallery.id).values(**values))
            mine = gallery_subscriptions.c.gallery_id == gallery.id
            db.execute(delete(gallery_subscriptions).where(mine))
            if shared_with := sorted(set(gallery.subscriptions)):
                subscribed = [{"gallery_id": gallery.id, "subscription": s} for s in shared_with]
                db.execute(insert(gallery_subscriptions), subscribed)
            append(db, act)

    def delete(self, gallery_id: str, act: Act) -> None:
        """Take an empty gallery out of the catalogue.

        Raises:
            Conflict: there are definitions in it.
        """
        with self._write() as db:
            row = self._access.find(db, "gallery", gallery_id, Role.CONTRIBUTOR)
            inside = select(definitions.c.name).where(definitions.c.gallery_id == gallery_id)
            if (left := db.scalar(inside.limit(1))) is not None:
                raise Conflict(
                    f"gallery '{row['name']}' holds image definitions, such as '{left}'",
                    hint="delete them first",
                )
            quotas.give_back(db, row["subscription"], {QuotaKind.GALLERIES: 1})
            db.execute(delete(galleries).where(galleries.c.id == gallery_id))
            append(db, act)

    # -- definitions

    def add_definition(self, definition: ImageDefinition, act: Act) -> None:
        """Make an image definition exist.

        Raises:
            Conflict: its name, or its publisher, offer and SKU, are taken in the gallery.
        """
        with self._write() as db:
            row = self._access.find(db, "gallery", definition.gallery_id, Role.CONTRIBUTOR)
            mine = definitions.c.gallery_id == definition.gallery_id
            if db.scalar(select(func.count()).where(mine, definitions.c.name == definition.name)):
                raise Conflict(
                    f"image definition '{row['name']}/{definition.name}' exists already",
                    hint="choose another name, or delete it first",
                )
            triple = (
                definitions.c.publisher == definition.publisher,
                definitions.c.offer == definition.offer,
                definitions.c.sku == definition.sku,
            )
            other = db.scalar(select(definitions.c.name).where(mine, *triple))
            if other is not None:
                raise Conflict(
                    f"image definition '{other}' of this gallery has publisher "
                    f"'{definition.publisher}', offer '{definition.offer}' and SKU '{definition.sku}'",
                    hint="choose another SKU: the three together are unique in a gallery",
                )
            db.execute(insert(definitions), _definition_row(definition))
            append(db, act)

    def definition(self, gallery: str, name: str) -> ImageDefinition:
        """The definition of that name in a gallery (by name or id).

        Raises:
            NotFound: there is no such gallery or definition.
        """
        with self._read() as db:
            owner = self._access.find(db, "gallery", gallery)
            here = (definitions.c.gallery_id == owner["id"], definitions.c.name == name)
            row = db.execute(select(definitions).where(*here)).mappings().first()
            if row is None:
                raise NotFound(
                    f"there is no image definition '{owner['name']}/{name}'",
                    hint=f"calotype gallery image-definition list {owner['name']} shows them",
                )
            return to_definition(dict(row), owner)

    def definition_of(self, definition_id: str) -> ImageDefinition:
        """The definition of that id.

        Raises:
            NotFound: there is none, or the caller may not read it.
        """
        with self._read() as db:
            row = db.execute(select(definitions).where(definitions.c.id == definition_id))
            found = row.mappings().first()
            if found is None:
                raise _no_definition(definition_id)
            return to_definition(dict(found), self._access.find(db, "gallery", found["gallery_id"]))

    def definitions(
        self, gallery: str, *, limit: int = 1000, after: str | None = None
    ) -> Sequence[ImageDefinition]:
        """A page of a gallery's definitions by name, those after the name ``after``."""
        with self._read() as db:
            owner = self._access.find(db, "gallery", gallery)
            query = select(definitions).where(definitions.c.gallery_id == owner["id"])
            if after is not None:
                query = query.where(definitions.c.name > after)
            found = db.execute(query.order_by(definitions.c.name).limit(limit)).mappings()
            return [to_definition(dict(row), owner) for row in found]

    def each_definition(self, gallery: str) -> Iterator[ImageDefinition]:
        """All definitions of a gallery, by name."""
        after: str | None = None
        while page := self.definitions(gallery, after=after):
            yield from page
            after = page[-1].name

    def update_definition(self, definition: ImageDefinition, act: Act) -> None:
        """Change what can change of a definition; what cannot is the engine's to refuse.

        Raises:
            NotFound, Forbidden: there is none, or the caller may not change it.
        """
        with self._write() as db:
            row = self._access.find(db, "gallery", definition.gallery_id, Role.CONTRIBUTOR)
            values = _definition_row(definition)
            mine = definitions.c.gallery_id == row["id"]
            here = update(definitions).where(definitions.c.id == definition.id, mine)
            if db.execute(here.values(**values)).rowcount == 0:
                raise _no_definition(f"{row['name']}/{definition.name}")
            append(db, act)

    def delete_definition(self, definition_id: str, act: Act) -> None:
        """Take an empty definition out of the catalogue.

        Raises:
            NotFound, Forbidden: there is none, or the caller may not delete it.
            Conflict: there are versions of it, or deleted ones that can come back.
        """
        with self._write() as db:
            found = select(definitions).where(definitions.c.id == definition_id)
            definition = db.execute(found).mappings().first()
            if definition is None:
                raise _no_definition(definition_id)
            row = self._access.find(db, "gallery", definition["gallery_id"], Role.CONTRIBUTOR)
            if db.scalar(select(exists().where(versions.c.definition_id == definition_id))):
                raise Conflict(
                    f"there are versions of image definition '{row['name']}/{definition['name']}'",
                    hint="delete them first, with --purge those that can still come back",
                )
            db.execute(delete(definitions).where(definitions.c.id == definition_id))
            append(db, act)


def _no_definition(name: str) -> NotFound:
    return NotFound(
        f"there is no image definition '{name}'",
        hint="calotype gallery image-definition list GALLERY shows them",
    )


def to_gallery(db: Connection, row: Mapping[str, Any]) -> Gallery:
    """A gallery out of its row, and the subscriptions that it is shared with."""
    mine = gallery_subscriptions.c.gallery_id == row["id"]
    order = gallery_subscriptions.c.subscription
    return Gallery(
        id=row["id"],
        name=row["name"],
        description=row["description"],
        sharing=Sharing(row["sharing"]),
        subscriptions=tuple(
            db.scalars(select(gallery_subscriptions.c.subscription).where(mine).order_by(order))
        ),
        everyone=row["everyone"],
        community=CommunityInfo(**row["community"]) if row["community"] else None,
        soft_delete_days=row["soft_delete_days"],
        tags=dict(row["tags"]),
        created_at=row["created_at"],
        scope=rows.to_scope(row),
    )


def to_definition(row: Mapping[str, Any], owner: Mapping[str, Any]) -> ImageDefinition:
    """A definition out of its row and its gallery's."""
    size = row["recommended"]
    return ImageDefinition(
        id=row["id"],
        gallery_id=owner["id"],
        gallery=owner["name"],
        name=row["name"],
        publisher=row["publisher"],
        offer=row["offer"],
        sku=row["sku"],
        os_type=OsType(row["os_type"]),
        os_state=OsState(row["os_state"]),
        generation=Generation(row["generation"]),
        architecture=Architecture(row["architecture"]),
        features=dict(row["features"]),
        description=row["description"],
        eula=row["eula"],
        privacy_uri=row["privacy_uri"],
        release_notes_uri=row["release_notes_uri"],
        vcpus=Range(*size["vcpus"]),
        memory=Range(*size["memory"]),
        plan=rows.to_plan(row["plan"]),
        end_of_life=row["end_of_life"],
        recipe=row["recipe"],
        retention=Retention(**row["retention"]) if row["retention"] else None,
        tags=dict(row["tags"]),
        created_at=row["created_at"],
        scope=rows.to_scope(owner),
    )


def _definition_row(definition: ImageDefinition) -> dict[str, Any]:
    keep = definition.retention
    return {
        "id": definition.id,
        "gallery_id": definition.gallery_id,
        "name": definition.name,
        "publisher": definition.publisher,
        "offer": definition.offer,
        "sku": definition.sku,
        "os_type": definition.os_type.value,
        "os_state": definition.os_state.value,
        "generation": definition.generation.value,
        "architecture": definition.architecture.value,
        "features": definition.features,
        "description": definition.description,
        "eula": definition.eula,
        "privacy_uri": definition.privacy_uri,
        "release_notes_uri": definition.release_notes_uri,
        "recommended": {
            "vcpus": [definition.vcpus.min, definition.vcpus.max],
            "memory": [definition.memory.min, definition.memory.max],
        },
        "plan": rows.plan_json(definition.plan),
        "end_of_life": definition.end_of_life,
        "recipe": definition.recipe,
        "retention": {"keep": keep.keep, "days": keep.days} if keep else None,
        "tags": definition.tags,
        "created_at": definition.created_at,
    }


def _sharing(gallery: Gallery) -> tuple[Any, ...]:
    """With whom a gallery is shared."""
    return gallery.sharing, set(gallery.subscriptions), gallery.everyone, gallery.community


def _changeable(gallery: Gallery) -> dict[str, Any]:
    info = gallery.community
    return {
        "description": gallery.description,
        "sharing": gallery.sharing.value,
        "everyone": gallery.everyone,
        "community": {
            "publisher_uri": info.publisher_uri,
            "publisher_contact": info.publisher_contact,
            "eula": info.eula,
            "public_name": info.public_name,
        }
        if info
        else None,
        "public_name": info.public_name if info else None,
        "tags": gallery.tags,
    }
