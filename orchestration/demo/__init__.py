"""`lifecycle demo`: the whole graph once, through a real Dagster, with a table at the end. Safe to run again, also after a kill."""
