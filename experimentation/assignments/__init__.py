"""Which variant a unit gets: bucketing, targeting, the assignment rules in order, and storage that is safe for concurrent writers."""
