"""A plan that the AC power flow refuses is planned again, and nobody's demands open for it."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from veilgrid.admm.outcome import RunStatus
from veilgrid.grid.acflow import ac_flow
from veilgrid.grid.acflow import electrical_check as checked
from veilgrid.grid.correction import corrected
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits, flows
from veilgrid.grid.scenario import Scenario
from veilgrid.mpc.plain import Plain
from veilgrid.roles.operator import plan_day
from veilgrid.roles.sealed.day import PublicDay
from veilgrid.roles.sealed.electrical import electrical_check
from veilgrid.roles.sealed.message import Notice
from veilgrid.roles.sealed.narrowing import narrowed
from veilgrid.roles.sealed.register import power_steps
from veilgrid.secret import SeededRandomness

from .sealed_days import Ended, run_day, setpoints_of, small

CERTIFIED = {
    *("failed", "unlike", "is_close", "exceeded", "cost", "gap", "rent", "exchange_cost"),
    *("worse_off", "electrical"),
}
ELECTRICAL = {"low", "high", "over", "moving", "vm_min_pu", "vm_max_pu", "loading_max", "shown"}
"""What opens of a whole plan: the last row of the table of [sealed 4.3]."""

STEP = 2.0**-13
"""What differences of the two models are rounded to."""

REFUSED = replace(small(2, low=0.98), load_p_mw=1.2 * small(2).load_p_mw)


def shown_of(day: Day, limits: Limits, demand: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """Check demands as the committee does, in the clear."""
    mpc, register = Plain(), PublicDay.of(day, limits).register
    shared = [mpc.constant(power_steps(part).ravel().tolist()) for part in demand]
    found = mpc.run(electrical_check(mpc, register, *shared, is_shown=True))
    return found["shown"]  # type: ignore[no-any-return,index]


def high_and_over() -> Scenario:
    """Too much sun: voltages above their limit, and a branch over its rating."""
    plain = small(2, rating=0.6, low=0.95)
    load = np.where(np.arange(5)[:, np.newaxis] == 4, -0.65, 0.005) * np.ones((5, 2))
    return replace(
        plain,
        load_p_mw=load,
        load_q_mvar=0.01 * load,
        network=replace(plain.network, voltage_max_pu=1.02),
    )


def over_by_import() -> Scenario:
    """Load beyond a rating: the end nearer the substation carries the losses as well."""
    plain, export = small(2, rating=0.6, low=0.8), high_and_over()
    return replace(plain, load_p_mw=-export.load_p_mw, load_q_mvar=-export.load_q_mvar)


KINDS = {"low": REFUSED, "high and over": high_and_over(), "over by import": over_by_import()}


@pytest.mark.parametrize("scenario", KINDS.values(), ids=list(KINDS))
def test_limits_narrow_as_in_plain_where_a_plan_is_beyond_them_and_nowhere_else(
    scenario: Scenario,
) -> None:
    """The oracle knows all demands; here only what both models say of these places opens."""
    day, limits = scenario.day(), Limits.of(scenario.network)
    demand = day.demands(day.load_only)
    shown = shown_of(day, limits, demand)
    network, tree = scenario.network, scenario.network.tree
    exact, linear = ac_flow(tree, *demand), flows(tree, *demand)
    expected = corrected(network, limits, *demand).correction
    own = network.voltage_min_pu, network.voltage_max_pu
    mine = narrowed(limits, own, day.interval_count, shown).correction
    assert mine is not None
    assert expected is not None
    low = exact.magnitude < network.voltage_min_pu - 1e-6
    high = exact.magnitude > network.voltage_max_pu + 1e-6
    beyond = (low, high, exact.loading > 1.0 + 1e-6)
    kind = next(name for name, one in KINDS.items() if one is scenario)
    assert [places.any() for places in beyond] == [word in kind for word in ("low", "high", "over")]
    rating = np.where(np.isfinite(tree.rating_pu), tree.rating_pu, 0.0)[:, np.newaxis]
    lost = linear.voltage_squared - exact.magnitude**2
    carried = linear.active**2 + linear.reactive**2
    square = rating * exact.loading**2 - np.divide(
        carried, rating, where=rating > 0.0, out=0 * lost
    )
    most = lost, -lost, square
    for part, oracle, whole, places in zip(mine, expected, most, beyond, strict=True):
        assert (part[places] >= oracle[places] - 2e-6).all()
        assert (part[places] <= np.maximum(whole[places], 0.0) + STEP + 5e-6).all()
        assert not part[~places].any()
    for bus, interval, missed in shown["low"] + shown["high"]:
        assert missed == pytest.approx(lost[bus, interval], abs=0.51 * STEP)
    for branch, interval, missed in shown["over"]:
        off = rating[branch, 0] * missed - square[branch, interval]
        assert abs(off) <= 0.51 * STEP


@pytest.mark.parametrize("scenario", KINDS.values(), ids=list(KINDS))
def test_only_coarse_differences_open(scenario: Scenario) -> None:
    """A voltage beside its neighbour's would tell everybody what one site draws."""
    day = scenario.day()
    shown = shown_of(day, Limits.of(scenario.network), day.demands(day.load_only))
    places = [place for name in ("low", "high", "over") for place in shown[name]]
    assert places
    for place in places:
        assert len(place) == 3
        assert (place[2] / STEP).is_integer()
        assert abs(place[2]) < 0.2


