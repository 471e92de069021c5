"""Numbers of one site that no honest one sends: they stop nobody and keep no day from its end."""

from dataclasses import replace

import numpy as np
import pytest

from veilgrid.admm import exchange
from veilgrid.admm.exchange import DEARER, Retry
from veilgrid.admm.network_step import INNER_MAX
from veilgrid.grid.lindistflow import Limits
from veilgrid.mpc.field import BOUND_MAX
from veilgrid.roles.sealed import course
from veilgrid.roles.sealed.course import CONVERGED
from veilgrid.roles.sealed.day import SETTINGS, PublicDay
from veilgrid.roles.sealed.kinds import REGRET, WISH, Task
from veilgrid.roles.sealed.program import AMOUNT_BITS, CLAIM_MAX, NARROW_PRICE
from veilgrid.roles.sealed.register import POWER_BITS, POWER_MAX

from .sealed_days import run_day, small
from .test_sealed_liars import ANSWER, on, plus

SCENARIO = small(2, rating=0.55, low=0.97)
DAY, LIMITS = SCENARIO.day(), Limits.of(SCENARIO.network)
LIAR = 2
"""The bus with the battery."""
TIMES = 2 * DAY.interval_count


@pytest.mark.parametrize("amount", [-(2**60), -(2**125)])
def test_a_square_below_zero_stops_nobody(amount: int) -> None:
    """Its root is no real number: every party's and site's machine ended with an error."""
    lie = on(ANSWER, plus(slice(TIMES + 2, None), amount))
    ended = run_day(DAY, LIMITS, {LIAR: lie}, settings=replace(SETTINGS, iteration_count_max=40))
    assert ended.excluded == {}
    assert ended.public["status"] == CONVERGED
    assert all(isinstance(one[3], float) for one in ended.public["history"])


def test_demands_claimed_on_the_way_neither_stop_a_day_nor_keep_it_from_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They set the distance kept from limits, the last time for good: machines stopped on it."""
    monkeypatch.setattr(exchange, "TIGHTENED", (4, 8))
    monkeypatch.setattr(exchange, "DEARER", np.inf)
    monkeypatch.setattr(course, "STALLED_FROM", 10)

    def lie(kind: str, at: int, own: list[int]) -> list[int] | None:
        return plus(slice(0, TIMES), 2**60)(own) if kind == ANSWER and at < 9 else own

    settings = replace(SETTINGS, iteration_count_max=80)
    ended = run_day(DAY, LIMITS, {LIAR: lie}, settings=settings)
    assert ended.excluded == {}
    assert ended.public["status"] == CONVERGED


def test_a_watched_day_takes_nobodys_word_for_the_distance_from_limits() -> None:
    """Claims count within public bounds, and rows that weigh nothing move no limit far."""
    now = PublicDay.of(DAY, LIMITS).course()
    now.is_watched, now._strength, now._claimed = True, 1.0, (1e9, 0.0)
    now._go(WISH, 132)
    budget = SETTINGS.inner_share * SETTINGS.gap_max * now.turnover_min
    assert now.register.inner == pytest.approx(course.WATCHED_TURNOVERS * budget)
    now._claimed = (0.0, 0.0)
    now._go(WISH, 144)
    assert now.register.inner == pytest.approx(budget)
    now._strength = 1e-30
    now._go(WISH, 156)
    assert now.register.inner == INNER_MAX


def test_a_distance_that_has_become_dear_is_set_anew_at_once() -> None:
    """It was set when rows weighed little, and stayed so large for good after iteration 64."""
    now = PublicDay.of(DAY, LIMITS).course()
    now._claimed, now._strength = (1e3 * now.turnover_min, 0.0), 1.0
    budget = SETTINGS.inner_share * now._allowed
    now._go(WISH, 64)
    assert now.register.inner == pytest.approx(budget)
    now._strength = 0.9 * DEARER
    now._go(WISH, 65)
    assert now.register.inner == pytest.approx(budget)
    now._strength = 2.0
    now._go(WISH, 66)
    assert now.register.inner == pytest.approx(budget / 2.0)


def test_a_residual_claimed_too_small_does_not_keep_regrets_from_being_asked_for() -> None:
    """Once a day is watched the residual decides nothing: it is claimed as well."""
    now = PublicDay.of(DAY, LIMITS).course()
    now.is_watched, now._retry, now.task = True, Retry(0.0, 1.0), Task(300, ANSWER, 129)
    found = {"products": [1.0], "cost": 1.0, "gap": 0.0, "fits": True}
    now.advance(found)
    assert now.task.kind == REGRET


def test_sums_over_thousands_of_sites_without_choice_are_let_pass() -> None:
    """They were refused from 1,366 buses on, and the day stopped without a name."""
    count = 5_000 * 2 * 96
    assert NARROW_PRICE * POWER_MAX * count <= BOUND_MAX


def test_no_honest_payment_is_out_of_range() -> None:
    """A large load on an expensive day was named as if it had lied."""
    dear, most = 3.0 * 288, POWER_MAX / 2.0**POWER_BITS
    assert dear * most * 2.0**AMOUNT_BITS <= CLAIM_MAX


def test_a_plan_that_exceeds_a_row_is_not_close_however_small_its_gap() -> None:
    """Its certificate must not accept it, though here any gap is small enough."""
    scenario = small(2, low=0.98)
    scenario = replace(scenario, load_p_mw=1.5 * scenario.load_p_mw)
    settings = replace(SETTINGS, iteration_count_max=1, gap_max=1.0)
    ended = run_day(scenario.day(), Limits.of(scenario.network), settings=settings)
    opened = ended.public["certificate"]
    assert opened["exceeded"]
    assert opened["gap"] <= opened["cost"]
    assert not opened["is_close"]
