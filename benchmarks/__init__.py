"""Benchmarks, not in the wheel: `make bench` measures speed against a floor, `make soak` counts events while processes are killed."""
