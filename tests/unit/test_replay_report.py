"""The replay report: ticks, numbers with intervals, reasons, and a valid plot."""

import base64
import re
from xml.etree import ElementTree

from replay_support import GOOD, comparison, estimate, result_with
from rich.console import Console

from product.protocol import ALIGNMENT, CONSTRAINTS
from replay.gate import judge
from replay.mlflow_run import replay_metrics, scores_csv
from replay.plot import scores_svg
from replay.report import markdown, terminal_table
from replay.result import OFFLINE, ByProposer, FailedRow, Reference

POPULARITY = Reference(
    "popularity",
    "Most often accepted.",
    {ALIGNMENT: estimate(0.214, 0.2, 0.228), OFFLINE: estimate(0.36, 0.35, 0.37)},
    {ALIGNMENT: estimate(0.036, 0.02, 0.052), OFFLINE: estimate(0.04, 0.03, 0.05)},
    0,
)


def shown(result: object, width: int = 160) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    console.print(result)
    return console.export_text()


def test_table_shows_scores_differences_verdict_and_actions() -> None:
    result = result_with(references=(POPULARITY,))
    text = shown(
        terminal_table(result, judge(result), ["Model version planner_model 2 is now tagged stage=candidate."])
    )
    assert "planner_model 2 against planner_model 1 on 400 rows of 90 households from planner/2025-01-26" in text
    (line,) = [line for line in text.splitlines() if ALIGNMENT in line]
    assert re.search(
        r"0\.2500 \[0\.2400, 0\.2600\].*0\.2100 \[0\.2000, 0\.2200\].*\+0\.0400 \[\+0\.0300, \+0\.0500\].*✓", line
    )
    assert "The gate's verdict on planner_model 2: passed." in text
    assert "overlap with training: 0" in text
    assert "popularity" in text and "0.2140" in text
    assert "stage=candidate" in text


def test_refusal_shows_a_cross_and_every_reason() -> None:
    result = result_with(
        {ALIGNMENT: comparison(0.20, 0.21), CONSTRAINTS: comparison(None, None)},
        answered_with_constraint=0,
        candidate_failed=1,
        failures=(FailedRow("candidate", "e7", "ValueError: no such household"),),
        unanchored_rows=3,
    )
    verdict = judge(result)
    text = shown(terminal_table(result, verdict), width=250)
    (line,) = [line for line in text.splitlines() if ALIGNMENT in line and "│" in line]
    assert "✗" in line
    (unknown,) = [line for line in text.splitlines() if CONSTRAINTS in line and "│" in line]
    assert "none" in unknown and "?" in unknown
    assert "refused (anchored)" in text
    for reason in verdict.reasons:
        assert reason in text
    assert "The candidate failed on e7: ValueError: no such household" in text


def test_markdown_shows_the_same_with_proposers_and_the_plot() -> None:
    result = result_with(
        references=(POPULARITY,), by_proposer=(ByProposer("another policy version", "v|9", 400, 90, dict(GOOD)),)
    )
    text = markdown(result, judge(result))
    assert "| score | candidate | baseline | difference | gate |" in text
    assert "| another policy version v/9 | 400 | 90 |" in text
    (picture,) = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", text)
    ElementTree.fromstring(base64.b64decode(picture))
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") in (6, 7) for line in tables), "a cell must not break its table"


def test_plot_draws_every_planner_when_scores_are_missing() -> None:
    result = result_with({OFFLINE: comparison(0.4, 0.37, None)}, references=(POPULARITY,))
    drawing = ElementTree.fromstring(scores_svg(result))
    texts = [node.text for node in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"candidate (2)", "baseline (1)", "popularity", "plan alignment", "offline score"} <= set(texts)
    circles = list(drawing.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 5 * 2 + 2, "five panels of two models, and popularity in two of them"
    width = float(drawing.attrib["width"])
    assert all(0 <= float(circle.attrib["cx"]) <= width for circle in circles)


def test_metrics_and_table_name_every_planner() -> None:
    result = result_with(references=(POPULARITY,))
    metrics = replay_metrics(result)
    assert metrics[ALIGNMENT] == 0.25 and metrics[f"baseline/{ALIGNMENT}"] == 0.21
    assert metrics[f"difference/{ALIGNMENT}/low"] == GOOD[ALIGNMENT].difference.low
    assert metrics[f"popularity/{ALIGNMENT}"] == 0.214
    lines = scores_csv(result).splitlines()
    assert lines[0] == "planner,score,mean,low,high,rows,households"
    assert f"popularity,{ALIGNMENT},0.214,0.2,0.228,400,90" in lines
