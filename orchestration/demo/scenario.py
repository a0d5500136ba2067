"""The data of a demo, the simulated sample or a cooking diary, and the settings that follow from it."""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg

from eventlog.imports.remembered import Remembered
from foundation.settings import Settings
from orchestration.demo.sample_data import SAMPLE_WEEKS, import_history, import_sample, sample
from orchestration.local.home import cannot_write, record_setting, recorded_settings
from planner.history import History, HistoryOptions, read_history, write_rejects
from planner.simulator import Sample
from planner.world import World

SAMPLE_DAYS = 7 * SAMPLE_WEEKS
# A diary's hourly partitions begin a week ago; the whole diary is history before them.
DIARY_LIVE_DAYS = 7
# The oldest two thirds of a diary's plans are for training; the rest is replayed.
DIARY_TRAINED_SHARE = 0.65
DIARY_LEAST_ROWS = 500


@dataclass
class SampleScenario:
    """The seeded households. Their last week ends on the day before the first start."""

    settings: Settings
    title = "the sample: simulated households and their weekly plans"

    def prepare(self) -> Settings:
        """Record the settings that the sample needs, unless the home has them; returns the new settings."""
        first_day = datetime.now(UTC).date() - timedelta(days=SAMPLE_DAYS)
        return _record(self, {"first_day": first_day, "dataset_window_days": SAMPLE_DAYS})

    @property
    def last_day(self) -> date:
        """The day of the dataset: the last one with sample events."""
        return self.settings.lineage_start + timedelta(days=SAMPLE_DAYS - 1)

    @cached_property
    def simulated(self) -> Sample:
        """The sample; simulating it takes 1 to 3 s."""
        return sample(self.last_day)

    def load(self, connection: psycopg.Connection[Any]) -> Remembered:
        """Store the sample, once."""
        return import_sample(connection, self.last_day, lambda _: self.simulated)

    @property
    def world(self) -> World | None:
        """The households, which react to plans in the demo's traffic."""
        return self.simulated.world


@dataclass
class DiaryScenario:
    """A recipe catalogue and a dated cooking diary of the user's."""

    settings: Settings
    recipes: Path
    interactions: Path
    options: HistoryOptions = field(default_factory=HistoryOptions)

    @property
    def title(self) -> str:
        """The data's name in the demo's first line."""
        return f"the cooking history {self.interactions}"

    @cached_property
    def read(self) -> History:
        """The diary. Raises foundation.table_files.FileRefusedError."""
        return read_history(self.recipes, self.interactions, self.options)

    @property
    def reject_file(self) -> Path:
        """The file that lists rejected rows."""
        return self.settings.home / "rejects" / f"{self.interactions.stem}.csv"

    def prepare(self) -> Settings:
        """Record the window, split and minimum rows of the diary's dataset, unless the home has them; returns the new settings."""
        times = sorted(event["timestamp"] for event in self.read.events)
        first_day = datetime.now(UTC).date() - timedelta(days=DIARY_LIVE_DAYS)
        window = (datetime.now(UTC).date() - times[0].date()).days + 1
        split = times[int(len(times) * DIARY_TRAINED_SHARE)].date().replace(day=1)
        return _record(
            self,
            {
                "first_day": first_day,
                "dataset_window_days": window,
                "dataset_lookback_days": 366,
                "dataset_min_rows": DIARY_LEAST_ROWS,
                "replay_from": split,
                # A diary says what people cooked, not what they may not eat: it has no constraints, and the gate has to accept that.
                "replay_allow_unconstrained": True,
            },
        )

    @property
    def last_day(self) -> date:
        """The day of the dataset: the last complete day of the first week."""
        return self.settings.lineage_start + timedelta(days=DIARY_LIVE_DAYS - 1)

    def load(self, connection: psycopg.Connection[Any]) -> Remembered:
        """Store the diary, once, and list rejected rows."""
        write_rejects(self.read.rejects, self.reject_file)
        return import_history(connection, self.read, str(self.interactions))

    @property
    def world(self) -> World | None:
        """None: reactions of real people are not simulated."""
        return None


Scenario = SampleScenario | DiaryScenario


def _record(scenario: Scenario, values: dict[str, object]) -> Settings:
    home = scenario.settings.home
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(home, error) from error
    known = recorded_settings(home)
    for name, value in values.items():
        # The first start's values are kept: the meaning of a partition must not change with the day of a second start.
        if f"LIFECYCLE_{name.upper()}" not in known:
            scenario.settings = record_setting(name, value, scenario.settings)
    return scenario.settings
