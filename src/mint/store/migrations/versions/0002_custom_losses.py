"""Custom losses that clients upload."""

import sqlalchemy as sa
from alembic import op

revision = "0002_custom_losses"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "custom_losses",
        sa.Column("loss_id", sa.String(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("graph", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sessions.session_id"],
        ),
        sa.PrimaryKeyConstraint("loss_id"),
    )
    op.create_index(op.f("ix_custom_losses_owner"), "custom_losses", ["owner"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_custom_losses_owner"), table_name="custom_losses")
    op.drop_table("custom_losses")
