"""Versioned schema changes, run by alembic: one SQL file per revision. A change needs a new revision: released files are never edited."""

from pathlib import Path
from typing import Any

from alembic import op


def run_sql_beside(revision_file: str) -> None:
    """Run the SQL file with the same name, through the driver: SQLAlchemy would take a percent sign for a placeholder."""
    driver: Any = op.get_bind().connection.driver_connection
    driver.execute(Path(revision_file).with_suffix(".sql").read_text(encoding="utf-8"))
