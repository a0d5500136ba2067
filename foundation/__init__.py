"""The base of all rooms: settings, the root of user-facing errors, locks, audit log, API keys, migrations of `exp`, object store."""
