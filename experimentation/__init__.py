"""Experiments without HTTP: their runs, the assignment of units, configuration files and their sync, policies, statistics, promotion."""
