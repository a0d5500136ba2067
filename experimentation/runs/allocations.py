"""Shares of units in exact decimals: what is a share, what adds up, how a run's shares are cut and grow.

 No binary float comes in:
0.0029 × 10000 would be 28.999999999999996, a bucket less.
"""

from collections.abc import Container, Sequence
from decimal import ROUND_FLOOR, Decimal, InvalidOperation

WHOLE = Decimal(1)
STEP = Decimal("0.0001")
MOST_FOR_A_NEW_TREATMENT = Decimal("0.10")


def share_of(text: str) -> Decimal:
    """The share that a text states. Raises ValueError, saying why, for anything but a number in [0, 1] of at most 4 decimals."""
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
    """Control, remainder and treatment of a run that starts to try a candidate: two equal arms, the rest not enrolled.

    Raises ValueError for a share that is not in (0, 0.10].
    """
    exact = share_of(str(share))
    if not 0 < exact <= MOST_FOR_A_NEW_TREATMENT:
        raise ValueError(
            f"A new candidate gets more than 0 and at most {MOST_FOR_A_NEW_TREATMENT} of the units, not {share}"
        )
    return exact, WHOLE - 2 * exact, exact


def shrunk(shares: Sequence[Decimal], room: Decimal) -> tuple[Decimal, ...]:
    """The shares, cut in proportion so that they sum to exactly 1 − `room`, in steps of 0.0001.

    What rounding leaves goes to the shares that lost most by it, the first of equals. Raises ValueError when they don't sum to 1.
    """
    if sum(shares) != WHOLE:
        raise ValueError(f"{' + '.join(map(str, shares))} is not 1")
    exact = [share * (WHOLE - room) for share in shares]
    cut = [share.quantize(STEP, rounding=ROUND_FLOOR) for share in exact]
    left = int((WHOLE - room - sum(cut)) / STEP)
    by_loss = sorted(range(len(cut)), key=lambda index: cut[index] - exact[index])
    for index in by_loss[:left]:
        cut[index] += STEP
    return tuple(cut)


def ramped(shares: Sequence[Decimal], to: Decimal, remainder: int, kept: Container[int] = ()) -> tuple[Decimal, ...]:
    """The shares with every arm at `to`, and at `remainder` what is left; arms that are `kept` stay as they are.

    Raises ValueError, saying why, for no share, arms that shrink or all stay, more than all units, and where an arm would take
    buckets that another one has: then a unit would move.
    """
    exact = share_of(str(to))
    grown = [share if place in kept else exact for place, share in enumerate(shares)]
    grown[remainder] = Decimal(0)
    taken = sum(grown, Decimal(0))
    if any(new < old for place, (new, old) in enumerate(zip(grown, shares, strict=True)) if place != remainder):
        raise ValueError("arms only grow, and at least one of them has more")
    if taken > WHOLE:
        raise ValueError(f"the arms would have {taken} of the units together")
    grown[remainder] = WHOLE - taken
    if grown == list(shares):
        raise ValueError("that is what the arms have")
    for place, share in enumerate(shares):
        low, new_low = sum(shares[:place]), sum(grown[:place])
        if place != remainder and share and not (new_low <= low and low + share <= new_low + grown[place]):
            raise ValueError(
                "an arm would take units of the one beside it, so have one arm before the remainder and one after it"
            )
    return tuple(grown)
