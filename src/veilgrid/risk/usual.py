"""What is usual on one side of a market: classes of size, and tables that follow from them.

A size is told by its class: quarters of an octave about the mean of its side. The middle class and
the middle distance from it are found among a drawn sample, so that comparisons do not grow with
the number of participants [market 5.1]. All numbers are integers: shares and plain ones agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import ceil, log
from typing import Final

import numpy as np

from veilgrid.mpc.layout import Integers
from veilgrid.mpc.prss import Stream

SCALE_BITS: Final = 16
CLASSES: Final = 68
"""Edges of classes, from 2**-12 to 2**4.75 of the mean."""

DEVIATIONS: Final = 12
SIDE_MIN: Final = 4
"""With fewer participants on a side nobody stands out."""

SAMPLE: Final = 64
INFLUENCE: Final = 0.02
"""Largest share of a side that one participant may have without proof; more in small markets."""

INFLUENCE_COUNT: Final = 3
USUAL_MULTIPLE: Final = 2.0
OUTLIER_SCORE: Final = 3.5
_SIGMA: Final = 1.4826
_LOG_SPREAD_MIN: Final = 0.25
_STEP: Final = log(2) / 4
_EDGE_LAST: Final = 76
_PART_BITS: Final = 8


def influence_max(bidder_count: int) -> float:
    """Return the largest share of a side that one of so many bidders may have."""
    return max(INFLUENCE, INFLUENCE_COUNT / max(bidder_count, 1))


def influence_of(count: int) -> tuple[int, int]:
    """Return the same as a fraction of small integers."""
    found = max(Fraction(str(INFLUENCE)), Fraction(INFLUENCE_COUNT, max(count, 1)))
    return found.numerator, found.denominator


def edge(place: float) -> int:
    """Return the lower edge of a class, where the mean of the side is ``2**SCALE_BITS``."""
    return round(2 ** ((place + 16) / 4))


@cache
def edges() -> tuple[int, ...]:
    """Return the lower edges of classes 1 and up."""
    return tuple(edge(place) for place in range(CLASSES))


def _score_classes(deviation: int) -> int:
    spread = max(_SIGMA * deviation * _STEP, _LOG_SPREAD_MIN)
    return ceil(OUTLIER_SCORE * spread / _STEP)


def _influence(count: int) -> int:
    """Return the share one participant may have, in means of the side."""
    above, below = influence_of(count)
    return (above * count << SCALE_BITS) // below


@cache
def limit_table(count: int) -> tuple[tuple[int, ...], ...]:
    """Return above how many means a participant stands out: [middle class][deviation]."""
    least = _influence(count)
    return tuple(
        tuple(
            max(edge(min(middle + _score_classes(away), _EDGE_LAST)), least)
            for away in range(DEVIATIONS + 1)
        )
        for middle in range(CLASSES + 1)
    )


@cache
def room_table(count: int) -> tuple[int, ...]:
    """Return how many means one who stands out counts for: [middle class]."""
    most = _influence(count)
    usual = (round(USUAL_MULTIPLE * edge(middle - 0.5)) for middle in range(CLASSES + 1))
    return tuple(min(one, most) for one in usual)


def rounding(count: int) -> tuple[int, int]:
    """Return a shift and a factor: to shift, multiply and drop 8 bits is to divide by ``count``."""
    shift = count.bit_length()
    return shift, (1 << (shift + _PART_BITS)) // count


def room_of(total: int, middle: int, count: int) -> int:
    """Return the steps that one who stands out counts for, as computed on shares."""
    shift, factor = rounding(count)
    return ((total * room_table(count)[middle] >> (SCALE_BITS + shift)) * factor) >> _PART_BITS


def drawn(count: int, draw: int, side: int) -> Integers:
    """Return which of the participants of a side are looked at to say what is usual."""
    if count <= SAMPLE:
        return np.arange(count)
    stream = Stream(draw.to_bytes(16, "little", signed=True), b"usual %d" % side)
    return np.sort(np.argsort(stream.words(count), kind="stable")[:SAMPLE]).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Usual:
    """What is usual on a side.

    Attributes
    ----------
    middle
        Class of the middle participant.
    deviation
        Classes within which half of all lie about it.
    count, total
        Participants of the side, and all they have, in steps.
    """

    middle: int
    deviation: int
    count: int
    total: int

    def stands_out(self, size: int) -> bool:
        """Return whether a participant of that size stands out."""
        limit = limit_table(self.count)[self.middle][self.deviation]
        return size * self.count << SCALE_BITS > self.total * limit

    @property
    def room(self) -> int:
        """Steps that one who stands out counts for."""
        return room_of(self.total, self.middle, self.count)


def usual_of(sizes: Sequence[int], draw: int, side: int) -> Usual:
    """Return what is usual among the sizes of a side, in the clear."""
    count, total = len(sizes), sum(sizes)
    chosen = [sizes[int(k)] * count << SCALE_BITS for k in drawn(count, draw, side)]
    classes = sorted(sum(size >= total * one for one in edges()) for size in chosen)
    half = (len(classes) + 1) // 2
    middle = classes[half - 1]
    deviation = sorted(abs(one - middle) for one in classes)[half - 1]
    return Usual(middle, min(deviation, DEVIATIONS), count, total)
