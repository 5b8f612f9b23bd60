"""Snapshots of runs."""

import sqlalchemy as sa
from alembic import op

revision = "0009_snapshots"
down_revision = "0008_audit_and_usage"


def upgrade() -> None:
    op.create_table(
        "snapshots",
        sa.Column("run_id", sa.String, sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("seq_id", sa.BigInteger, nullable=False),
        sa.Column("directory", sa.String, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("snapshots")
