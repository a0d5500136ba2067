"""Logs of any origin as events: what a mapping says, files as rows, rows as events, storing them once."""
