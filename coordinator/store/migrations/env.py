"""Run by Alembic: `coordinator.store.migrate` hands over the connection, and owns its transaction."""

from __future__ import annotations

from alembic import context

from coordinator.store.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,
    render_as_batch=True,  # SQLite changes a table by making it anew
)
with context.begin_transaction():
    context.run_migrations()
