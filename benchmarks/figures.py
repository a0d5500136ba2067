"""The figures of measurements, their goals, and the table of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

CORE_OF_AN_IDLE_MACHINE = 0.85


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A path compared with its floor. Goals: a minimum `ratio`, and an upper bound of the p99. None: not measured, or no goal.

    `floor_only_computes`: the floor waits for nothing, so it uses a whole core if it can get one.
    """

    path: str
    what: str
    per_second: float
    floor: str
    floor_per_second: float
    goal: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    p99_goal_ms: float | None = None
    cpu_us: float | None = None
    floor_cpu_us: float | None = None
    floor_only_computes: bool = False

    @property
    def ratio(self) -> float:
        """Our throughput divided by the floor's: 1 is as fast as the floor."""
        return self.per_second / self.floor_per_second

    @property
    def cpu_ratio(self) -> float | None:
        """The floor's processor time divided by ours: 1 is as cheap as the floor."""
        if self.cpu_us is None or self.floor_cpu_us is None or self.cpu_us <= 0:
            return None
        return self.floor_cpu_us / self.cpu_us

    @property
    def disturbed(self) -> bool:
        """Whether other programs took too much of the floor's core, so that the ratio flatters us."""
        if not self.floor_only_computes or self.floor_cpu_us is None:
            return False
        return self.floor_cpu_us * self.floor_per_second / 1e6 < CORE_OF_AN_IDLE_MACHINE

    @property
    def missed(self) -> list[str]:
        """The missed goals: `ratio`, `p99`."""
        missed = []
        if self.goal is not None and self.ratio < self.goal:
            missed.append("ratio")
        if self.p99_goal_ms is not None and self.p99_ms is not None and self.p99_ms >= self.p99_goal_ms:
            missed.append("p99")
        return missed

    @property
    def verdict(self) -> str:
        """`met` or `missed: …`, marked if the measurement was disturbed; empty if there is no goal."""
        if self.goal is None and self.p99_goal_ms is None:
            return ""
        verdict = f"missed: {', '.join(self.missed)}" if self.missed else "met"
        return f"{verdict} (disturbed)" if self.disturbed else verdict

    def as_json(self) -> dict[str, Any]:
        """All fields and properties."""
        return {
            **asdict(self), "disturbed": self.disturbed, "ratio": self.ratio, "cpu_ratio": self.cpu_ratio, "missed": self.missed,
            "met": None if not self.verdict else not self.missed,
        }  # fmt: skip


FLAT = 0.05
"""Memory is flat if a unit beyond the cache's limit takes less than this share of a cached one; a heap settles slowly."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The resident memory of the API's process before, after half and after all of `units` distinct units.

    Goal: once the cache is full (`held` units, fewer than the first half), another unit takes almost no memory.
    """

    units: int
    held: int
    before_mb: float
    halfway_mb: float
    after_mb: float
    per_second: float

    @property
    def bytes_a_held_unit(self) -> float:
        """The memory of a cached unit."""
        return (self.halfway_mb - self.before_mb) * 2**20 / self.held

    @property
    def bytes_another_unit(self) -> float:
        """The memory of a unit beyond the cache's limit."""
        return (self.after_mb - self.halfway_mb) * 2**20 / (self.units - self.units // 2)

    @property
    def verdict(self) -> str:
        """Whether memory stays flat; asks for more units if the first half does not fill the cache."""
        if self.units // 2 <= self.held:
            return f"ask for more than {2 * self.held:,} to see whether it stays flat"
        return "flat" if self.bytes_another_unit < FLAT * self.bytes_a_held_unit else "missed: it grows"

    def as_json(self) -> dict[str, Any]:
        """All fields and properties."""
        sizes = {"bytes_a_held_unit": self.bytes_a_held_unit, "bytes_another_unit": self.bytes_another_unit}
        return {**asdict(self), **sizes, "verdict": self.verdict}

    def __str__(self) -> str:
        return (
            f"Memory of the API, which caches at most {self.held:,} units: {self.before_mb:.1f} MB before, {self.halfway_mb:.1f} MB after "
            f"{self.units // 2:,} distinct units, {self.after_mb:.1f} MB after {self.units:,}; {self.bytes_a_held_unit:,.0f} bytes per "
            f"cached unit, {self.bytes_another_unit:,.1f} per further unit: {self.verdict}."
        )


def figure_table(figures: Sequence[Figure]) -> Table:
    """The figures as a table for the terminal."""
    table = Table("path", "floor")
    for column in ("a second / floor", "ratio (goal)", "p50 / p99 ms (goal)", "CPU µs / floor (ratio)"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("goals")
    for figure in figures:
        table.add_row(
            figure.path,
            figure.floor,
            f"{figure.per_second:,.0f} / {figure.floor_per_second:,.0f}",
            f"{figure.ratio:.2f}{_number(figure.goal, ' (≥ {:.2f})')}",
            f"{_number(figure.p50_ms, '{:.2f}')}{_number(figure.p99_ms, ' / {:.2f}')}{_number(figure.p99_goal_ms, ' (< {:.0f})')}",
            f"{_number(figure.cpu_us, '{:.0f}')}{_number(figure.floor_cpu_us, ' / {:.0f}')}{_number(figure.cpu_ratio, ' ({:.2f})')}",
            figure.verdict,
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
