"""Progress output of the demo: the current stage, its time, and an estimate of the time left."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.status import Status


@dataclass
class Stage:
    """A finished or running stage: its name, its duration in seconds, and its outcome in a few words."""

    name: str
    seconds: float = 0.0
    outcome: str = ""
    skipped: bool = False


@dataclass
class Progress:
    """Shows stages as they run. `expected` has every stage in order, with its approximate seconds in a first run."""

    console: Console
    expected: dict[str, float]
    stages: list[Stage] = field(default_factory=list)
    _status: Status | None = None
    _note: str = ""
    _started: float = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Show `name` while the block runs. The block sets `outcome`, and `skipped` if there was nothing to do."""
        if name not in self.expected:
            raise ValueError(f"'{name}' is not one of the stages: {', '.join(self.expected)}.")
        stage = Stage(name)
        self._started, self._note = time.monotonic(), ""
        with self.console.status(self._line(name)) as status:
            self._status = status
            try:
                yield stage
            finally:
                stage.seconds = time.monotonic() - self._started
                self._status = None
        self.stages.append(stage)
        mark = "[dim]·[/dim]" if stage.skipped else "[green]✓[/green]"
        self.console.print(
            f"{mark} {self._position(name)} {name:<34} {stage.seconds:6.1f} s   [dim]{stage.outcome}[/dim]",
            highlight=False,
        )

    def note(self, text: str = "") -> None:
        """Refresh the progress line, with a few words on what the stage is doing."""
        self._note = text or self._note
        if self._status is not None:
            self._status.update(self._line(list(self.expected)[len(self.stages)]))

    def _line(self, name: str) -> str:
        elapsed = time.monotonic() - self._started
        names = list(self.expected)
        rest = sum(self.expected[later] for later in names[names.index(name) + 1 :]) + max(
            0.0, self.expected[name] - elapsed
        )
        note = f" · {self._note}" if self._note else ""
        return f"{self._position(name)} {name} · {elapsed:.0f} s{note} · about {max(1, round(rest / 10) * 10)} s left"

    def _position(self, name: str) -> str:
        return f"{list(self.expected).index(name) + 1:>2}/{len(self.expected)}"
