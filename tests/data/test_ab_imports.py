"""Two real experiments, imported with the mappings in the docs and compared with counts of their files by polars.

The literal numbers come from the files' own descriptions: 90,189 players, 8,077 people.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from conftest import SHARED_DATA
from dbt_support import Warehouse, new_warehouse
from import_support import rows, store

from eventlog.imports.mapping_file import read_mapping
from foundation.settings import PROJECT_ROOT

EXAMPLES = PROJECT_ROOT / "docs" / "examples"
UNITS = """
SELECT v.name, count(*), count(DISTINCT a.unit_id), min(a.propensity)::text, min(a.assigned_at)::text, max(a.assigned_at)::text
FROM exp.assignments a JOIN exp.variants v ON v.id = a.variant_id JOIN exp.experiments e ON e.id = a.experiment_id
WHERE e.name = %s AND e.status = 'completed' GROUP BY v.name ORDER BY v.name
"""
SUMS = """
SELECT v.name, metric.key, count(*), sum(metric.value::numeric)::float8, max(metric.value::numeric)::float8
FROM exp.events e
JOIN exp.variants v ON v.id::text = e.experiments -> 0 ->> 'variant_id'
JOIN exp.experiments x ON x.id = v.experiment_id
CROSS JOIN LATERAL jsonb_each_text(e.metrics) AS metric
WHERE x.name = %s GROUP BY v.name, metric.key ORDER BY v.name, metric.key
"""
MEANS = """
SELECT variant_name, metric_name, sum(count)::bigint, sum(count * mean) / sum(count) FROM exp.v_experiment_metrics
WHERE experiment_name = %s AND bucket_type = 'daily' GROUP BY variant_name, metric_name ORDER BY variant_name, metric_name
"""
EXPOSED = """
SELECT v.name, count(first_exposed_at), count(*) FROM analytics.int_unit_exposures u
JOIN exp.variants v ON v.id = u.variant_id JOIN exp.experiments e ON e.id = u.experiment_id
WHERE e.name = %s GROUP BY v.name ORDER BY v.name
"""


def data_file(name: str) -> Path:
    path = SHARED_DATA / "ab_tests" / name
    if not path.exists():
        pytest.skip(f"the real experiment is not at {path}")
    return path


@pytest.fixture(scope="module")
def warehouse(
    postgres_server: str, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Warehouse]:
    """A database with both experiments imported."""
    files = {name: data_file(f"{name}.csv") for name in ("cookie_cats", "adsmart")}
    with new_warehouse(postgres_server, migrated_template, tmp_path_factory.mktemp("dbt")) as warehouse:
        for name, path in files.items():
            imported = store(warehouse.url, path, read_mapping(EXAMPLES / f"{name}.yml"))
            assert imported.tally.rejected == 0 and imported.new_events == imported.tally.total_events
        yield warehouse


@pytest.fixture(scope="module")
def players() -> pl.DataFrame:
    return pl.read_csv(data_file("cookie_cats.csv"))


@pytest.fixture(scope="module")
def people() -> pl.DataFrame:
    return pl.read_csv(data_file("adsmart.csv"))


def sums(frame: pl.DataFrame, variant: str, *metrics: str) -> list[tuple[str, str, int, float, float]]:
    """The expected result of SUMS."""
    return [
        (
            str(name),
            metric,
            len(part),
            float(part[metric].cast(pl.Int64).sum()),
            float(part.select(pl.col(metric).cast(pl.Int64).max()).item()),
        )
        for (name,), part in sorted(frame.group_by(variant), key=lambda group: str(group[0]))
        for metric in sorted(metrics)
    ]


def test_every_player_is_stored_once_with_its_metrics(warehouse: Warehouse, players: pl.DataFrame) -> None:
    counted = dict(players["version"].value_counts().iter_rows())
    assert sum(counted.values()) == 90_189
    start = "2017-01-01 00:00:00+00"
    expected = [(name, count, count, "0.5000", start, start) for name, count in sorted(counted.items())]
    assert rows(warehouse.url, UNITS, ["cookie_cats"]) == expected
    stored = rows(warehouse.url, SUMS, ["cookie_cats"])
    assert stored == sums(players, "version", "retention_1", "retention_7", "sum_game_rounds")
    # The player with an absurd number of rounds is kept.
    assert max(row[4] for row in stored) == 49_854


def test_every_person_is_stored_once_at_their_hour(warehouse: Warehouse, people: pl.DataFrame) -> None:
    day = pl.col("date").str.to_datetime("%Y-%m-%d")
    hours = people.with_columns((day + pl.duration(hours=pl.col("hour"))).alias("at"))
    expected = [
        (
            str(name),
            len(part),
            part["auction_id"].n_unique(),
            "0.5000",
            f"{part.select(pl.col('at').min()).item()}+00",
            f"{part.select(pl.col('at').max()).item()}+00",
        )
        for (name,), part in sorted(hours.group_by("experiment"), key=lambda group: str(group[0]))
    ]
    assert sum(row[1] for row in expected) == 8_077
    assert rows(warehouse.url, UNITS, ["adsmart"]) == expected
    assert rows(warehouse.url, SUMS, ["adsmart"]) == sums(people, "experiment", "yes", "no")


def test_dbt_computes_the_same_means(warehouse: Warehouse, players: pl.DataFrame, people: pl.DataFrame) -> None:
    statuses = warehouse.dbt("build")
    assert {"fail", "warn"}.isdisjoint(statuses.values())
    for name, frame, variant, metrics in (
        ("cookie_cats", players, "version", ("retention_1", "retention_7", "sum_game_rounds")),
        ("adsmart", people, "experiment", ("yes", "no")),
    ):
        means = rows(warehouse.url, MEANS, [name])
        expected = [
            (arm, metric, count, total / count) for arm, metric, count, total, _ in sums(frame, variant, *metrics)
        ]
        assert [row[:3] for row in means] == [row[:3] for row in expected]
        assert [row[3] for row in means] == pytest.approx([row[3] for row in expected], rel=1e-12)
    # The first file does not say who reached the gate. In the second, everybody with a row was shown an ad.
    assert {exposed for _, exposed, _ in rows(warehouse.url, EXPOSED, ["cookie_cats"])} == {0}
    assert all(exposed == units for _, exposed, units in rows(warehouse.url, EXPOSED, ["adsmart"]))
