"""Checkpoints that can be published, copied, discarded; which operations read which folder."""

import sqlalchemy as sa
from alembic import op

revision = "0005_checkpoints"
down_revision = "0004_sampling_sessions"

FACTS = ("directory", "reference")
"""Where earlier versions noted the folder that an operation reads."""


def upgrade() -> None:
    op.add_column("runs", sa.Column("copied", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("checkpoints", sa.Column("kind", sa.String(), nullable=False, server_default="sampler"))
    op.add_column("checkpoints", sa.Column("public", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("operations", sa.Column("directory", sa.String(), nullable=True))
    op.create_table(
        "discarded_folders",
        sa.Column("directory", sa.String(), nullable=False),
        sa.Column("discarded_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("directory"),
    )
    op.execute("UPDATE checkpoints SET kind = 'training' WHERE path LIKE '%/weights/%'")
    _discard_overwritten()
    _note_folders()
    op.create_index("checkpoints_of_run", "checkpoints", ["run_id", "kind", "created_at"])
    op.create_index("checkpoints_by_directory", "checkpoints", ["directory"])
    _partial("checkpoints_expiring", "checkpoints", ["expires_at"], "expires_at IS NOT NULL")
    _partial("operations_by_directory", "operations", ["directory", "status", "kind"], "directory IS NOT NULL")
    op.create_index(op.f("ix_samplers_directory"), "samplers", ["directory"])
    op.drop_index(op.f("ix_checkpoints_run_id"), table_name="checkpoints")


def _discard_overwritten() -> None:
    """Checkpoints that have lost their name to another stayed for good."""
    overwritten = "FROM checkpoints WHERE path IS NULL AND session_id IS NULL"
    op.execute(f"INSERT INTO discarded_folders (directory, discarded_at) SELECT directory, created_at {overwritten}")
    op.execute(f"DELETE {overwritten}")


def _note_folders() -> None:
    """Of every operation, the folder among its facts."""
    operations = sa.table("operations", *map(sa.column, ("request_id", "directory")), sa.column("facts", sa.JSON))
    connection = op.get_bind()
    for request_id, facts in connection.execute(sa.select(operations.c.request_id, operations.c.facts)).all():
        folder = next((facts[name] for name in FACTS if facts.get(name)), None)
        if folder is not None:
            noted = sa.update(operations).where(operations.c.request_id == request_id).values(directory=folder)
            connection.execute(noted)


def _partial(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def downgrade() -> None:
    op.create_index(op.f("ix_checkpoints_run_id"), "checkpoints", ["run_id"])
    op.drop_index(op.f("ix_samplers_directory"), table_name="samplers")
    op.drop_index("operations_by_directory", table_name="operations")
    for name in ("expiring", "by_directory", "of_run"):
        op.drop_index(f"checkpoints_{name}", table_name="checkpoints")
    op.drop_table("discarded_folders")
    op.drop_column("operations", "directory")
    op.drop_column("checkpoints", "public")
    op.drop_column("checkpoints", "kind")
    op.drop_column("runs", "copied")
