"""Shares of units as exact decimals: parsing, splitting, shrinking and ramping them.

Binary floats are not used: 0.0029 × 10000 would be 28.999999999999996, one bucket too few.
"""

from collections.abc import Container, Sequence
from decimal import ROUND_FLOOR, Decimal, InvalidOperation

WHOLE = Decimal(1)
STEP = Decimal("0.0001")
MOST_FOR_A_NEW_TREATMENT = Decimal("0.10")


def parse_share(text: str) -> Decimal:
    """The share that a text states. Raises ValueError, with the reason, unless it is a number in [0, 1] with at most 4 decimals."""
    try:
        share = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a number") from None
    if not share.is_finite() or not 0 <= share <= WHOLE:
        raise ValueError(f"{text} is not between 0 and 1")
    if share != share.quantize(STEP):
        raise ValueError(f"{text} has more than 4 decimals")
    return share.quantize(STEP)


def candidate_split(share: Decimal) -> tuple[Decimal, Decimal, Decimal]:
    """The shares of control, remainder and treatment in a candidate's new run: two equal arms, and the rest not enrolled.

    Raises ValueError for a share that is not in (0, 0.10].
    """
    exact = parse_share(str(share))
    if not 0 < exact <= MOST_FOR_A_NEW_TREATMENT:
        raise ValueError(
            f"A new candidate gets more than 0 and at most {MOST_FOR_A_NEW_TREATMENT} of the units, not {share}"
        )
    return exact, WHOLE - 2 * exact, exact


def shrink_shares(shares: Sequence[Decimal], room: Decimal) -> tuple[Decimal, ...]:
    """Shrink shares in proportion, so that they sum to exactly 1 − `room`, in steps of 0.0001.

    The steps lost by rounding go to the shares that lost most, the first of equals. Raises ValueError unless the shares sum to 1.
    """
    if sum(shares) != WHOLE:
        raise ValueError(f"{' + '.join(map(str, shares))} is not 1")
    exact = [share * (WHOLE - room) for share in shares]
    rounded = [share.quantize(STEP, rounding=ROUND_FLOOR) for share in exact]
    lost_steps = int((WHOLE - room - sum(rounded)) / STEP)
    by_loss = sorted(range(len(rounded)), key=lambda index: rounded[index] - exact[index])
    for index in by_loss[:lost_steps]:
        rounded[index] += STEP
    return tuple(rounded)


def ramp_shares(
    shares: Sequence[Decimal], to: Decimal, remainder: int, kept: Container[int] = ()
) -> tuple[Decimal, ...]:
    """Set every arm's share to `to`, and that at the index `remainder` to the rest; shares at the indexes `kept` do not change.

    Raises ValueError, with the reason, if `to` is not a share, an arm would shrink, no arm would grow, the shares would exceed 1, or an
    arm would take buckets of another arm: then units would move.
    """
    exact = parse_share(str(to))
    grown = [share if place in kept else exact for place, share in enumerate(shares)]
    grown[remainder] = Decimal(0)
    total = sum(grown, Decimal(0))
    if any(new < old for place, (new, old) in enumerate(zip(grown, shares, strict=True)) if place != remainder):
        raise ValueError("arms only grow, and at least one arm has more already")
    if total > WHOLE:
        raise ValueError(f"the arms together would have {total} of the units")
    grown[remainder] = WHOLE - total
    if grown == list(shares):
        raise ValueError("the arms have that share already")
    for place, share in enumerate(shares):
        low, new_low = sum(shares[:place]), sum(grown[:place])
        if place != remainder and share and not (new_low <= low and low + share <= new_low + grown[place]):
            raise ValueError(
                "an arm would take units of the arm next to it; place one arm before the remainder and one after it"
            )
    return tuple(grown)
