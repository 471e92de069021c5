"""The AC power flow on shares where there is none: refused by place, and nobody stops."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from veilgrid.grid.acflow import ac_flow
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.scenario import Scenario
from veilgrid.mpc.plain import Plain
from veilgrid.roles.sealed.day import PublicDay
from veilgrid.roles.sealed.electrical import electrical_check, out_of_reach
from veilgrid.roles.sealed.record import is_sound, verdict_of
from veilgrid.roles.sealed.register import power_steps

from .sealed_days import Ended, run_day, small


def impeded(factor: float) -> Scenario:
    """The small feeder with longer lines; no voltage limit keeps its loads from collapsing it."""
    plain = small(1)
    lines = (
        replace(b, resistance_pu=b.resistance_pu * factor, reactance_pu=b.reactance_pu * factor)
        for b in plain.network.branches
    )
    return replace(plain, network=replace(plain.network, branches=tuple(lines)))


def greedy(active: float, reactive: float) -> Scenario:
    """The small feeder, and one site that bids far more than the lines can carry."""
    plain = small(1)
    load_p, load_q = plain.load_p_mw.copy(), plain.load_q_mvar.copy()
    load_p[4], load_q[4] = active, reactive
    return replace(plain, load_p_mw=load_p, load_q_mvar=load_q)


def ran(scenario: Scenario) -> Ended:
    return run_day(scenario.day(), Limits.of(scenario.network))


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(impeded(25.0), id="long lines"),
        pytest.param(greedy(40.0, 5.0), id="one site's load"),
        pytest.param(greedy(30.0, -30.0), id="no drop but losses"),
        pytest.param(greedy(-60.0, 0.0), id="one site's surplus"),
    ],
)
def test_a_plan_without_any_power_flow_is_refused_and_the_day_ends(scenario: Scenario) -> None:
    """Else one site ends everybody's day by a number in its bid, and nobody is named."""
    ended = ran(scenario)
    assert not ended.stopped
    opened: dict[str, Any] = ended.public["certificate"]
    electrical = opened["electrical"]
    assert electrical["untried"]
    assert (electrical["vm_min_pu"], electrical["vm_max_pu"]) == (None, None)
    assert not is_sound(electrical)
    assert not verdict_of(opened)[1]


def test_what_is_far_too_large_is_not_even_tried() -> None:
    """Sweeps would make numbers of it that no mask hides."""
    tried, untried = (ran(one).parties[0].round_count for one in (small(1), greedy(40.0, 5.0)))
    assert untried < tried - 250


def looked_at(scenario: Scenario, demand: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """Check demands as the committee does, in the clear."""
    day = scenario.day()
    mpc, register = Plain(), PublicDay.of(day, Limits.of(scenario.network)).register
    shared = [mpc.constant(power_steps(part).ravel().tolist()) for part in demand]
    far = mpc.run(out_of_reach(mpc, register, *shared))
    if far:
        return {"untried": far}
    return mpc.run(electrical_check(mpc, register, *shared))  # type: ignore[return-value]


@pytest.mark.parametrize("factor", [1.0, 2.0, 3.0])
def test_what_lines_can_carry_is_tried(factor: float) -> None:
    """What settles is the plain power flow's voltage, to the tenth of a thousandth shown."""
    scenario = impeded(factor)
    demand = scenario.load_p_mw[:, :1], scenario.load_q_mvar[:, :1]
    found = looked_at(scenario, demand)
    state = ac_flow(Limits.of(scenario.network).tree, *demand)
    assert (found.get("untried"), found["moving"]) == (None, 0)
    assert found["vm_min_pu"] == pytest.approx(float(state.magnitude.min()), abs=1.01e-4)


def test_places_are_those_that_the_flow_would_move_too_far() -> None:
    scenario = impeded(1.0)
    active = np.zeros((5, 2))
    active[4, 1] = 20.0
    found = looked_at(replace(small(2), network=scenario.network), (active, 0.0 * active))
    assert {interval for _, interval in found["untried"]} == {1}
    assert {bus for bus, _ in found["untried"]} == {2, 3, 4}


@pytest.mark.parametrize(("load", "is_tried"), [(0.75, True), (0.9, False), (5.0, False)])
def test_what_overloads_a_branch_many_times_is_not_tried(load: float, is_tried: bool) -> None:
    """Squares of a loading that nobody could carry would not open, and end everybody's day."""
    active = np.zeros((5, 1))
    active[4] = load
    found = looked_at(small(1, rating=0.05), (active, 0.0 * active))
    assert found.get("untried") == (None if is_tried else [[1, 0]])
    assert not is_tried or found["over"] == [[1, 0]]
