"""`lifecycle demo`: the whole river once, through a real Dagster, ending in a table. Safe to run again and after a kill."""
