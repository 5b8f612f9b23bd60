"""What is forgotten after a while can be found; the named checkpoints of an owner are counted."""

import sqlalchemy as sa
from alembic import op

revision = "0012_forgetting"
down_revision = "0011_clients"


def upgrade() -> None:
    op.add_column("sessions", sa.Column("forgotten_at", sa.Float))
    forgotten_at = sa.column("forgotten_at", sa.Float)
    _partial("sessions_forgotten", "sessions", ["forgotten_at"], forgotten_at.is_not(None))
    _partial("sessions_remembered", "sessions", ["last_heartbeat"], forgotten_at.is_(None))
    _partial("operations_ended", "operations", ["finished_at"], sa.column("finished_at").is_not(None))
    expiring = sa.and_(sa.column("path").is_not(None), sa.column("expires_at").is_not(None))
    _partial("checkpoints_expiring_of_owner", "checkpoints", ["owner", "expires_at"], expiring)
    op.create_table(
        "named_checkpoints",
        sa.Column("owner", sa.String, primary_key=True),
        sa.Column("total", sa.BigInteger, nullable=False),
    )
    op.execute(
        "INSERT INTO named_checkpoints (owner, total) "
        "SELECT owner, count(*) FROM checkpoints WHERE path IS NOT NULL GROUP BY owner"
    )


def _partial(name: str, table: str, columns: list[str], where: sa.ColumnElement[bool]) -> None:
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    op.drop_table("named_checkpoints")
    op.drop_index("checkpoints_expiring_of_owner", table_name="checkpoints")
    op.drop_index("operations_ended", table_name="operations")
    op.drop_index("sessions_remembered", table_name="sessions")
    op.drop_index("sessions_forgotten", table_name="sessions")
    op.drop_column("sessions", "forgotten_at")
