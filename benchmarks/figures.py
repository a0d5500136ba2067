"""What a measurement says: its figures, their goals, the table of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

CORE_OF_AN_IDLE_MACHINE = 0.85


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One path beside its floor. Goals: the least `ratio`, the p99 to stay below. What was not measured or has no goal is None.

    `floor_only_computes`: the floor waits for nothing, so it fills a core of its own where it gets one.
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
        """Ours to the floor, by what is done in a second: 1 is as fast as the floor."""
        return self.per_second / self.floor_per_second

    @property
    def cpu_ratio(self) -> float | None:
        """The floor's processor time to ours: 1 is as cheap as the floor."""
        if self.cpu_us is None or self.floor_cpu_us is None or self.cpu_us <= 0:
            return None
        return self.floor_cpu_us / self.cpu_us

    @property
    def disturbed(self) -> bool:
        """Whether the floor got too little of a core: other programs took it, and the ratio flatters us."""
        if not self.floor_only_computes or self.floor_cpu_us is None:
            return False
        return self.floor_cpu_us * self.floor_per_second / 1e6 < CORE_OF_AN_IDLE_MACHINE

    @property
    def missed(self) -> list[str]:
        """Which goals are missed: `ratio`, `p99`."""
        missed = []
        if self.goal is not None and self.ratio < self.goal:
            missed.append("ratio")
        if self.p99_goal_ms is not None and self.p99_ms is not None and self.p99_ms >= self.p99_goal_ms:
            missed.append("p99")
        return missed

    @property
    def verdict(self) -> str:
        """`met` or `missed: …`, and whether to believe it; nothing where there is no goal."""
        if self.goal is None and self.p99_goal_ms is None:
            return ""
        verdict = f"missed: {', '.join(self.missed)}" if self.missed else "met"
        return f"{verdict} (disturbed)" if self.disturbed else verdict

    def as_json(self) -> dict[str, Any]:
        """Every field, and what follows from them."""
        return {
            **asdict(self), "disturbed": self.disturbed, "ratio": self.ratio, "cpu_ratio": self.cpu_ratio, "missed": self.missed,
            "met": None if not self.verdict else not self.missed,
        }  # fmt: skip


# Beyond the bounds a unit may take this share of what one takes that is held; a heap settles slowly.
FLAT = 0.05


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The API process's resident size before, after half and after all of so many distinct units.

    Goal: once its bounds are reached (`held` units, of which the first half has more), another unit takes next to nothing.
    """

    units: int
    held: int
    before_mb: float
    halfway_mb: float
    after_mb: float
    per_second: float

    @property
    def bytes_a_held_unit(self) -> float:
        """What a unit takes that is held."""
        return (self.halfway_mb - self.before_mb) * 2**20 / self.held

    @property
    def bytes_another_unit(self) -> float:
        """What a unit takes beyond the bounds."""
        return (self.after_mb - self.halfway_mb) * 2**20 / (self.units - self.units // 2)

    @property
    def verdict(self) -> str:
        """Whether it is flat; nothing is said where the first half does not fill the bounds."""
        if self.units // 2 <= self.held:
            return f"ask for more than {2 * self.held:,} to see whether it stays flat"
        return "flat" if self.bytes_another_unit < FLAT * self.bytes_a_held_unit else "missed: it grows"

    def as_json(self) -> dict[str, Any]:
        """Every field, and what follows from them."""
        told = {"bytes_a_held_unit": self.bytes_a_held_unit, "bytes_another_unit": self.bytes_another_unit}
        return {**asdict(self), **told, "verdict": self.verdict}

    def __str__(self) -> str:
        return (
            f"Memory of the API, which holds {self.held:,} units at most: {self.before_mb:.1f} MB before, {self.halfway_mb:.1f} MB after "
            f"{self.units // 2:,} distinct units, {self.after_mb:.1f} MB after {self.units:,}: {self.bytes_a_held_unit:,.0f} bytes a "
            f"unit that is held, {self.bytes_another_unit:,.1f} for another one: {self.verdict}."
        )


def table(figures: Sequence[Figure]) -> Table:
    """The figures for people."""
    made = Table("path", "floor")
    for column in ("a second / floor", "ratio (goal)", "p50 / p99 ms (goal)", "CPU µs / floor (ratio)"):
        made.add_column(column, justify="right", no_wrap=True)
    made.add_column("goals")
    for figure in figures:
        made.add_row(
            figure.path,
            figure.floor,
            f"{figure.per_second:,.0f} / {figure.floor_per_second:,.0f}",
            f"{figure.ratio:.2f}{_number(figure.goal, ' (≥ {:.2f})')}",
            f"{_number(figure.p50_ms, '{:.2f}')}{_number(figure.p99_ms, ' / {:.2f}')}{_number(figure.p99_goal_ms, ' (< {:.0f})')}",
            f"{_number(figure.cpu_us, '{:.0f}')}{_number(figure.floor_cpu_us, ' / {:.0f}')}{_number(figure.cpu_ratio, ' ({:.2f})')}",
            figure.verdict,
        )
    return made


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
