"""The HTTP services for assignments and events, as one FastAPI application."""
