"""Keys. Objects keep their owners: a key given at the start owns what it did before."""

import sqlalchemy as sa
from alembic import op

revision = "0007_keys"
down_revision = "0006_listings"


def upgrade() -> None:
    op.create_table(
        "keys",
        sa.Column("key_id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.Column("max_live_runs", sa.BigInteger(), nullable=True),
        sa.Column("max_queued_operations", sa.BigInteger(), nullable=True),
        sa.Column("max_stored_bytes", sa.BigInteger(), nullable=True),
        sa.Column("requests_per_second", sa.Float(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key_id"),
        sa.UniqueConstraint("digest"),
        sa.UniqueConstraint("version"),
    )
    op.create_index(op.f("ix_keys_owner"), "keys", ["owner"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_keys_owner"), table_name="keys")
    op.drop_table("keys")
