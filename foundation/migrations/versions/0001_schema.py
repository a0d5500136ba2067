"""The schemas `exp` and `planner` (docs/data-model.md)."""

from foundation.migrations import run_sql_beside

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Run the SQL file with the same name."""
    run_sql_beside(__file__)