def test_narrowing_never_widens_and_is_kept() -> None:
    """A third plan must not end where the first one was refused."""
    day, limits = REFUSED.day(), Limits.of(REFUSED.network)
    shown = shown_of(day, limits, day.demands(day.load_only))
    own, times = (REFUSED.network.voltage_min_pu, REFUSED.network.voltage_max_pu), 2
    once = narrowed(limits, own, times, shown)
    less = {"low": [[b, t, 0.5 * missed] for b, t, missed in shown["low"]]}
    twice = narrowed(once, own, times, less)
    assert once.correction is not None
    assert twice.correction is not None
    assert once.correction.low.any()
    np.testing.assert_array_equal(twice.correction.low, once.correction.low)


def test_what_was_rounded_down_is_added_again() -> None:
    """Else a plan could be refused for half a step, again and again."""
    day, limits = high_and_over().day(), Limits.of(high_and_over().network)
    shown = {"low": [[2, 0, 0.0]], "high": [[3, 1, 0.0]], "over": [[1, 0, 0.0]]}
    found = narrowed(limits, (0.95, 1.02), day.interval_count, shown).correction
    assert found is not None
    assert found.low[2, 0] >= 0.5 * STEP
    assert found.high[3, 1] >= 0.5 * STEP
    assert found.rating[1, 0] >= 0.25 * STEP * day.network.tree.rating_pu[1]


@pytest.fixture(scope="module")
def again() -> Ended:
    return run_day(REFUSED.day(), Limits.of(REFUSED.network))


def test_a_refused_plan_is_planned_again_until_the_power_flow_passes(again: Ended) -> None:
    day = REFUSED.day()
    refused = again.public["refused"]
    assert refused
    assert again.public["status"] == "converged"
    assert checked(REFUSED.network, *day.demands(setpoints_of(day, again))).passed
    plain = plan_day(day, "exchange")
    assert plain.replans
    assert day.cost(setpoints_of(day, again)) == pytest.approx(plain.cost, rel=2e-4)


def test_of_a_refused_plan_only_its_places_open_and_nobody_pays_it(again: Ended) -> None:
    certificates = {
        message.task: msgspec.msgpack.decode(message.result)
        for _, _, message in again.sent
        if isinstance(message, Notice) and b"electrical" in message.result
    }
    words = [message for _, _, message in again.sent if isinstance(message, Notice)]
    paid = {message.task for message in words if message.own}
    *earlier, last = sorted(certificates)
    assert len(earlier) == len(again.public["refused"])
    assert last in paid
    assert not paid & set(earlier)
    assert "shown" not in certificates[last]["electrical"]
    for found in certificates.values():
        assert set(found) == CERTIFIED
        assert set(found["electrical"]) <= ELECTRICAL
    for task in earlier:
        found = certificates[task]["electrical"]
        for name in ("low", "high", "over"):
            assert [place[:2] for place in found["shown"][name]] == found[name]


def test_what_the_operator_gets_names_the_refused_places_and_the_certificate_holds() -> None:
    """The certificate is judged within the limits that the last plan was made in."""
    plan = plan_day(REFUSED.day(), "sealed", randomness=SeededRandomness(2))
    assert plan.outcome.status is RunStatus.CONVERGED
    assert plan.certificate is not None
    assert plan.certificate.is_accepted
    assert plan.ac_check is not None
    assert plan.ac_check.passed
    assert plan.replans
    assert all("voltage_min_pu" in str(one) for one in plan.replans[0].findings)
    assert plan.margin_pu > 0.0
    assert plan.iteration_count_total > plan.outcome.iteration_count
