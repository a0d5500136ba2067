"""Versioned schema changes: one SQL file a revision, run by alembic. Changes go into a new file; a released one is never edited."""
