"""Erasing a unit wherever the platform holds it."""
