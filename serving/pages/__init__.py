"""Pages that the API serves."""
