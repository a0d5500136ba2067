"""Estimates with intervals. Pure functions over numbers; plots and SQL live elsewhere."""
