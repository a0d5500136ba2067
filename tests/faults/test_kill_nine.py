"""Events that were acknowledged are stored exactly once while the API is killed and PostgreSQL stopped at random moments under load.

A small, seeded share of the kills; `make soak` runs the long test.
"""

from pathlib import Path

from benchmarks.killing import Soak

KILLS, SENDERS, SEED = 12, 6, 4


def test_acknowledged_events_are_not_lost_or_duplicated_when_the_api_is_killed(tmp_path: Path) -> None:
    outcome = Soak(tmp_path, SEED, SENDERS, lambda step: None).run(kills=KILLS)
    assert outcome.unexpected == []
    assert (outcome.lost, outcome.doubled, outcome.dead) == (0, 0, 0)
    assert (outcome.kills, outcome.outages > 0) == (KILLS, True)
    # Enough events for each kill to interrupt something.
    assert outcome.stored >= outcome.acknowledged >= KILLS * SENDERS
