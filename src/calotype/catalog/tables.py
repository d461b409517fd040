"""The tables. Names of constraints follow one convention, so that migrations can name them."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)


class Instant(TypeDecorator[datetime]):
    """A moment in UTC; SQLite forgets time zones, so they are taken off and put back here."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To naive UTC."""
        del dialect
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        """To aware UTC."""
        del dialect
        return None if value is None else value.replace(tzinfo=UTC)


#: For names that differ by more than the case of their (ASCII) letters, as Azure's do.
_CASELESS = "NOCASE"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _resource(name: String) -> tuple[Column[Any], ...]:
    """What every resource has: an id, a place, and a name there of that type."""
    return (
        Column("id", String(36), primary_key=True),
        Column("subscription", String(36), nullable=False),
        Column("resource_group", String(90, _CASELESS), nullable=False),
        Column("name", name, nullable=False),
    )


images = Table(
    "images",
    metadata,
    *_resource(Text(collation=_CASELESS)),
    Column("shelf", String(16), nullable=False),
    Column("os_type", String(16), nullable=False),
    Column("os_state", String(16), nullable=False),
    Column("architecture", String(8), nullable=False),
    Column("generation", String(2), nullable=False),
    Column("label", Text),
    Column("family", Text),
    Column("description", Text),
    Column("eula", Text),
    Column("vcpus", Integer),
    Column("memory", BigInteger),
    Column("tags", JSON, nullable=False),
    Column("stage", String(16), nullable=False),
    Column("verdict", String(16)),
    Column("provenance", JSON, nullable=False),
    Column("parents", JSON, nullable=False),
    Column("plan", JSON(none_as_null=True)),
    Column("entitlement", String(64)),
    Column("created_at", Instant, nullable=False),
    UniqueConstraint("subscription", "resource_group", "name", name="uq_images_name"),
    Index("ix_images_shelf", "shelf", "subscription", "resource_group", "name"),
    Index("ix_images_planned", "created_at", sqlite_where=text("plan IS NOT NULL")),
)

