"""The base of all rooms: settings, user-facing errors, locks, audit log, API keys, migrations of `exp`, object store, table files."""
