"""A running total is published with the error that was printed, by the way with the least."""

import math
from typing import Any

import numpy as np
import pytest

from veilgrid.errors import InputError
from veilgrid.mpc.plain import Plain
from veilgrid.risk.accountant import zcdp_delta
from veilgrid.risk.privacy import Guarantee
from veilgrid.risk.privacy_feed import (
    FACTOR_BITS,
    WAYS,
    column_norm,
    plan_feed,
    publish,
    running_totals,
    square_root,
)

PROMISE = Guarantee(1.0, 1e-6)


def toeplitz(column: Any) -> Any:
    count = len(column)
    return np.array([[column[i - j] if i >= j else 0 for j in range(count)] for i in range(count)])


def test_the_root_squared_is_the_matrix_of_running_totals() -> None:
    root = toeplitz(square_root(50))
    assert np.abs(root @ root - np.tril(np.ones((50, 50)))).max() < 1e-12


@pytest.mark.parametrize("block", [1, 7, 40])
def test_the_norm_is_that_of_the_worst_day(block: int) -> None:
    """Every start of the day and random changes within it: none moves more than was said."""
    generator = np.random.default_rng(1)
    root = toeplitz(square_root(40))
    limit = column_norm(square_root(40), block)
    worst = 0.0
    for start in range(40 - block + 1):
        change = np.zeros(40)
        change[start : start + block] = 1.0
        worst = max(worst, float(np.linalg.norm(root @ change)))
        change[start : start + block] = generator.uniform(-1, 1, block)
        assert np.linalg.norm(root @ change) <= limit + 1e-9
    assert worst == pytest.approx(limit)


def test_the_factor_wins_where_it_should_and_is_left_where_not() -> None:
    """For a whole day protected on a feed of one day, plain noise on intervals is better."""
    a_slot = plan_feed(PROMISE, 96, 1000, block=1)
    a_day = plan_feed(PROMISE, 96, 1000, block=96)
    a_month = plan_feed(PROMISE, 30 * 96, 1000, block=96)
    assert (a_slot.way, a_day.way, a_month.way) == ("factor", "interval", "factor")
    assert a_slot.errors["interval"] / a_slot.errors["factor"] > 2.5
    assert a_month.errors["interval"] / a_month.errors["factor"] > 1.4
    for plan in (a_slot, a_day, a_month):
        assert plan.error <= 1.1 * plan.errors[plan.way]


@pytest.mark.parametrize("way", WAYS)
def test_published_totals_have_the_error_that_was_printed(way: str) -> None:
    intervals = 8
    generator = np.random.default_rng(2)
    readings = generator.integers(0, 50_000, intervals)
    plan = plan_feed(PROMISE, intervals, 700, block=4, way=way)
    truth, errors = np.cumsum(readings), []
    for seed in range(15):
        plain = Plain(seed)
        opened = []
        for k in range(intervals):
            steps = publish(plain, plan, plain.constant(readings[: k + 1]))
            with pytest.raises(StopIteration) as stop:
                next(steps)
            opened += stop.value.value
        errors.append(running_totals(plan, np.array(opened)) - truth)
    found = math.sqrt(float((np.array(errors) ** 2).mean()))
    assert found == pytest.approx(plan.error, rel=0.35)


@pytest.mark.parametrize(("intervals", "block"), [(96, 96), (96, 1), (480, 96)])
def test_the_change_by_one_day_is_within_what_the_noise_covers(intervals: int, block: int) -> None:
    """With the rounding on shares that is really done, not with real numbers."""
    generator = np.random.default_rng(3)
    plan = plan_feed(PROMISE, intervals, 900, block=block, way="factor")
    matrix = toeplitz(plan.column).astype(object)
    covered = zcdp_delta(0.5 / plan.sigma**2 * _worst(plan, matrix, generator, block), 1.0)
    assert covered <= PROMISE.delta
    assert FACTOR_BITS >= 10


def _worst(plan: Any, matrix: Any, generator: Any, block: int) -> float:
    """Return the largest squared change of the coarse numbers over some feeds and days."""
    worst = 0.0
    for start in (0, plan.intervals - block):
        feed = generator.integers(0, 10**6, plan.intervals).astype(object)
        other = feed.copy()
        other[start : start + block] += 900
        coarse = [(matrix @ one) * plan.factor // 2**plan.shift for one in (feed, other)]
        change = (coarse[1] - coarse[0]).astype(float)
        worst = max(worst, float(change @ change))
    return worst


def test_feeds_without_end_are_refused() -> None:
    with pytest.raises(InputError, match="each month"):
        plan_feed(PROMISE, 100_000, 10)
    with pytest.raises(InputError, match="factor, interval, prefix"):
        plan_feed(PROMISE, 10, 10, way="magic")
