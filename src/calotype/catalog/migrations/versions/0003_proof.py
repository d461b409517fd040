"""What was proved of an image; restore points of VMs; the audit."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns and create the tables."""
    op.add_column(
        "images", sa.Column("stage", sa.String(16), nullable=False, server_default="Staged")
    )
    op.add_column("images", sa.Column("verdict", sa.String(16)))
    op.add_column(
        "vms", sa.Column("generalized", sa.Boolean, nullable=False, server_default=sa.false())
    )
    op.create_table(
        "restore_points",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("vm_id", sa.String(36), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("consistency", sa.String(16), nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_restore_points"),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name="fk_restore_points_vm_id_vms"),
    )
    op.create_index("ix_restore_points_vm_id", "restore_points", ["vm_id"])
    op.create_table(
        "restore_point_disks",
        sa.Column("point_id", sa.String(36), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("disk_id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("index", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("image_id", sa.String(36)),
        sa.Column("lun", sa.Integer),
        sa.Column("caching", sa.String(16), nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("point_id", "position", name="pk_restore_point_disks"),
        sa.ForeignKeyConstraint(
            ["point_id"],
            ["restore_points.id"],
            name="fk_restore_point_disks_point_id_restore_points",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_restore_point_disks_index", "restore_point_disks", ["index"])
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("resource", sa.Text, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_audit"),
    )


def downgrade() -> None:
    """Take them out again."""
    for table in ("audit", "restore_point_disks", "restore_points"):
        op.drop_table(table)
    op.drop_column("vms", "generalized")
    op.drop_column("images", "verdict")
    op.drop_column("images", "stage")
