"""The revisions in order, each a module and an SQL file."""
