"""The lineage graph: one folder a stage, and what the stages share.

Modules called `asset.py` (and `resources.py`, `partitions.py`) know Dagster; every other module here is plain functions over
frames and an object store, which run and are tested without it.
"""
