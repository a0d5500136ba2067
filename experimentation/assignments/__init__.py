"""Which variant a unit gets: bucketing, targeting, the rules in their order, and storing units so that racing writers agree."""
