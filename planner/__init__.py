"""The sample product: a weekly meal planner. Users replace this package by their own (see `product.py`).

Imports none of the other packages, and no Dagster, FastAPI or torch.
"""
