"""The replay as a picture: every planner's mean with its interval, one panel per score. Plain SVG, no plotting library."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from experimentation.statistics.intervals import Estimate
from product.protocol import ALIGNMENT, DIVERSITY, EDITS, LEFTOVERS
from replay.result import OFFLINE, ReplayResult

PANELS = {
    OFFLINE: "offline score",
    ALIGNMENT: "plan alignment",
    EDITS: "edit distance",
    DIVERSITY: "diversity",
    LEFTOVERS: "leftovers",
}
CANDIDATE, BASELINE, REFERENCE = "#d1495b", "#00798c", "#8d99ae"

_LABELS, _PANEL, _GAP, _LINE, _TOP, _BOTTOM = 150, 150, 22, 24, 34, 30


@dataclass(frozen=True)
class _Planner:
    label: str
    colour: str
    scores: dict[str, Estimate]


def scores_svg(result: ReplayResult) -> str:
    """The scores of candidate, baseline and references over all rows, as an SVG document."""
    planners = _planners(result)
    panels = [name for name in PANELS if any(_drawn(planner.scores.get(name)) for planner in planners)]
    width = _LABELS + len(panels) * (_PANEL + _GAP)
    bottom = _TOP + len(planners) * _LINE
    title = f"{result.model} against {result.baseline}: mean scores with {result.scores[OFFLINE].candidate.level:.0%} intervals"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom + _BOTTOM}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{bottom + _BOTTOM}" fill="white"/>',
    ]
    for line, planner in enumerate(planners):
        y = _TOP + (line + 0.5) * _LINE
        parts.append(
            f'<text x="{_LABELS - 12}" y="{y + 4:.1f}" text-anchor="end" fill="{planner.colour}">{escape(planner.label)}</text>'
        )
    for number, name in enumerate(panels):
        parts += _panel(_LABELS + number * (_PANEL + _GAP), bottom, name, planners)
    return "".join([*parts, "</svg>"])


def markdown_image(svg: str, alt: str) -> str:
    """The picture embedded in markdown, without a separate file."""
    return f"![{alt}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def _planners(result: ReplayResult) -> list[_Planner]:
    ours = {name: comparison.candidate for name, comparison in result.scores.items()}
    theirs = {name: comparison.baseline for name, comparison in result.scores.items()}
    return [
        _Planner(f"candidate ({result.model_version})", CANDIDATE, ours),
        _Planner(f"baseline ({result.baseline_version})", BASELINE, theirs),
        *(_Planner(reference.name, REFERENCE, reference.scores) for reference in result.references),
    ]


def _drawn(estimate: Estimate | None) -> bool:
    return estimate is not None and estimate.mean is not None


def _panel(left: float, bottom: float, name: str, planners: Sequence[_Planner]) -> list[str]:
    drawn = [
        (line, planner, planner.scores[name])
        for line, planner in enumerate(planners)
        if _drawn(planner.scores.get(name))
    ]
    ends = [end for _, _, estimate in drawn for end in (estimate.mean, estimate.low, estimate.high) if end is not None]
    lowest, highest = min(ends), max(ends)
    room = max((highest - lowest) * 0.08, 1e-3)
    start, stop = lowest - room, highest + room

    def x(value: float) -> float:
        return left + (value - start) / (stop - start) * _PANEL

    parts = [
        f'<text x="{left + _PANEL / 2}" y="18" text-anchor="middle" font-weight="bold">{PANELS[name]}</text>',
        f'<line x1="{left}" y1="{bottom}" x2="{left + _PANEL}" y2="{bottom}" stroke="#999"/>',
    ]
    for value in (lowest, highest):
        anchor = "start" if value == lowest else "end"
        parts.append(
            f'<text x="{x(value):.1f}" y="{bottom + 16}" text-anchor="{anchor}" fill="#555" font-size="10">{value:.3f}</text>'
        )
    for line, planner, estimate in drawn:
        assert estimate.mean is not None
        y = _TOP + (line + 0.5) * _LINE
        if planner.colour == BASELINE:
            middle = f"{x(estimate.mean):.1f}"
            parts.append(
                f'<line x1="{middle}" y1="{_TOP}" x2="{middle}" y2="{bottom}" stroke="{BASELINE}" stroke-dasharray="3 3"/>'
            )
        if estimate.low is not None and estimate.high is not None:
            parts.append(
                f'<line x1="{x(estimate.low):.1f}" y1="{y:.1f}" x2="{x(estimate.high):.1f}" y2="{y:.1f}" '
                f'stroke="{planner.colour}" stroke-width="2"/>'
            )
        parts.append(f'<circle cx="{x(estimate.mean):.1f}" cy="{y:.1f}" r="4" fill="{planner.colour}"/>')
    return parts
