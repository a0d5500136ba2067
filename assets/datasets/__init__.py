"""Immutable training datasets: their checks, their three files, their summary."""
