"""The replay report: a table for the terminal, and the same as markdown for Dagster and MLflow."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from experimentation.statistics.intervals import Estimate
from product.protocol import ALIGNMENT
from replay.gate import Rule, RuleState, Verdict, interval
from replay.plot import markdown_image, scores_svg
from replay.result import OFFLINE, SCORES, Comparison, ReplayResult
from training.versions import TOKENS

TICKS: dict[RuleState, str] = {"met": "✓", "broken": "✗", "unknown": "?", "waived": "–"}
COLOURS: dict[RuleState, str] = {"met": "green", "broken": "red", "unknown": "yellow", "waived": "yellow"}
DECISIONS = {"passed": "passed", "refused": "refused", "not_evaluated": "not evaluated"}
_SHOWN_REFERENCE_SCORES = (OFFLINE, ALIGNMENT)


def terminal_table(result: ReplayResult, verdict: Verdict, done: Sequence[str] = ()) -> RenderableType:
    """Candidate, baseline, a tick or cross a score; the references; the verdict with its reasons; what was done."""
    scores = Table(title=headline(result), title_justify="left")
    for column in ("score", "candidate", "baseline", "difference", "gate"):
        scores.add_column(column, justify="left" if column in ("score", "gate") else "right")
    for name, comparison, rule in _lines(result, verdict):
        tick = Text(TICKS[rule.state], COLOURS[rule.state]) if rule else Text("")
        scores.add_row(name, *_cells(name, comparison), tick)
    parts: list[RenderableType] = [scores]
    if result.references:
        others = Table(title="other planners on the same rows", title_justify="left")
        for column in _REFERENCE_COLUMNS:
            others.add_column(column, justify="left" if column == "planner" else "right")
        for row in _reference_rows(result):
            others.add_row(*row)
        parts.append(others)
    return Group(*parts, *(Text(line) for line in sentences(result, verdict, done)))


def markdown(result: ReplayResult, verdict: Verdict, done: Sequence[str] = (), *, plot: bool = True) -> str:
    """The same for the Dagster UI, with the plot inside."""
    summary = sentences(result, verdict, done)
    lines = [f"**{summary[0]}**", "", *(f"- {line}" for line in summary[1:]), ""]
    lines += _markdown_table(
        ("score", "candidate", "baseline", "difference", "gate"),
        (
            (name, *_cells(name, comparison), TICKS[rule.state] if rule else "")
            for name, comparison, rule in _lines(result, verdict)
        ),
    )
    if result.references:
        lines += [
            "",
            "Other planners on the same rows:",
            "",
            *_markdown_table(_REFERENCE_COLUMNS, _reference_rows(result)),
        ]
        lines += ["", *(f"- *{reference.name}*: {reference.description}" for reference in result.references)]
    lines += [
        "",
        "By the proposer of the edited plan:",
        "",
        *_markdown_table(_PROPOSER_COLUMNS, _proposer_rows(result)),
    ]
    if plot:
        lines += ["", markdown_image(scores_svg(result), "mean scores with intervals")]
    return "\n".join(lines)


def headline(result: ReplayResult) -> str:
    """Which models, which rows."""
    chosen = result.selection
    sample = f", a sample of {chosen.eligible} (seed {chosen.seed})" if chosen.scored < chosen.eligible else ""
    return (
        f"{result.model} against {result.baseline} on {result.rows} rows of {result.units} households from "
        f"{result.dataset_name}/{result.dataset_version}{sample}"
    )


def sentences(result: ReplayResult, verdict: Verdict, done: Sequence[str] = ()) -> list[str]:
    """The verdict, its reasons, how the rows were chosen, what failed, and what was done."""
    note = " (anchored)" if verdict.anchored else ""
    lines = [f"{TICKS[_state(verdict)]} The gate's verdict on {result.model}: {DECISIONS[verdict.decision]}{note}."]
    lines += verdict.reasons
    if not verdict.anchored and verdict.rows_compared < result.rows:
        lines.append(
            f"The gate compared the {verdict.rows_compared} rows that neither model proposed; the table shows all {result.rows}."
        )
    lines.append(_selection_sentence(result))
    lines += [f"The {failed.model} failed on {failed.event_id}: {failed.error}" for failed in result.failures[:3]]
    lines += [f"Broken rule on {violation}" for violation in result.violations[:3]]
    lines += [f"Not shown: {reason}" for reason in result.references_left_out]
    return [*lines, *done]


def _selection_sentence(result: ReplayResult) -> str:
    chosen = result.selection
    seen = ", ".join(f"{count} seen by {name}" for name, count in chosen.seen.items()) or "no model to compare with"
    later = (
        f"; {chosen.later_rows_of_known_households} are later plans of households that were trained on"
        if chosen.later_rows_of_known_households
        else ""
    )
    return f"Of {chosen.in_dataset} rows ({seen}), {chosen.eligible} could be used; overlap with training: {chosen.overlap}{later}."


def _state(verdict: Verdict) -> RuleState:
    states: dict[str, RuleState] = {"passed": "met", "refused": "broken", "not_evaluated": "unknown"}
    return states[verdict.decision]


def _lines(result: ReplayResult, verdict: Verdict) -> Iterator[tuple[str, Comparison, Rule | None]]:
    rest = [name for name in result.scores if name not in SCORES and name != TOKENS]
    for name in [*SCORES, *rest, TOKENS]:
        if name in result.scores:
            yield name, result.scores[name], verdict.rule(name)


def _cells(name: str, scores: Comparison) -> tuple[str, str, str]:
    decimals = 2 if name == TOKENS else 4
    return _mean(scores.candidate, decimals), _mean(scores.baseline, decimals), interval(scores.difference)


def _mean(estimate: Estimate, decimals: int = 4) -> str:
    if estimate.mean is None:
        return "none"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:.{decimals}f}"
    return f"{estimate.mean:.{decimals}f} [{estimate.low:.{decimals}f}, {estimate.high:.{decimals}f}]"


_REFERENCE_COLUMNS = ("planner", "offline score", "plan alignment", "candidate's lead in alignment", "failed rows")
_PROPOSER_COLUMNS = ("proposed by", "rows", "households", "candidate's alignment", "baseline's alignment", "difference")


def _reference_rows(result: ReplayResult) -> Iterator[tuple[str, ...]]:
    for reference in result.references:
        yield (
            reference.name,
            *(_mean(reference.scores[name]) for name in _SHOWN_REFERENCE_SCORES),
            interval(reference.lead_of_candidate[ALIGNMENT]),
            str(reference.failed),
        )


def _proposer_rows(result: ReplayResult) -> Iterator[tuple[str, ...]]:
    for group in result.by_proposer:
        name = group.name if group.name == group.proposer else f"{group.proposer} {group.name}"
        yield (
            name,
            str(group.rows),
            str(group.units),
            *(_cells(ALIGNMENT, group.scores[ALIGNMENT]) if ALIGNMENT in group.scores else ("", "", "")),
        )


def _markdown_table(columns: Sequence[str], rows: Iterator[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return lines + [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
