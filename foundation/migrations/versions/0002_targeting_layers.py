"""Targeting, layers, overrides, key rotation, and a notification at each change of what is served (docs/data-model.md)."""

from foundation.migrations import run_sql_beside

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Run the SQL file with the same name."""
    run_sql_beside(__file__)
