"""Offline replay: how good are the plans of a model version, on rows that it never saw, beside those of the baseline?"""
