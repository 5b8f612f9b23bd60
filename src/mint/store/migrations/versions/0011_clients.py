"""Operations without a number."""

import sqlalchemy as sa
from alembic import op

revision = "0011_clients"
down_revision = "0010_weights_tokens"


def upgrade() -> None:
    op.create_table(
        "unnumbered",
        sa.Column("request_id", sa.String, primary_key=True),
        sa.Column("stream", sa.String, nullable=False),
        sa.Column("after", sa.BigInteger, nullable=False),
        sa.Column("retry_key", sa.String),
    )
    op.create_index("unnumbered_of_stream", "unnumbered", ["stream", "after"])
    op.create_index("unnumbered_by_key", "unnumbered", ["stream", "retry_key"], unique=True)


def downgrade() -> None:
    op.drop_table("unnumbered")
