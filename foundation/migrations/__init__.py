"""Versioned schema changes: one SQL file a revision, run by alembic. Changes go into a new file; a released one is never edited."""

from pathlib import Path
from typing import Any

from alembic import op


def run_sql_beside(revision_file: str) -> None:
    """Run the SQL file of the same name. By the driver itself: SQLAlchemy would take a percent sign for a placeholder."""
    driver: Any = op.get_bind().connection.driver_connection
    driver.execute(Path(revision_file).with_suffix(".sql").read_text(encoding="utf-8"))
