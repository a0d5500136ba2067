"""The event stage: events are archived from PostgreSQL, by hour and as history, and then cleaned."""
