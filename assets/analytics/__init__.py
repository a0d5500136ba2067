"""The analytics stage: dbt models as assets, dbt tests as checks."""
