"""The event service: receives events, stores them durably, and drains the spool."""
