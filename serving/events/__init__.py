"""The event service: from a request to durable events, the spool and its draining."""
