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
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
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


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

images = Table(
    "images",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(80), nullable=False, unique=True),
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
    Column("created_at", Instant, nullable=False),
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
    Column("id", String(36), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
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
    Column("created_at", Instant, nullable=False),
)

disks = Table(
    "disks",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(80), nullable=False, unique=True),
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
