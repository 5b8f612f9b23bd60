"""Which server works on the database."""

import sqlalchemy as sa
from alembic import op

revision = "0012_serving"
down_revision = "0009_snapshots"


def upgrade() -> None:
    op.create_table("serving", sa.Column("server_id", sa.String(), primary_key=True))


def downgrade() -> None:
    op.drop_table("serving")
