"""A disk may change to another overlay file in the transaction that says so."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; existing overlays are named by their disk's id."""
    op.add_column("disks", sa.Column("overlay", sa.String(36)))


def downgrade() -> None:
    """Take it out again."""
    op.drop_column("disks", "overlay")
