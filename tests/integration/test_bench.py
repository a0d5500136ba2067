"""`make bench` measures every path on a separate database and writes the figures. Speed is not asserted here."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.assignments import PATHS
from benchmarks.ingestion import WAYS

FIELDS = {
    "path", "what", "per_second", "floor", "floor_per_second", "ratio", "goal", "p50_ms", "p99_ms", "p99_goal_ms", "cpu_us",
    "floor_cpu_us", "cpu_ratio", "missed", "met", "floor_only_computes", "disturbed",
}  # fmt: skip


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the shortest possible benchmark."""
    short = ["--rounds", "1", "--seconds", "0.3", "--units", "500", "--events", "1000", "--hour", "2000"]
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.bench", *arguments, *short],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip


def test_bench_measures_every_path_and_writes_the_figures(home: Path, tmp_path: Path) -> None:
    process = bench("all", "--output", str(tmp_path / "figures.json"))
    assert process.returncode == 0, process.stderr
    written = json.loads((tmp_path / "figures.json").read_text())
    assert (written["rounds"], written["seconds"], written["events"]) == (1, 0.3, 1000)
    requests = {figure["path"]: figure for figure in written["figures"] if figure["what"] == "requests"}
    events = [figure for figure in written["figures"] if figure["what"].startswith("events")]
    assert set(requests) == {way.title for way in PATHS}
    assert [figure["path"] for figure in events] == [
        *(way.title for way in WAYS),
        "archive an hour: Parquet, read back, counted",
    ]
    for figure in written["figures"]:
        assert set(figure) == FIELDS
        assert figure["per_second"] > 0 and figure["floor_per_second"] > 0 and figure["ratio"] > 0
    for figure in requests.values():
        assert 0 < figure["p50_ms"] <= figure["p99_ms"]
        assert figure["cpu_us"] >= 0 and figure["met"] is (not figure["missed"])
    assert written["memory"]["units"] == 500 and written["memory"]["after_mb"] > 0
    assert "Memory of the API" in process.stdout and not home.exists()


def test_bench_measures_only_the_given_path(home: Path, tmp_path: Path) -> None:
    process = bench("assignments", "--only", "hit", "--output", str(tmp_path / "figures.json"))
    assert process.returncode == 0, process.stderr
    written = json.loads((tmp_path / "figures.json").read_text())
    assert [figure["path"] for figure in written["figures"]] == ["hit: stored units, in memory"]
    assert written["memory"] is None
