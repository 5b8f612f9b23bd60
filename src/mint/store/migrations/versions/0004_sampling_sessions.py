"""Revisions that live with their session, samplers that follow a run, and copies of sampling clients."""

import sqlalchemy as sa
from alembic import op

revision = "0004_sampling_sessions"
down_revision = "0003_rollout_correction"


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("session_id", sa.String(), nullable=True))
    op.create_index(op.f("ix_checkpoints_session_id"), "checkpoints", ["session_id"], unique=False)
    op.execute(
        "UPDATE checkpoints SET session_id = (SELECT session_id FROM samplers"
        " WHERE samplers.directory = checkpoints.directory AND samplers.model_path IS NULL)"
    )
    op.add_column("samplers", sa.Column("inflight_run_id", sa.String(), nullable=True))
    op.create_index(op.f("ix_samplers_inflight_run_id"), "samplers", ["inflight_run_id"], unique=False)
    op.add_column("samplers", sa.Column("inflight_seq_id", sa.BigInteger(), nullable=True))
    op.add_column("samplers", sa.Column("num_clones", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("samplers", "num_clones")
    op.drop_column("samplers", "inflight_seq_id")
    op.drop_index(op.f("ix_samplers_inflight_run_id"), table_name="samplers")
    op.drop_column("samplers", "inflight_run_id")
    op.drop_index(op.f("ix_checkpoints_session_id"), table_name="checkpoints")
    op.drop_column("checkpoints", "session_id")
