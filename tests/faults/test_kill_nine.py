"""The API is killed at random moments under load, and PostgreSQL stopped: whatever was acknowledged is stored once. Longer: `make soak`."""

from pathlib import Path

from benchmarks.killing import Soak

KILLS, SENDERS, SEED = 50, 6, 4


def test_nothing_acknowledged_is_lost_or_doubled(tmp_path: Path) -> None:
    found = Soak(tmp_path, SEED, SENDERS, lambda step: None).run(kills=KILLS)
    assert found.unexpected == []
    assert (found.lost, found.doubled, found.dead) == (0, 0, 0)
    assert (found.kills, found.outages > 0) == (KILLS, True)
    # So much that each kill met something under way.
    assert found.stored >= found.acknowledged >= KILLS * SENDERS
