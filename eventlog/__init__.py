"""Events: validating, storing each once, the spool while PostgreSQL is away, partitions, dead letters. No HTTP, no Dagster."""
