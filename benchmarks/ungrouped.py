"""The API with one INSERT a request where it would group: `python -m benchmarks.ungrouped`. It tells what grouping is worth."""

import sys

from benchmarks.floor import INSERT
from eventlog.validation import Event
from experimentation.assignments.rules import ServedExperiments, judge_new
from serving import __main__ as service
from serving import app
from serving.assignments.assigner import Answer, Assigner, Question
from serving.events import service as event_service
from serving.events.store import EventStore, Outcome


class Ungrouped(Assigner):
    """Stores each new unit by a statement of its own, through the same pool; for new units alone."""

    async def _looked_up(self, experiments: ServedExperiments, name: str, question: Question) -> Answer:
        run = experiments.runs[name]
        decision = judge_new(run, question.unit_id, question.targeting_input)
        variant = decision.variant
        if variant is None:
            return Answer(name, run, decision)
        row = (run.id, question.unit_type, question.unit_id, variant.id, variant.allocation)
        async with self._database.acquire() as connection:
            await connection.execute(INSERT, *row)
        variant_index = run.index_of[variant.id]
        self._units.put(run.cache_key + question.unit_id, run, variant_index)
        return Answer(name, run, run.as_stored[variant_index], created=True)


class UngroupedEvents(EventStore):
    """Stores each single event by a statement of its own, through the same connections."""

    async def store_one(self, event: Event) -> Outcome:
        """One INSERT."""
        await self._database.retrying(lambda: self.insert([event]))
        return "accepted"


def main() -> int:
    """Serve until a signal ends it."""
    event_service.EventStore = UngroupedEvents  # type: ignore[attr-defined]
    app.Assigner = Ungrouped  # type: ignore[attr-defined]  # the one part that is exchanged
    return service.main()


if __name__ == "__main__":
    sys.exit(main())
