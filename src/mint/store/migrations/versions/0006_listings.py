"""Lists of runs, sessions and checkpoints, newest first; every session is of a project."""

import sqlalchemy as sa
from alembic import op

revision = "0006_listings"
down_revision = "0005_checkpoints"


def upgrade() -> None:
    op.execute("UPDATE sessions SET project_id = 'default' WHERE project_id IS NULL")
    op.create_index("sessions_listed", "sessions", ["owner", "created_at", "session_id"])
    op.create_index("sessions_of_project", "sessions", ["owner", "project_id", "created_at", "session_id"])
    op.create_index("runs_listed", "runs", ["owner", "created_at", "run_id"])
    op.create_index("checkpoints_stored", "checkpoints", ["owner", "directory", "size_bytes"])
    listed = sa.column("path").is_not(None)
    _partial("checkpoints_listed", ["owner", "created_at", "path", "expires_at"], listed)
    _partial("checkpoints_published", ["run_id"], sa.column("public", sa.Boolean) == sa.true())
    for table in ("sessions", "runs", "checkpoints"):
        op.drop_index(op.f(f"ix_{table}_owner"), table_name=table)


def _partial(name: str, columns: list[str], where: sa.ColumnElement[bool]) -> None:
    op.create_index(name, "checkpoints", columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    for table in ("sessions", "runs", "checkpoints"):
        op.create_index(op.f(f"ix_{table}_owner"), table, ["owner"])
    op.drop_index("checkpoints_published", table_name="checkpoints")
    op.drop_index("checkpoints_listed", table_name="checkpoints")
    op.drop_index("checkpoints_stored", table_name="checkpoints")
    op.drop_index("runs_listed", table_name="runs")
    op.drop_index("sessions_of_project", table_name="sessions")
    op.drop_index("sessions_listed", table_name="sessions")
