"""Offline replay: how good a model version's plans are on rows it never saw, compared with the baseline's."""
