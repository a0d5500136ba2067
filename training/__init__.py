"""Fine-tuning and the packaged planner model. Runs without Dagster; imports `planner` and nothing else of the project."""
