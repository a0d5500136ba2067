"""What every room stands on: settings, the root of user-facing errors, the audit log, API keys, migrations of `exp`, the object store."""
