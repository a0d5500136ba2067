"""The Parquet archive of events: archiving and counting hours, retention and restore of days, cleaning for readers."""
