"""Weights access tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0010_weights_tokens"
down_revision = "0009_snapshots"


def upgrade() -> None:
    op.create_table(
        "weights_tokens",
        sa.Column("token_id", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String, nullable=False, unique=True),
        sa.Column("checkpoint_id", sa.String, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float),
    )
    op.create_index("weights_tokens_of_checkpoint", "weights_tokens", ["checkpoint_id"])


def downgrade() -> None:
    op.drop_table("weights_tokens")
