"""experiments.yml and policies.yml: reading them with line numbers, comparing them with the database, applying the difference."""
