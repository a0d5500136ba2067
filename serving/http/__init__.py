"""What all routes share: keys, limits, errors, logs, metrics, traces, the database pool."""
