"""The contract's cases against a sealed day: nobody gains, and the right one is named."""

from dataclasses import replace

import pytest

from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import NodeId
from veilgrid.roles.attack import attack_plan
from veilgrid.roles.attack_setting import AttackOutcome
from veilgrid.roles.operator import DayPlan, plan_day
from veilgrid.roles.sealed.attack import play
from veilgrid.secret import SeededRandomness

from .sealed_days import small

SCENARIO = small(2)
DAY = SCENARIO.day()
GAS = 3


@pytest.fixture(scope="module")
def honest() -> DayPlan:
    return plan_day(DAY, "sealed", None, None, SeededRandomness(1))


def test_a_dishonest_site_is_named_and_worse_off(honest: DayPlan) -> None:
    found = attack_plan(honest, "dishonest-site", SeededRandomness(2), GAS)
    assert found.outcome is AttackOutcome.CONTAINED
    assert found.culprit == found.site == "c"
    assert found.attacker_gain < 0.0


def test_a_party_that_changes_what_it_says_is_named_and_replaced(honest: DayPlan) -> None:
    found = attack_plan(honest, "colluding-dispatcher", SeededRandomness(2))
    assert found.outcome is AttackOutcome.CONTAINED
    assert found.culprit == "party-2"
    assert abs(found.cost_change_percent) < 1e-3


def test_a_refusing_site_is_named_and_the_others_plan_on(honest: DayPlan) -> None:
    found = attack_plan(honest, "refusing-site", SeededRandomness(2), GAS)
    assert found.outcome is AttackOutcome.CONTAINED
    assert found.culprit == "c"
    assert found.cost_change_percent > 0.0


@pytest.mark.parametrize(("task", "place"), [(0, 2), (2, 3), (4, 5)])
def test_a_wrong_share_in_any_task_names_its_party(task: int, place: int) -> None:
    """Bids, an answer, a later wish: nothing opens that a corrupt party could have bent."""
    limits = Limits.of(DAY.network)
    deviant = (NodeId("party-3"), task, place)
    ended = play(DAY, limits, SeededRandomness(5), deviant=deviant)
    assert ended.coordination is None
    assert ended.culprits == ("party-3",)


NARROW = small(2, rating=0.25).day()
OIL = 4
"""Without its choice nothing keeps the rating of the first branch of NARROW."""


@pytest.fixture(scope="module")
def narrow() -> DayPlan:
    return replace(plan_day(NARROW, "exchange"), scheme="sealed")  # The same, in less time.


@pytest.mark.parametrize(
    ("case", "outcome"),
    [("dishonest-site", AttackOutcome.CONTAINED), ("refusing-site", AttackOutcome.STALLED)],
)
def test_a_day_that_needs_the_attacker_is_told_with_bus_and_interval(
    narrow: DayPlan, case: str, outcome: AttackOutcome
) -> None:
    """Who lies for money gets none; who refuses leaves all alone, as it can under any scheme."""
    found = attack_plan(narrow, case, SeededRandomness(2), OIL)
    assert found.outcome is outcome
    assert found.culprit == found.site == "d"
    assert {(one.limit, one.bus) for one in found.obstacles} == {("rating", "a")}
    assert f"interval {found.obstacles[0].interval}" in found.why
    settlement = narrow.settlement
    assert settlement is not None
    account = settlement.accounts[OIL]
    assert found.attacker_gain == pytest.approx((account.cost - account.cost_alone) / 1e6)
    base = narrow.cost or 1.0
    change = 100.0 * (narrow.cost_alone - base) / abs(base)
    assert found.cost_change_percent == pytest.approx(change)
