"""docs/operations.md lists all metrics, readiness errors and tracing settings."""

import re

from foundation.settings import PROJECT_ROOT
from serving import health
from serving.http import tracing
from serving.http.metrics import Metrics

PAGE = (PROJECT_ROOT / "docs" / "operations.md").read_text()


def rows(heading: str) -> set[str]:
    """The first cells of all table rows in a section."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE))


def test_page_lists_exactly_the_existing_metrics() -> None:
    exported = {
        f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in Metrics().registry.collect()
    }
    assert exported and rows("Metrics") == exported


def test_page_lists_every_readiness_error() -> None:
    errors = {error for error, _ in health._SCHEMA.values()} | {"database_unreachable", health._DATABASE_REJECTS[0]}
    assert errors <= rows("Health")


def test_page_describes_tracing_correctly() -> None:
    section = PAGE.partition("\n## Traces\n")[2]
    assert tracing.INSTALL in section and f"`{tracing.SERVICE_NAME}`" in section
    assert f"at most {tracing.FLUSH_SECONDS:g} s" in PAGE
