"""Offline replay of a model version: which rows, scores with intervals, reference planners, the gate, the report. `python -m replay`."""
