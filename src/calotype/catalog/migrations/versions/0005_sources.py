"""The three sources: galleries, what the marketplace and the community need, whose everything is."""

import itertools

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_SUBSCRIPTION = "00000000-0000-4000-8000-000000000000"
#: Table -> as many characters as names there have at most.
_LONGEST = {"images": 64, "vms": 64, "disks": 80}


def upgrade() -> None:
    """Create the tables, give everything a place and a name there, and write down what is there."""
    _create()
    for table, longest in _LONGEST.items():
        _rename(table, longest)
    _alter()
    _fill()


def _rename(table: str, longest: int) -> None:
    """Names have no case any more: of those that differ by it alone, the later ones get a number."""
    rows = sa.table(table, *map(sa.column, ("id", "name", "created_at")))
    ordered = sa.select(rows.c.id, rows.c.name).order_by(rows.c.created_at, rows.c.id)
    found = op.get_bind().execute(ordered).all()
    seen: set[str] = set()
    taken = {row.name.lower() for row in found}
    for row in found:
        if row.name.lower() not in seen:
            seen.add(row.name.lower())
            continue
        ends = (f"-{number}" for number in itertools.count(2))
        names = (row.name[: longest - len(end)] + end for end in ends)
        name = next(name for name in names if name.lower() not in taken)
        taken.add(name.lower())
        op.execute(rows.update().where(rows.c.id == row.id).values(name=name))


def _fill() -> None:
    now = sa.func.current_timestamp()
    subscriptions = sa.table("subscriptions", *map(sa.column, ("id", "name", "created_at")))
    op.execute(subscriptions.insert().values(id=_SUBSCRIPTION, name="default", created_at=now))
    op.execute(
        "UPDATE images SET parents = json_array(json_extract(provenance, '$.image_id')) "
        "WHERE json_extract(provenance, '$.image_id') IS NOT NULL"
    )
    op.execute("INSERT INTO lineage (id, name) SELECT id, name FROM images")
    op.execute(
        "INSERT INTO descent (child_id, position, parent_id) "
        "SELECT images.id, key, value FROM images, json_each(images.parents)"
    )
    usage = sa.table("usage", *map(sa.column, ("subscription", "kind", "used")))
    for kind, count in {
        "images": sa.text("(SELECT count(*) FROM images)"),
        "vms": sa.text("(SELECT count(*) FROM vms)"),
        "bytes": sa.text("(SELECT coalesce(sum(size), 0) FROM image_disks)"),
    }.items():
        op.execute(usage.insert().values(subscription=_SUBSCRIPTION, kind=kind, used=count))


