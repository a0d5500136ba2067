"""Hashes a unit into a bucket and a bucket into a variant. The result is bit-exact, so any client can reproduce it."""

from bisect import bisect_right
from collections.abc import Sequence
from decimal import Decimal
from hashlib import sha256
from itertools import accumulate
from uuid import UUID

BUCKETS = 10_000


def bucket_of(experiment_id: UUID, unit_id: str) -> int:
    """The unit's bucket in this run, 0 … 9,999.

    Hashes the run's id in its lower-case hyphenated form. Raises UnicodeEncodeError if `unit_id` holds a lone surrogate.
    """
    return bucket_of_text(f"{experiment_id}:{unit_id}")


def bucket_of_text(text: str) -> int:
    """The bucket of the text `{experiment_id}:{unit_id}`. Raises UnicodeEncodeError if it holds a lone surrogate."""
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") % BUCKETS


class VariantWalk:
    """A run's allocations, summed once in the order of `position`, so that each lookup is one binary search."""

    __slots__ = ("_ends", "_fallback")

    def __init__(self, allocations: Sequence[Decimal]) -> None:
        """`allocations` in the order of `position`, as exact decimals in [0, 1]. Raises ValueError if none is above zero."""
        self._ends = tuple(accumulate(allocation * BUCKETS for allocation in allocations))
        nonzero = [index for index, allocation in enumerate(allocations) if allocation > 0]
        if not nonzero:
            raise ValueError(f"None of the {len(allocations)} variants has an allocation above zero.")
        self._fallback = nonzero[-1]

    def choose(self, bucket: int) -> int:
        """Index of the first variant whose running sum exceeds the bucket, else of the last variant with a nonzero allocation."""
        # A variant with zero allocation ends where its predecessor ends, so it is never the first to exceed the bucket.
        index = bisect_right(self._ends, bucket)
        return index if index < len(self._ends) else self._fallback
