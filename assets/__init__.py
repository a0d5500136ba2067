"""The lineage graph: one folder per stage, and code shared by the stages.

Only `asset.py`, `resources.py`, `partitions.py` and the other top-level modules use Dagster. The rest is plain functions over frames and
an object store, which run and are tested without it.
"""
