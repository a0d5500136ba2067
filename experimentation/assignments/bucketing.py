"""Which variant a unit falls into: the bit-exact walk that any client can compute again."""

from bisect import bisect_right
from collections.abc import Sequence
from decimal import Decimal
from hashlib import sha256
from itertools import accumulate
from uuid import UUID

BUCKETS = 10_000


def bucket_of(experiment_id: UUID, unit_id: str) -> int:
    """The unit's bucket in this run, 0 … 9,999.

    The run's id is hashed in its lower-case hyphenated form. Raises UnicodeEncodeError when `unit_id` holds a lone surrogate.
    """
    return bucket_of_text(f"{experiment_id}:{unit_id}")


def bucket_of_text(text: str) -> int:
    """The bucket of `{experiment_id}:{unit_id}`, for who keeps the first part as text. Raises UnicodeEncodeError for a lone surrogate."""
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") % BUCKETS


class VariantWalk:
    """A run's allocations, summed once in the order of `position`, so that each unit costs one binary search."""

    __slots__ = ("_ends", "_fallback")

    def __init__(self, allocations: Sequence[Decimal]) -> None:
        """`allocations` in walking order, as exact decimals in [0, 1]. Raises ValueError when none is above zero."""
        self._ends = tuple(accumulate(allocation * BUCKETS for allocation in allocations))
        nonzero = [index for index, allocation in enumerate(allocations) if allocation > 0]
        if not nonzero:
            raise ValueError(f"None of the {len(allocations)} variants has an allocation above zero.")
        self._fallback = nonzero[-1]

    def choose(self, bucket: int) -> int:
        """Index of the first variant whose running sum exceeds the bucket; else of the last with an allocation above zero."""
        # A variant of zero allocation ends where the one before it does, so it is never the first to exceed.
        index = bisect_right(self._ends, bucket)
        return index if index < len(self._ends) else self._fallback
