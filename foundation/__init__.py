"""What every room stands on: settings, user-facing errors, audit log, API keys, migrations of `exp`, object store, table files."""
