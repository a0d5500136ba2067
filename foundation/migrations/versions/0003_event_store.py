"""Dead letters, what is archived, restored and erased (docs/data-model.md)."""

from foundation.migrations import run_sql_beside

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Run the SQL file with the same name."""
    run_sql_beside(__file__)
