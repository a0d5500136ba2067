"""Memory that a batch leaves behind."""

import gc
import json
from datetime import UTC, datetime

import pytest

from serving.events.routes import _Batch

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
GOOD = {"event_type": "exposure", "unit_type": "user", "unit_id": "u", "timestamp": "2025-06-01T11:00:00Z"}


@pytest.mark.parametrize("bad", [{"unit_id": ""}, {"event_type": "no"}, {"timestamp": "never"}, {"experiments": [7]}])
def test_batch_with_rejected_events_is_freed_without_a_garbage_collection(bad: dict[str, object]) -> None:
    body = json.dumps({"events": [GOOD, {**GOOD, **bad}]}).encode()
    gc.disable()
    gc.freeze()  # what is there already; walking it would take half a second
    try:
        batch = _Batch(body, NOW)
        assert batch.answer()[0] == 207
        del batch
        # Otherwise its body of up to 10 MB would stay in memory until the next collection, which is rare.
        assert gc.collect() == 0
    finally:
        gc.unfreeze()
        gc.enable()
