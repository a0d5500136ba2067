"""`python -m benchmarks.ungrouped`: the API with one INSERT per request instead of groups, to measure the effect of grouping."""

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
    """Stores each new unit with a separate statement, through the same pool; works for new units only."""

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
    """Stores each single event with a separate statement, through the same connections."""

    async def store_one(self, event: Event) -> Outcome:
        """Store the event with one INSERT."""
        await self._database.retrying(lambda: self.insert([event]))
        return "accepted"


def main() -> int:
    """Serve until a signal."""
    event_service.EventStore = UngroupedEvents  # type: ignore[attr-defined]
    app.Assigner = Ungrouped  # type: ignore[attr-defined]  # the only part that is replaced
    return service.main()


if __name__ == "__main__":
    sys.exit(main())
