"""Targeting, layers, overrides, key rotation, and a notification at each change of what is served (docs/data-model.md)."""

from foundation.migrations import run_sql_beside

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make everything that stands in the SQL file beside this one."""
    run_sql_beside(__file__)
