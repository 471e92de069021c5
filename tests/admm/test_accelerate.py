"""The balance of penalties changes them rarely, in the right direction, and not for ever."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilgrid.admm.accelerate import BALANCE_FACTOR, GuardedAnderson, PenaltyBalance


@pytest.mark.parametrize(("ratio", "factor"), [(10.0, BALANCE_FACTOR), (0.05, 1 / BALANCE_FACTOR)])
def test_a_whole_window_out_of_balance_changes_the_penalties(ratio: float, factor: float) -> None:
    """Prices that run ahead need larger penalties; the other way round they would run away."""
    balance = PenaltyBalance(window=5)
    found = [balance.judge(ratio, 1.0) for _ in range(5)]
    assert found == [1.0] * 4 + [factor]


def test_one_wild_step_changes_nothing() -> None:
    balance = PenaltyBalance(window=6)
    found = [balance.judge(1e12 if step == 3 else 0.6, 1.0) for step in range(30)]
    assert set(found) == {1.0}


@given(
    moves=st.lists(st.tuples(st.floats(0.0, 1e30), st.floats(0.0, 1e30)), max_size=400),
    most=st.integers(0, 4),
)
def test_penalties_change_a_few_times_at_most(moves: list[tuple[float, float]], most: int) -> None:
    """After the last change the iteration is one with a fixed metric, which converges."""
    balance = PenaltyBalance(change_count_max=most)
    found = [balance.judge(*move) for move in moves]
    assert sum(factor != 1.0 for factor in found) <= most
    assert set(found) <= {1.0, BALANCE_FACTOR, 1.0 / BALANCE_FACTOR}


def test_each_change_makes_the_next_window_twice_as_long_and_the_fourth_is_the_last() -> None:
    balance = PenaltyBalance(window=4)
    found = [balance.judge(100.0, 1.0) for _ in range(1000)]
    assert [k + 1 for k, factor in enumerate(found) if factor != 1.0] == [4, 12, 28, 60]


def test_acceleration_that_forgot_starts_with_plain_steps() -> None:
    """Images of another map mixed in would lead anywhere."""
    mixer = GuardedAnderson(memory=5, interval=2)
    rng = np.random.default_rng(1)
    for _ in range(5):
        mixer.mix(rng.normal(size=4), rng.normal(size=4))
    mixer.forget()
    point, step = rng.normal(size=4), rng.normal(size=4)
    np.testing.assert_array_equal(mixer.mix(point, step), point + step)
    assert not mixer.is_striding
