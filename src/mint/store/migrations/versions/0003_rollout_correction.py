"""A run's rollout correction."""

import sqlalchemy as sa
from alembic import op

revision = "0003_rollout_correction"
down_revision = "0002_custom_losses"


def upgrade() -> None:
    op.add_column("runs", sa.Column("rollout_correction", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("runs", "rollout_correction")
