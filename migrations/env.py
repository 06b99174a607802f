"""Alembic's entry: the connection comes from proxy.store.migrate, its transaction already open."""

from __future__ import annotations

from alembic import context

from proxy.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
