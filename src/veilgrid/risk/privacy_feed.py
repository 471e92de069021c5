"""Publish a running total again and again [privacy 5].

The prefix sums of a feed are ``A x``, and ``A = R R`` with a lower triangular Toeplitz matrix R
[Fichtenberger, Henzinger and Upadhyay 2023]. The committee opens ``R x + z`` in whole numbers;
multiplying by what is left of A is arithmetic on published numbers, so it costs no privacy.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from veilgrid.errors import Finding, InputError, invariant
from veilgrid.mpc._round import Steps
from veilgrid.mpc._shares import Shares
from veilgrid.mpc.noise import SIGMA_MAX, coarsened, discrete_gaussian, gaussian_slack
from veilgrid.mpc.order import Mpc
from veilgrid.risk.accountant import zcdp_rho
from veilgrid.risk.privacy import Guarantee

Floats = npt.NDArray[np.float64]

FACTOR_BITS: Final = 12
WAYS: Final = ("factor", "interval", "prefix")
_INTERVALS_MAX: Final = 10_000
_SIGMA_AIM: Final = 3500.0
_STEPS_INTERVAL: Final = 32  # of a device's change; rounding adds one step, 3 % of the noise


def square_root(count: int) -> Floats:
    """Return the first column of R: ``binomial(2 k, k) / 4**k``, (k,)."""
    k = np.arange(1, count, dtype=np.float64)
    return np.concatenate([[1.0], np.cumprod((2 * k - 1) / (2 * k))])


def column_norm(column: Floats, block: int) -> float:
    """Return the largest Euclidean change by one device.

    Parameters
    ----------
    column : (interval,)
        First column of the Toeplitz matrix that is applied to the feed; not negative.
    block : 1..intervals
        Consecutive intervals in which the device may change its readings by one unit each.
    """
    invariant(bool((column >= 0).all()), "then the largest change is all in one direction")
    sums = np.cumsum(column)
    moved = np.concatenate([sums[:block], sums[block:] - sums[:-block]])
    return float(np.linalg.norm(moved))


@dataclass(frozen=True, slots=True)
class FeedPlan:
    """How a running total is published.

    Attributes
    ----------
    way
        ``factor``: noise on ``R x``; ``interval``: on each interval; ``prefix``: on each total.
    intervals
        Length of the feed.
    column : (interval,)
        Whole numbers; what the committee applies to the intervals' totals.
    factor, shift
        How its result is rounded before noise is added; see :class:`~veilgrid.risk.privacy.Plan`.
    sigma : coarse steps
        Parameter of each discrete Gaussian.
    error : steps
        Root mean square of the error of a published total.
    errors : steps
        The same of every way, by its name.
    """

    way: str
    intervals: int
    column: tuple[int, ...]
    factor: int
    shift: int
    sigma: float
    error: float
    errors: dict[str, float]


def plan_feed(
    guarantee: Guarantee,
    intervals: int,
    sensitivity: int,
    *,
    block: int = 96,
    way: str | None = None,
) -> FeedPlan:
    """Choose the way with the least error, or take the one that is asked for.

    Parameters
    ----------
    guarantee
        For the whole feed.
    intervals : 1..10000
        How many totals are published.
    sensitivity : > 0, steps
        Largest change of one interval's total by one device.
    block
        Consecutive intervals that one device is protected for: 96 for a day, 1 for an interval.
    way
        One of :data:`WAYS`; by default the best.

    Raises
    ------
    InputError
        The feed is too long, or the way unknown.
    """
    if not 1 <= intervals <= _INTERVALS_MAX:
        problem = f"found {intervals}, expected 1..{_INTERVALS_MAX}"
        raise InputError([Finding("intervals", problem, "start a new feed each month")])
    if way is not None and way not in WAYS:
        raise InputError([Finding("way", f"found {way}, expected {', '.join(WAYS)}")])
    invariant(block > 0 and sensitivity > 0, "somebody can change the feed")
    within = min(block, intervals)
    slack = intervals * gaussian_slack(SIGMA_MAX) * (1 + math.exp(guarantee.epsilon))
    rho = zcdp_rho(guarantee.epsilon, guarantee.delta - slack)
    noise = sensitivity / math.sqrt(2 * rho)
    applied = {one: column_norm(_column(one, intervals), within) for one in WAYS}
    errors = {
        one: noise * norm * _spread(_remainder(one, intervals)) for one, norm in applied.items()
    }
    chosen = min(errors, key=errors.__getitem__) if way is None else way
    column = np.rint(_column(chosen, intervals) * 2**FACTOR_BITS).astype(np.int64)
    # Rounding on shares adds less than one coarse step to the change of each number that changes.
    fine = column_norm(column.astype(np.float64), within) * sensitivity
    aim = _SIGMA_AIM
    if chosen == "interval":
        aim = min(aim, _STEPS_INTERVAL * noise / sensitivity * math.sqrt(within))
    scale = noise / sensitivity * fine / aim
    rounded = math.sqrt(within if chosen == "interval" else intervals)
    factor, shift = 1, 0
    if scale > 1:
        shift = math.ceil(math.log2(scale)) + 8
        factor = math.floor(2**shift / scale)
    reach = factor * fine / 2**shift + (rounded if shift else 0.0)
    sigma = noise / sensitivity * reach
    spread = _spread(_remainder(chosen, intervals))
    error = sigma * 2.0**shift / factor / 2**FACTOR_BITS * spread
    listed = tuple(column.tolist())
    return FeedPlan(chosen, intervals, listed, factor, shift, sigma, error, errors)


def _column(way: str, count: int) -> Floats:
    """Return the first column of what is applied before the noise."""
    if way == "factor":
        return square_root(count)
    return np.ones(count) if way == "prefix" else np.eye(1, count)[0]


def _remainder(way: str, count: int) -> Floats:
    """Return the first column of what is applied to the published numbers."""
    if way == "factor":
        return square_root(count)
    return np.ones(count) if way == "interval" else np.eye(1, count)[0]


def _spread(column: Floats) -> float:
    """Return the root mean square over rows of the row norms of a Toeplitz matrix."""
    return float(np.sqrt(np.cumsum(column**2).mean()))


def publish(mpc: Mpc, plan: FeedPlan, totals: Shares) -> Steps[list[int]]:
    """Open the next number of the feed with its noise, in coarse steps.

    Parameters
    ----------
    mpc
        Engine or plain numbers.
    plan
        Of the feed.
    totals : (interval,), steps
        Shares of all totals so far, the newest last; kept shared between intervals.
    """
    count = len(totals)
    invariant(0 < count <= plan.intervals, "the feed has not ended")
    weights = np.array(plan.column[:count][::-1], np.int64)
    figure = yield from coarsened(mpc, totals.weighted_sum(weights), plan.factor, plan.shift)
    noise = yield from discrete_gaussian(mpc, 1, plan.sigma)
    return (yield from mpc.open(figure + noise))


def running_totals(plan: FeedPlan, opened: npt.NDArray[np.int64]) -> Floats:
    """Return the totals up to each interval, in steps, from the numbers published so far.

    Parameters
    ----------
    plan
        Of the feed.
    opened : (interval,), coarse steps
        What :func:`publish` opened, the oldest first.
    """
    half = 0.5 if plan.shift else 0.0
    numbers = (
        (np.asarray(opened, np.float64) + half) * 2.0**plan.shift / plan.factor / 2**FACTOR_BITS
    )
    # A = (A / R) R, where R is what was applied in whole numbers: divide, then sum.
    column = np.array(plan.column[: numbers.size], np.float64) / 2**FACTOR_BITS
    quotient = np.zeros(numbers.size)
    inverse = _inverse_column(column)
    rest = np.cumsum(inverse)
    for k in range(numbers.size):
        quotient[k] = float(np.dot(rest[: k + 1][::-1], numbers[: k + 1]))
    return quotient


def _inverse_column(column: Floats) -> Floats:
    """Return the first column of the inverse of a lower triangular Toeplitz matrix."""
    out = np.zeros(column.size)
    out[0] = 1 / column[0]
    for k in range(1, column.size):
        out[k] = -float(np.dot(column[1 : k + 1], out[:k][::-1])) / column[0]
    return out
