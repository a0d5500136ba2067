"""Estimates with intervals: pure functions over numbers."""
