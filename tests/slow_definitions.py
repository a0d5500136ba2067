"""A code location whose only asset takes minutes, so that tests can interrupt it."""

import time

import dagster as dg


@dg.asset
def slow() -> None:
    """Sleeps, in small steps, far longer than any test."""
    for _ in range(6000):
        time.sleep(0.1)


defs = dg.Definitions(
    assets=[slow], jobs=[dg.define_asset_job("slow_job", selection=["slow"], executor_def=dg.in_process_executor)]
)
