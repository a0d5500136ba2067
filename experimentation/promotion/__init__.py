"""From a passed replay to traffic: the baseline of a candidate and what the arms of its run serve."""
