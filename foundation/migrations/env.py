"""Alembic's entry point: runs revisions on the connection that `migrate.py` opened."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table_schema="exp", transaction_per_migration=False)
with context.begin_transaction():
    context.run_migrations()
