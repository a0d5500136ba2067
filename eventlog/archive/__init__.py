"""The Parquet archive: hours written and counted, days leaving PostgreSQL and coming back, events cleaned for reading."""
