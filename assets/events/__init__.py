"""Events on their way out of PostgreSQL: the hourly and history archive, then the cleaned days."""
