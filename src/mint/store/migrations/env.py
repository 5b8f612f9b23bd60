"""Run by Alembic; the connection comes from `mint.store.database`."""

from alembic import context

from mint.store import audit, keys, usage
from mint.store.schema import metadata

TABLES = audit.audit_log, keys.keys, usage.usage
"""Those of modules of their own, which `metadata` has once they are imported."""

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
