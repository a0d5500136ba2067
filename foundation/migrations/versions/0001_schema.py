"""The schemas `exp` and `planner` (docs/data-model.md)."""

from foundation.migrations import run_sql_beside

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make everything that stands in the SQL file beside this one."""
    run_sql_beside(__file__)
