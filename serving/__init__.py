"""The HTTP services over `experimentation`: assignments, events, health and metrics."""
