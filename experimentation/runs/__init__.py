"""The life of an experiment's runs: what a run is, its allocations and layers, starting, ramping, completing and importing it."""
