"""docs/operations.md names what there is: metrics, errors of readiness, variables of traces."""

import re

from foundation.settings import PROJECT_ROOT
from serving import health
from serving.http import tracing
from serving.http.metrics import Metrics

PAGE = (PROJECT_ROOT / "docs" / "operations.md").read_text()


def rows(heading: str) -> set[str]:
    """The first cells of the tables of a section."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE))


def test_every_metric_is_there_and_no_other() -> None:
    counted = {
        f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in Metrics().registry.collect()
    }
    assert counted and rows("Metrics") == counted


def test_every_error_of_readiness_is_there() -> None:
    errors = {error for error, _ in health._SCHEMA.values()} | {"database_unreachable", health._DATABASE_REJECTS[0]}
    assert errors <= rows("Health")


def test_traces_are_told_as_they_are() -> None:
    section = PAGE.partition("\n## Traces\n")[2]
    assert tracing.INSTALL in section and f"`{tracing.SERVICE_NAME}`" in section
    assert f"at most {tracing.FLUSH_SECONDS:g} s" in PAGE