#: ``position`` 0 is the OS disk (``lun`` NULL); data disks follow by LUN.
image_disks = Table(
    "image_disks",
    metadata,
    Column("image_id", ForeignKey("images.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("lun", Integer),
    Column("index", String(64), nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
    Column("caching", String(16), nullable=False),
    UniqueConstraint("image_id", "lun", name="uq_image_disks_lun"),
)

vms = Table(
    "vms",
    metadata,
    *_resource(String(64, _CASELESS)),
    Column("vcpus", Integer, nullable=False),
    Column("memory", BigInteger, nullable=False),
    Column("os_type", String(16), nullable=False),
    Column("generation", String(2), nullable=False),
    Column("architecture", String(8), nullable=False),
    Column("image_id", String(36), index=True),  # kept when the image is gone: it is lineage
    Column("os_state", String(16), nullable=False),
    Column("computer_name", String(64)),
    Column("admin_user", String(64)),
    Column("ssh_port", Integer, nullable=False, unique=True),
    Column("forwards", JSON, nullable=False),
    Column("mac", String(17), nullable=False, unique=True),
    Column("network", String(16), nullable=False),
    Column("uid", Integer, unique=True),
    Column("deallocated", Boolean, nullable=False),
    Column("generalized", Boolean, nullable=False),
    Column("notes", JSON, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("plan", JSON(none_as_null=True)),
    Column("entitlement", String(64)),
    Column("created_at", Instant, nullable=False),
    UniqueConstraint("subscription", "resource_group", "name", name="uq_vms_name"),
)

disks = Table(
    "disks",
    metadata,
    *_resource(String(80, _CASELESS)),
    Column("size", BigInteger, nullable=False),
    Column("index", String(64), index=True),
    Column("image_id", String(36)),
    Column("vm_id", ForeignKey("vms.id")),
    Column("lun", Integer),
    Column("caching", String(16), nullable=False),
    Column("tags", JSON, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("overlay", String(36)),  # NULL: the disk's own id
    UniqueConstraint("vm_id", "lun", name="uq_disks_lun"),
    UniqueConstraint("subscription", "resource_group", "name", name="uq_disks_name"),
)

#: What managed disks held at one instant.
snapshots = Table(
    "snapshots",
    metadata,
    *_resource(String(80, _CASELESS)),
    Column("size", BigInteger, nullable=False),
    Column("index", String(64), nullable=False, index=True),
    Column("disk_id", String(36), nullable=False),
    Column("image_id", String(36)),
    Column("os_type", String(16)),
    Column("consistency", String(16), nullable=False),
    Column("tags", JSON, nullable=False),
    Column("created_at", Instant, nullable=False),
    UniqueConstraint("subscription", "resource_group", "name", name="uq_snapshots_name"),
)

restore_points = Table(
    "restore_points",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("vm_id", ForeignKey("vms.id"), nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("consistency", String(16), nullable=False),
    Column("created_at", Instant, nullable=False),
)

#: ``position`` 0 is the OS disk (``lun`` NULL); data disks follow by LUN.
restore_point_disks = Table(
    "restore_point_disks",
    metadata,
    Column("point_id", ForeignKey("restore_points.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("disk_id", String(36), nullable=False),
    Column("name", String(80), nullable=False),
    Column("index", String(64), nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
    Column("image_id", String(36)),
    Column("lun", Integer),
    Column("caching", String(16), nullable=False),
    Column("tags", JSON, nullable=False),
)

#: Every image that ever was: descendants are found, and inherit, after their ancestors are gone. ``revoked``
#: says why.
lineage = Table(
    "lineage",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", Text, nullable=False),
    Column("plan", JSON(none_as_null=True)),
    Column("entitlement", String(64)),
    Column("revoked", Text),
)

#: Which images the disks of an image come from, the OS disk's first; rows stay, as those of ``lineage``.
descent = Table(
    "descent",
    metadata,
    Column("child_id", String(36), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("parent_id", String(36), nullable=False, index=True),
)

galleries = Table(
    "galleries",
    metadata,
    *_resource(String(80, _CASELESS)),
    Column("description", Text),
    Column("sharing", String(16), nullable=False),
    Column("everyone", Boolean, nullable=False),
    Column("community", JSON(none_as_null=True)),
    Column("public_name", String(80, _CASELESS), unique=True),
    Column("soft_delete_days", Integer, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("created_at", Instant, nullable=False),
    UniqueConstraint("subscription", "name", name="uq_galleries_name"),
)

#: The subscriptions that a gallery is shared with.
gallery_subscriptions = Table(
    "gallery_subscriptions",
    metadata,
    Column("gallery_id", ForeignKey("galleries.id", ondelete="CASCADE"), primary_key=True),
    Column("subscription", String(36), primary_key=True, index=True),
)

definitions = Table(
    "definitions",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("gallery_id", ForeignKey("galleries.id"), nullable=False),
    Column("name", String(80, _CASELESS), nullable=False),
    Column("publisher", String(128, _CASELESS), nullable=False),
    Column("offer", String(64, _CASELESS), nullable=False),
    Column("sku", String(64, _CASELESS), nullable=False),
    Column("os_type", String(16), nullable=False),
    Column("os_state", String(16), nullable=False),
    Column("generation", String(2), nullable=False),
    Column("architecture", String(8), nullable=False),
    Column("features", JSON, nullable=False),
    Column("description", Text),
    Column("eula", Text),
    Column("privacy_uri", Text),
    Column("release_notes_uri", Text),
    Column("recommended", JSON, nullable=False),
    Column("plan", JSON(none_as_null=True)),
    Column("end_of_life", Instant),
    Column("recipe", Text),
    Column("retention", JSON(none_as_null=True)),
    Column("tags", JSON, nullable=False),
    Column("created_at", Instant, nullable=False),
    UniqueConstraint("gallery_id", "name", name="uq_definitions_name"),
    UniqueConstraint("gallery_id", "publisher", "offer", "sku", name="uq_definitions_triple"),
)

#: ``eligible`` is kept beside what it follows from (staged, excluded, state, deleted), so that the latest
#: version is one step in an index.
versions = Table(
    "versions",
    metadata,
    Column("image_id", ForeignKey("images.id", ondelete="CASCADE"), primary_key=True),
    Column("definition_id", ForeignKey("definitions.id"), nullable=False),
    Column("major", Integer, nullable=False),
    Column("minor", Integer, nullable=False),
    Column("patch", Integer, nullable=False),
    Column("eligible", Boolean, nullable=False),
    Column("exclude_from_latest", Boolean, nullable=False),
    Column("state", String(16), nullable=False),
    Column("replacement", Text),
    Column("reason", Text),
    Column("end_of_life", Instant),
    Column("block_deletion", Boolean, nullable=False),
    Column("excluded_regions", JSON, nullable=False),
    Column("deleted_at", Instant),
    Column("purge_at", Instant),
    UniqueConstraint("definition_id", "major", "minor", "patch", name="uq_versions_number"),
    Index(
        "ix_versions_latest", "definition_id", "eligible", "major", "minor", "patch", "end_of_life"
    ),
    Index(
        "ix_versions_deleted",
        "definition_id",
        "major",
        "minor",
        "patch",
        sqlite_where=text("deleted_at IS NOT NULL"),
    ),
    Index("ix_versions_purge_at", "definition_id", "purge_at"),
)

#: Where versions are: a region is a configured store.
replicas = Table(
    "replicas",
    metadata,
    Column("image_id", ForeignKey("images.id", ondelete="CASCADE"), primary_key=True),
    Column("region", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("progress", Integer, nullable=False),
    Column("detail", Text, nullable=False),
    Column("bytes_stored", BigInteger, nullable=False),
    Column("updated_at", Instant, nullable=False),
)

#: The Indexes that were brought to a region; what no version needs there is removed when it answers.
replica_indexes = Table(
    "replica_indexes",
    metadata,
    Column("region", String(64), primary_key=True),
    Column("index", String(64), primary_key=True),
)

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(64, _CASELESS), nullable=False, unique=True),
    Column("created_at", Instant, nullable=False),
)

#: ``resource_group`` and ``resource`` (an id) narrow the scope.
role_assignments = Table(
    "role_assignments",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("principal", String(128), nullable=False),
    Column("role", String(16), nullable=False),
    Column("subscription", ForeignKey("subscriptions.id"), nullable=False),
    Column("resource_group", String(90, _CASELESS)),
    Column("resource", String(36)),
    Column("created_at", Instant, nullable=False),
    Index("ix_role_assignments_principal", "principal", "subscription"),
)

#: What a subscription may have; no row: as much as it likes.
quotas = Table(
    "quotas",
    metadata,
    Column("subscription", ForeignKey("subscriptions.id"), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("most", BigInteger, nullable=False),
)

#: What a subscription has, kept in the transactions that change it.
usage = Table(
    "usage",
    metadata,
    Column("subscription", String(36), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("used", BigInteger, nullable=False),
)

#: Catalogues of offers beside the one that ships.
market_catalogs = Table(
    "market_catalogs",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("location", Text, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("publisher", String(128)),
    Column("keyring", Text),
    Column("allow_addresses", JSON, nullable=False),
    Column("added_at", Instant, nullable=False),
)

#: Terms that were accepted.
terms = Table(
    "terms",
    metadata,
    Column("subscription", ForeignKey("subscriptions.id"), primary_key=True),
    Column("publisher", String(128), primary_key=True),
    Column("product", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("text", Text, nullable=False),
    Column("principal", Text, nullable=False),
    Column("accepted_at", Instant, nullable=False),
)

#: Offers for some: what a subscription holds.
entitlements = Table(
    "entitlements",
    metadata,
    Column("subscription", ForeignKey("subscriptions.id"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("expires_at", Instant),
    Column("granted_by", Text, nullable=False),
    Column("granted_at", Instant, nullable=False),
)

#: Other installations whose public galleries are followed.
communities = Table(
    "communities",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("mirrors", JSON, nullable=False),
    Column("root", Text, nullable=False),
    Column("allow_addresses", JSON, nullable=False),
    Column("added_at", Instant, nullable=False),
)

#: What people reported of community galleries.
community_reports = Table(
    "community_reports",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("public_name", String(80), nullable=False, index=True),
    Column("reference", Text, nullable=False),
    Column("category", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("reporter", Text, nullable=False),
    Column("at", Instant, nullable=False),
)

#: Overrides and other acts that must be answered for; ``digest`` covers the row and ``previous``.
audit = Table(
    "audit",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", Instant, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", String(64), nullable=False),
    Column("resource", Text, nullable=False),
    Column("detail", JSON, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
)

#: The ledger of the store (see :mod:`calotype.store.ledger`): one row.
ledger = Table(
    "ledger",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("repository", String(64)),
    Column("sequence", BigInteger, nullable=False),
)

#: Operations that have not ended; ``until`` in seconds since 1970.
ledger_operations = Table(
    "ledger_operations",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("until", Double, nullable=False),
    Column("prune", Boolean, nullable=False),
)

#: Packs that are condemned, being deleted or deleted; ``number`` and ``since`` of the condemnation.
ledger_packs = Table(
    "ledger_packs",
    metadata,
    Column("key", String(80), primary_key=True),
    Column("state", String(16), nullable=False, index=True),
    Column("number", BigInteger, nullable=False),
    Column("since", Double, nullable=False),
)

#: Roots; ``data`` is NULL when the root was removed.
ledger_roots = Table(
    "ledger_roots",
    metadata,
    Column("index", String(64), primary_key=True),
    Column("data", LargeBinary),
)
