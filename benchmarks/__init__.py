"""Measuring, not in the wheel: `make bench` gives costs as ratios to a floor, `make soak` counts events while processes are killed."""
