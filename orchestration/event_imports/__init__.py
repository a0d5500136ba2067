"""Bringing logs of any origin in as events: what a mapping says, files as records, records as events, storing them once."""
