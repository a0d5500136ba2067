"""The sample product: a weekly meal planner. Users replace this package with their own (see `product/protocol.py`)."""
