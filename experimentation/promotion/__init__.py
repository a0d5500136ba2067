"""From a passed replay to traffic: what a candidate is compared with and what its arms serve."""
