"""The audit log, and usage by the hour."""

import sqlalchemy as sa
from alembic import op

revision = "0008_audit_and_usage"
down_revision = "0007_keys"


def upgrade() -> None:
    op.create_table(
        "audit_log",
        sa.Column("entry_id", sa.Integer(), nullable=False),
        sa.Column("timestamp", sa.Float(), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("entry_id"),
    )
    op.create_index("audit_log_by_time", "audit_log", ["timestamp"], unique=False)
    op.create_table(
        "usage",
        sa.Column("hour", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("stream", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("use", sa.String(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hour", "stream", "use", "owner", "session_id", "base_model"),
    )
    op.create_index("usage_by_owner", "usage", ["owner", "hour"], unique=False)


def downgrade() -> None:
    op.drop_index("usage_by_owner", table_name="usage")
    op.drop_table("usage")
    op.drop_index("audit_log_by_time", table_name="audit_log")
    op.drop_table("audit_log")
