"""Which deployment the database is of, and which server works on it."""

import sqlalchemy as sa
from alembic import op

revision = "0013_deployment"
down_revision = "0012_forgetting"


def upgrade() -> None:
    op.create_table(
        "deployment",
        sa.Column("deployment_id", sa.String(), primary_key=True),
        sa.Column("server_id", sa.String(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("deployment")
