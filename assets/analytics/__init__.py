"""Analytics: dbt's models and tests as assets and checks."""
