"""The first schema: images and their disks, VMs, managed disks."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "images",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("os_type", sa.String(16), nullable=False),
        sa.Column("os_state", sa.String(16), nullable=False),
        sa.Column("architecture", sa.String(8), nullable=False),
        sa.Column("generation", sa.String(2), nullable=False),
        sa.Column("label", sa.Text),
        sa.Column("family", sa.Text),
        sa.Column("description", sa.Text),
        sa.Column("eula", sa.Text),
        sa.Column("vcpus", sa.Integer),
        sa.Column("memory", sa.BigInteger),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("provenance", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_images"),
        sa.UniqueConstraint("name", name="uq_images_name"),
    )
    op.create_table(
        "image_disks",
        sa.Column("image_id", sa.String(36), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("lun", sa.Integer),
        sa.Column("index", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("caching", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("image_id", "position", name="pk_image_disks"),
        sa.ForeignKeyConstraint(
            ["image_id"], ["images.id"], name="fk_image_disks_image_id_images", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("image_id", "lun", name="uq_image_disks_lun"),
    )
    op.create_index("ix_image_disks_index", "image_disks", ["index"])
    op.create_table(
        "vms",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("vcpus", sa.Integer, nullable=False),
        sa.Column("memory", sa.BigInteger, nullable=False),
        sa.Column("os_type", sa.String(16), nullable=False),
        sa.Column("generation", sa.String(2), nullable=False),
        sa.Column("architecture", sa.String(8), nullable=False),
        sa.Column("image_id", sa.String(36)),
        sa.Column("os_state", sa.String(16), nullable=False),
        sa.Column("computer_name", sa.String(64)),
        sa.Column("admin_user", sa.String(64)),
        sa.Column("ssh_port", sa.Integer, nullable=False),
        sa.Column("forwards", sa.JSON, nullable=False),
        sa.Column("mac", sa.String(17), nullable=False),
        sa.Column("network", sa.String(16), nullable=False),
        sa.Column("uid", sa.Integer),
        sa.Column("deallocated", sa.Boolean, nullable=False),
        sa.Column("notes", sa.JSON, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_vms"),
        sa.UniqueConstraint("name", name="uq_vms_name"),
        sa.UniqueConstraint("ssh_port", name="uq_vms_ssh_port"),
        sa.UniqueConstraint("mac", name="uq_vms_mac"),
        sa.UniqueConstraint("uid", name="uq_vms_uid"),
    )
    op.create_index("ix_vms_image_id", "vms", ["image_id"])
    op.create_table(
        "disks",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("index", sa.String(64)),
        sa.Column("image_id", sa.String(36)),
        sa.Column("vm_id", sa.String(36)),
        sa.Column("lun", sa.Integer),
        sa.Column("caching", sa.String(16), nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_disks"),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name="fk_disks_vm_id_vms"),
        sa.UniqueConstraint("name", name="uq_disks_name"),
        sa.UniqueConstraint("vm_id", "lun", name="uq_disks_lun"),
    )
    op.create_index("ix_disks_index", "disks", ["index"])


def downgrade() -> None:
    """Drop the tables."""
    for table in ("disks", "vms", "image_disks", "images"):
        op.drop_table(table)
