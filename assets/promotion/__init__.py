"""Promotion: from a replayed model version to a candidate that a tenth of the units get."""
