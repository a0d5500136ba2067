"""Hours under fire: whether every acknowledged event is stored exactly once, whatever is killed meanwhile."""
