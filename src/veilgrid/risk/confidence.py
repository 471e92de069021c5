"""From opened integers to a figure, its interval and the figure to act on [risk 4.4]."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from scipy import special

from veilgrid.errors import Finding, InputError

Side = Literal["upper", "lower"]

LEVEL: Final = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and how sure it is.

    Attributes
    ----------
    value
        In the unit of the readings.
    standard_error : >= 0 or None
        None where the figure is exact.
    interval
        Two-sided, at the stated confidence.
    risk_adjusted
        One-sided: with the stated confidence the truth is not beyond it, on the side that hurts.
    """

    value: float
    standard_error: float | None
    interval: tuple[float, float] | None
    risk_adjusted: float


def count_of(weights: Sequence[int] | Sequence[float]) -> float:
    """Return how many equal weights would give as sure a mean [Kish 1965]."""
    listed = np.asarray(weights, np.float64)
    total = float(listed.sum())
    return total**2 / float((listed**2).sum()) if total > 0 else 0.0


def check_confidence(confidence: float) -> None:
    """Refuse a confidence outside 0.5..1.

    Raises
    ------
    InputError
        It is not.
    """
    if not 0.5 <= confidence < 1:
        raise InputError([Finding("--confidence", f"found {confidence}, expected 0.5 to below 1")])


def estimate(
    value: float, deviation: float | None, count: float, confidence: float, side: Side
) -> Estimate:
    """Return the figure with Student's interval.

    Parameters
    ----------
    value
        The figure.
    deviation
        Standard deviation of one input's contribution; None for an exact figure.
    count
        Effective number of inputs, see :func:`count_of`.
    confidence : 0.5..1
        Of the interval, and of the one-sided figure.
    side
        Which side hurts: ``upper`` for loads, ``lower`` for what is to be delivered.
    """
    check_confidence(confidence)
    if deviation is None or count <= 1:
        return Estimate(value, None, None, value)
    error = deviation / math.sqrt(count - 1)
    two_sided = float(special.stdtrit(count - 1, (1 + confidence) / 2)) * error
    one_sided = float(special.stdtrit(count - 1, confidence)) * error
    adjusted = value + one_sided if side == "upper" else value - one_sided
    return Estimate(value, error, (value - two_sided, value + two_sided), adjusted)


def deviation_of(spread: int, divisor: int) -> float:
    """Return the standard deviation that a spread stands for."""
    return math.sqrt(max(spread, 0) / divisor)
