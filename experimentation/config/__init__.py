"""experiments.yml and policies.yml: what they say, how the database differs from it, and the steps that make both agree."""