def _create() -> None:
    op.create_table(
        "communities",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("mirrors", sa.JSON(), nullable=False),
        sa.Column("root", sa.Text(), nullable=False),
        sa.Column("allow_addresses", sa.JSON(), nullable=False),
        sa.Column("added_at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_communities"),
    )
    op.create_table(
        "community_reports",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("public_name", sa.String(length=80), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("category", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("reporter", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_community_reports"),
    )
    with op.batch_alter_table("community_reports") as batch_op:
        batch_op.create_index("ix_community_reports_public_name", ["public_name"], unique=False)

    op.create_table(
        "galleries",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("subscription", sa.String(length=36), nullable=False),
        sa.Column("resource_group", sa.String(length=90, collation="NOCASE"), nullable=False),
        sa.Column("name", sa.String(length=80, collation="NOCASE"), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("sharing", sa.String(length=16), nullable=False),
        sa.Column("everyone", sa.Boolean(), nullable=False),
        sa.Column("community", sa.JSON(), nullable=True),
        sa.Column("public_name", sa.String(length=80, collation="NOCASE"), nullable=True),
        sa.Column("soft_delete_days", sa.Integer(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_galleries"),
        sa.UniqueConstraint("public_name", name="uq_galleries_public_name"),
        sa.UniqueConstraint("subscription", "name", name="uq_galleries_name"),
    )
    op.create_table(
        "lineage",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=True),
        sa.Column("entitlement", sa.String(length=64), nullable=True),
        sa.Column("revoked", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_lineage"),
    )
    op.create_table(
        "descent",
        sa.Column("child_id", sa.String(length=36), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.String(length=36), nullable=False),
        sa.PrimaryKeyConstraint("child_id", "position", name="pk_descent"),
    )
    with op.batch_alter_table("descent") as batch_op:
        batch_op.create_index("ix_descent_parent_id", ["parent_id"], unique=False)

    op.create_table(
        "market_catalogs",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("publisher", sa.String(length=128), nullable=True),
        sa.Column("keyring", sa.Text(), nullable=True),
        sa.Column("allow_addresses", sa.JSON(), nullable=False),
        sa.Column("added_at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_market_catalogs"),
    )
    op.create_table(
        "snapshots",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("subscription", sa.String(length=36), nullable=False),
        sa.Column("resource_group", sa.String(length=90, collation="NOCASE"), nullable=False),
        sa.Column("name", sa.String(length=80, collation="NOCASE"), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("index", sa.String(length=64), nullable=False),
        sa.Column("disk_id", sa.String(length=36), nullable=False),
        sa.Column("image_id", sa.String(length=36), nullable=True),
        sa.Column("os_type", sa.String(length=16), nullable=True),
        sa.Column("consistency", sa.String(length=16), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_snapshots"),
        sa.UniqueConstraint("subscription", "resource_group", "name", name="uq_snapshots_name"),
    )
    with op.batch_alter_table("snapshots") as batch_op:
        batch_op.create_index("ix_snapshots_index", ["index"], unique=False)

    op.create_table(
        "subscriptions",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=64, collation="NOCASE"), nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_subscriptions"),
        sa.UniqueConstraint("name", name="uq_subscriptions_name"),
    )
    op.create_table(
        "usage",
        sa.Column("subscription", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subscription", "kind", name="pk_usage"),
    )
    op.create_table(
        "definitions",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("gallery_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=80, collation="NOCASE"), nullable=False),
        sa.Column("publisher", sa.String(length=128, collation="NOCASE"), nullable=False),
        sa.Column("offer", sa.String(length=64, collation="NOCASE"), nullable=False),
        sa.Column("sku", sa.String(length=64, collation="NOCASE"), nullable=False),
        sa.Column("os_type", sa.String(length=16), nullable=False),
        sa.Column("os_state", sa.String(length=16), nullable=False),
        sa.Column("generation", sa.String(length=2), nullable=False),
        sa.Column("architecture", sa.String(length=8), nullable=False),
        sa.Column("features", sa.JSON(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("eula", sa.Text(), nullable=True),
        sa.Column("privacy_uri", sa.Text(), nullable=True),
        sa.Column("release_notes_uri", sa.Text(), nullable=True),
        sa.Column("recommended", sa.JSON(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=True),
        sa.Column("end_of_life", sa.DateTime, nullable=True),
        sa.Column("recipe", sa.Text(), nullable=True),
        sa.Column("retention", sa.JSON(), nullable=True),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.ForeignKeyConstraint(
            ["gallery_id"], ["galleries.id"], name="fk_definitions_gallery_id_galleries"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_definitions"),
        sa.UniqueConstraint("gallery_id", "name", name="uq_definitions_name"),
        sa.UniqueConstraint(
            "gallery_id", "publisher", "offer", "sku", name="uq_definitions_triple"
        ),
    )
    op.create_table(
        "entitlements",
        sa.Column("subscription", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("expires_at", sa.DateTime, nullable=True),
        sa.Column("granted_by", sa.Text(), nullable=False),
        sa.Column("granted_at", sa.DateTime, nullable=False),
        sa.ForeignKeyConstraint(
            ["subscription"],
            ["subscriptions.id"],
            name="fk_entitlements_subscription_subscriptions",
        ),
        sa.PrimaryKeyConstraint("subscription", "name", name="pk_entitlements"),
    )
    op.create_table(
        "gallery_subscriptions",
        sa.Column("gallery_id", sa.String(length=36), nullable=False),
        sa.Column("subscription", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(
            ["gallery_id"],
            ["galleries.id"],
            name="fk_gallery_subscriptions_gallery_id_galleries",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("gallery_id", "subscription", name="pk_gallery_subscriptions"),
    )
    with op.batch_alter_table("gallery_subscriptions") as batch_op:
        batch_op.create_index(
            "ix_gallery_subscriptions_subscription", ["subscription"], unique=False
        )

    op.create_table(
        "quotas",
        sa.Column("subscription", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("most", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["subscription"], ["subscriptions.id"], name="fk_quotas_subscription_subscriptions"
        ),
        sa.PrimaryKeyConstraint("subscription", "kind", name="pk_quotas"),
    )
    op.create_table(
        "replicas",
        sa.Column("image_id", sa.String(length=36), nullable=False),
        sa.Column("region", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("progress", sa.Integer(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("bytes_stored", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.DateTime, nullable=False),
        sa.ForeignKeyConstraint(
            ["image_id"], ["images.id"], name="fk_replicas_image_id_images", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("image_id", "region", name="pk_replicas"),
    )
    op.create_table(
        "replica_indexes",
        sa.Column("region", sa.String(length=64), nullable=False),
        sa.Column("index", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("region", "index", name="pk_replica_indexes"),
    )
    op.create_table(
        "role_assignments",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("principal", sa.String(length=128), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("subscription", sa.String(length=36), nullable=False),
        sa.Column("resource_group", sa.String(length=90, collation="NOCASE"), nullable=True),
        sa.Column("resource", sa.String(length=36), nullable=True),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.ForeignKeyConstraint(
            ["subscription"],
            ["subscriptions.id"],
            name="fk_role_assignments_subscription_subscriptions",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_role_assignments"),
    )
    with op.batch_alter_table("role_assignments") as batch_op:
        batch_op.create_index(
            "ix_role_assignments_principal", ["principal", "subscription"], unique=False
        )

    op.create_table(
        "terms",
        sa.Column("subscription", sa.String(length=36), nullable=False),
        sa.Column("publisher", sa.String(length=128), nullable=False),
        sa.Column("product", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("accepted_at", sa.DateTime, nullable=False),
        sa.ForeignKeyConstraint(
            ["subscription"], ["subscriptions.id"], name="fk_terms_subscription_subscriptions"
        ),
        sa.PrimaryKeyConstraint("subscription", "publisher", "product", "name", name="pk_terms"),
    )
    op.create_table(
        "versions",
        sa.Column("image_id", sa.String(length=36), nullable=False),
        sa.Column("definition_id", sa.String(length=36), nullable=False),
        sa.Column("major", sa.Integer(), nullable=False),
        sa.Column("minor", sa.Integer(), nullable=False),
        sa.Column("patch", sa.Integer(), nullable=False),
        sa.Column("eligible", sa.Boolean(), nullable=False),
        sa.Column("exclude_from_latest", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("replacement", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("end_of_life", sa.DateTime, nullable=True),
        sa.Column("block_deletion", sa.Boolean(), nullable=False),
        sa.Column("excluded_regions", sa.JSON(), nullable=False),
        sa.Column("deleted_at", sa.DateTime, nullable=True),
        sa.Column("purge_at", sa.DateTime, nullable=True),
        sa.ForeignKeyConstraint(
            ["definition_id"], ["definitions.id"], name="fk_versions_definition_id_definitions"
        ),
        sa.ForeignKeyConstraint(
            ["image_id"], ["images.id"], name="fk_versions_image_id_images", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("image_id", name="pk_versions"),
        sa.UniqueConstraint("definition_id", "major", "minor", "patch", name="uq_versions_number"),
    )
    with op.batch_alter_table("versions") as batch_op:
        batch_op.create_index(
            "ix_versions_latest",
            ["definition_id", "eligible", "major", "minor", "patch", "end_of_life"],
            unique=False,
        )
        batch_op.create_index(
            "ix_versions_deleted",
            ["definition_id", "major", "minor", "patch"],
            unique=False,
            sqlite_where=sa.text("deleted_at IS NOT NULL"),
        )
        batch_op.create_index("ix_versions_purge_at", ["definition_id", "purge_at"], unique=False)


def _alter() -> None:
    with op.batch_alter_table("disks") as batch_op:
        batch_op.add_column(
            sa.Column(
                "subscription", sa.String(length=36), nullable=False, server_default=_SUBSCRIPTION
            )
        )
        batch_op.add_column(
            sa.Column(
                "resource_group",
                sa.String(length=90, collation="NOCASE"),
                nullable=False,
                server_default="default",
            )
        )
        batch_op.alter_column(
            "name",
            existing_type=sa.VARCHAR(length=80),
            type_=sa.String(length=80, collation="NOCASE"),
            existing_nullable=False,
        )
        batch_op.drop_constraint("uq_disks_name", type_="unique")
        batch_op.create_unique_constraint(
            "uq_disks_name", ["subscription", "resource_group", "name"]
        )

    with op.batch_alter_table("images") as batch_op:
        batch_op.add_column(
            sa.Column(
                "subscription", sa.String(length=36), nullable=False, server_default=_SUBSCRIPTION
            )
        )
        batch_op.add_column(
            sa.Column(
                "resource_group",
                sa.String(length=90, collation="NOCASE"),
                nullable=False,
                server_default="default",
            )
        )
        batch_op.add_column(
            sa.Column("shelf", sa.String(length=16), nullable=False, server_default="Managed")
        )
        batch_op.add_column(sa.Column("parents", sa.JSON(), nullable=False, server_default="[]"))
        batch_op.add_column(sa.Column("plan", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("entitlement", sa.String(length=64), nullable=True))
        batch_op.alter_column(
            "name",
            existing_type=sa.VARCHAR(length=80),
            type_=sa.Text(collation="NOCASE"),
            existing_nullable=False,
        )
        batch_op.drop_constraint("uq_images_name", type_="unique")
        batch_op.create_unique_constraint(
            "uq_images_name", ["subscription", "resource_group", "name"]
        )
        batch_op.create_index(
            "ix_images_shelf", ["shelf", "subscription", "resource_group", "name"], unique=False
        )
        batch_op.create_index(
            "ix_images_planned", ["created_at"], sqlite_where=sa.text("plan IS NOT NULL")
        )

    with op.batch_alter_table("vms") as batch_op:
        batch_op.add_column(
            sa.Column(
                "subscription", sa.String(length=36), nullable=False, server_default=_SUBSCRIPTION
            )
        )
        batch_op.add_column(
            sa.Column(
                "resource_group",
                sa.String(length=90, collation="NOCASE"),
                nullable=False,
                server_default="default",
            )
        )
        batch_op.add_column(sa.Column("plan", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("entitlement", sa.String(length=64), nullable=True))
        batch_op.alter_column(
            "name",
            existing_type=sa.VARCHAR(length=64),
            type_=sa.String(length=64, collation="NOCASE"),
            existing_nullable=False,
        )
        batch_op.drop_constraint("uq_vms_name", type_="unique")
        batch_op.create_unique_constraint("uq_vms_name", ["subscription", "resource_group", "name"])


def downgrade() -> None:
    """There is no way back: names need not be unique any more."""
    raise NotImplementedError
