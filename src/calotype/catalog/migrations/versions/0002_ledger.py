"""The ledger of the store: operations, packs on their way out, roots."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "ledger",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("repository", sa.String(64)),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ledger"),
    )
    op.create_table(
        "ledger_operations",
        sa.Column("number", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("until", sa.Double, nullable=False),
        sa.Column("prune", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_ledger_operations"),
    )
    op.create_table(
        "ledger_packs",
        sa.Column("key", sa.String(80), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("since", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_ledger_packs"),
    )
    op.create_index("ix_ledger_packs_state", "ledger_packs", ["state"])
    op.create_table(
        "ledger_roots",
        sa.Column("index", sa.String(64), nullable=False),
        sa.Column("data", sa.LargeBinary),
        sa.PrimaryKeyConstraint("index", name="pk_ledger_roots"),
    )


def downgrade() -> None:
    """Drop the tables."""
    for table in ("ledger_roots", "ledger_packs", "ledger_operations", "ledger"):
        op.drop_table(table)
