"""A day's round: nothing is released that the AC power flow refuses, and the report says so."""

from dataclasses import replace

import numpy as np
import pytest

from veilgrid.admm.outcome import Interrupted, Progress, RunStatus
from veilgrid.admm.reference import central
from veilgrid.cli._summary import summary_of
from veilgrid.errors import InvariantError
from veilgrid.grid.acflow import electrical_check
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.scenario import Scenario
from veilgrid.report.folders import open_scenario
from veilgrid.roles.operator import EXPOSED, REPLAN_COUNT_MAX, SCHEMES, plan_day
from veilgrid.secret import SeededRandomness

LOW = 0.992


def six_bus(**network) -> Scenario:
    scenario = open_scenario("six-bus")
    return replace(scenario, network=replace(scenario.network, **network))


def without_margin() -> Scenario:
    """A day whose voltage limit binds: LinDistFlow, without losses, lands on it, AC below it."""
    return six_bus(voltage_min_pu=LOW, voltage_margin_pu=0.0)


def overloaded() -> Scenario:
    """A day whose rating binds: losses and charging put AC above what LinDistFlow counts."""
    scenario = open_scenario("six-bus")
    branches = tuple(
        replace(b, rating_mva=0.8) if b.child == "village" else b for b in scenario.network.branches
    )
    network = replace(scenario.network, branches=branches, voltage_min_pu=None, voltage_max_pu=None)
    return replace(scenario, network=network)


@pytest.mark.parametrize("scheme", ["central", "exchange"])
def test_a_plan_that_ac_refuses_is_planned_again_with_a_wider_margin(scheme: str) -> None:
    """Released as it was, it would drive the real voltage out of its band."""
    scenario = without_margin()
    plan = plan_day(scenario.day(), scheme)
    assert plan.replans
    assert plan.is_as_wanted
    assert plan.ac_check is not None
    assert plan.ac_check.passed
    margins = [*(replan.margin_pu for replan in plan.replans), plan.margin_pu]
    assert margins[0] == 0.0
    assert margins == sorted(margins)
    assert margins[-1] > 0.0
    for replan in plan.replans:
        assert any("voltage_min_pu" in finding.problem for finding in replan.findings)
    # What passes is what an AC power flow of the released set-points says, not what was noted.
    again = electrical_check(scenario.network, *scenario.day().demands(plan.outcome.setpoints))
    assert again.passed
    assert again.vm_min_pu >= LOW - 1e-9
    # A wider margin costs something, and never helps.
    assert plan.cost is not None
    first = SCHEMES["central"](scenario.day(), Limits.of(scenario.network), None, None)
    assert plan.cost >= scenario.day().cost(first.setpoints) - 1e-4 * abs(plan.cost)


def test_the_summary_says_that_and_why_it_was_planned_again() -> None:
    scenario = without_margin()
    plan = plan_day(scenario.day(), "central")
    summary = summary_of(plan, scenario, 0.0)
    assert len(summary["replans"]) == len(plan.replans) > 0
    assert summary["margin_pu"] == plan.margin_pu > 0.0
    assert all(entry["findings"] for entry in summary["replans"])


def test_the_margin_grows_only_as_far_as_needed() -> None:
    """A margin far too wide would throw away what the network can carry."""
    plan = plan_day(without_margin().day(), "central")
    assert plan.ac_check is not None
    assert plan.ac_check.vm_min_pu <= LOW + 5e-4
    assert plan.margin_pu <= 3e-3


@pytest.mark.parametrize("scheme", ["central", "exchange"])
def test_planning_again_costs_no_more_than_one_margin_for_all(scheme: str) -> None:
    """A margin that one bus needs in one interval must not be taken from all others."""
    scenario = without_margin()
    day = scenario.day()
    plan = plan_day(day, scheme)
    assert plan.cost is not None
    narrow, wide = 0.0, 0.01  # The smallest margin for all that AC accepts.
    while wide - narrow > 1e-6:
        middle = (narrow + wide) / 2.0
        uniform = central(day, Limits.of(scenario.network, middle))
        passed = electrical_check(day.network, *day.demands(uniform.setpoints)).passed
        narrow, wide = (narrow, middle) if passed else (middle, wide)
    best = day.cost(central(day, Limits.of(scenario.network, wide)).setpoints)
    slack = 1e-6 if scheme == "central" else 1e-4
    assert plan.cost <= best * (1.0 + slack)
    assert plan.iteration_count_total >= plan.outcome.iteration_count + len(plan.replans)


def test_an_overloaded_branch_is_planned_again_with_a_smaller_share_of_the_rating() -> None:
    scenario = overloaded()
    plan = plan_day(scenario.day(), "central")
    assert plan.ac_check is not None
    assert plan.ac_check.passed
    assert plan.ac_check.loading_max is not None
    assert plan.ac_check.loading_max <= 1.0 + 1e-9
    shares = [replan.rating_share for replan in plan.replans]
    assert shares == sorted(shares, reverse=True)


def test_a_margin_of_the_network_is_used_from_the_start() -> None:
    plan = plan_day(six_bus(voltage_margin_pu=0.002).day(), "central")
    assert plan.margin_pu == 0.002
    assert not plan.replans


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_no_scheme_releases_silently_what_ac_refuses(scheme: str) -> None:
    """Either AC passes or the plan is not as wanted and says what is broken."""
    plan = plan_day(without_margin().day(), scheme)
    assert plan.ac_check is not None
    if scheme == "alone":
        assert plan.outcome.setpoints
        return
    assert plan.ac_check.passed or (not plan.is_as_wanted and plan.ac_check.findings)


def test_a_margin_so_wide_that_no_plan_is_left_is_said_to_be_infeasible() -> None:
    """AC refuses the first plan, and no wider margin has one: nothing may be released."""
    scenario = six_bus(voltage_min_pu=None, voltage_max_pu=None)
    day = replace(scenario, devices=()).day()
    sagging = electrical_check(scenario.network, *day.demands(day.load_only))
    flows = day.flows(day.load_only)
    linear_low = float(np.sqrt(flows.voltage_squared.min()))
    assert sagging.vm_min_pu < linear_low  # Losses: AC sags deeper than LinDistFlow says.
    limit = (sagging.vm_min_pu + linear_low) / 2.0
    tight = replace(
        scenario,
        devices=(),
        network=replace(scenario.network, voltage_min_pu=limit, voltage_margin_pu=0.0),
    )
    plan = plan_day(tight.day(), "central")
    assert len(plan.replans) == 1
    assert plan.outcome.status is RunStatus.INFEASIBLE
    assert plan.outcome.setpoints == []
    assert plan.settlement is None
    assert plan.certificate is None
    assert plan.cost is None
    assert not plan.is_as_wanted


def test_replanning_ends() -> None:
    """A limit that AC can never keep must not be tried for ever."""
    plan = plan_day(without_margin().day(), "central")
    assert len(plan.replans) <= REPLAN_COUNT_MAX


def test_a_second_day_started_from_the_first_needs_no_more_iterations() -> None:
    scenario = six_bus()
    first = plan_day(scenario.day(), "exchange")
    second = plan_day(scenario.day(), "exchange", start=first.outcome.warm)
    assert second.outcome.iteration_count <= first.outcome.iteration_count
    assert second.cost == pytest.approx(first.cost, rel=1e-4)


def test_a_changed_second_day_started_from_the_first_is_planned_as_well_as_from_scratch() -> None:
    """A warm start is a start, not a prejudice."""
    scenario = six_bus()
    first = plan_day(scenario.day(), "exchange")
    other = replace(scenario, load_p_mw=scenario.load_p_mw * 1.1, buy=scenario.buy * 1.2)
    warm = plan_day(other.day(), "exchange", start=first.outcome.warm)
    cold = plan_day(other.day(), "exchange")
    assert warm.is_as_wanted
    assert cold.is_as_wanted
    assert warm.cost == pytest.approx(cold.cost, rel=2e-4)


@pytest.mark.parametrize("scheme", ["exchange", "neighbour"])
def test_an_interrupted_run_returns_what_was_reached(scheme: str) -> None:
    """Ctrl-C after an hour must not throw the hour away - nor call it converged."""

    def sink(entry: Progress) -> None:
        if entry.iteration == 3:
            raise Interrupted

    plan = plan_day(six_bus().day(), scheme, progress=sink)
    assert plan.outcome.status is RunStatus.ABORTED
    assert plan.outcome.iteration_count == 3
    assert plan.cost is not None
    assert plan.settlement is not None
    assert plan.settlement.total == 0
    assert plan.certificate is not None
    assert plan.ac_check is not None
    assert not plan.is_as_wanted
    assert not plan.replans


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_each_scheme_is_checked_and_settled(scheme: str) -> None:
    plan = plan_day(six_bus().day(), scheme)
    assert plan.is_as_wanted
    assert plan.settlement is not None
    assert plan.settlement.total == 0
    assert plan.certificate is not None
    assert plan.certificate.is_accepted
    assert plan.cost is not None
    assert plan.cost <= plan.cost_alone * (1.0 + 1e-6)
    assert scheme in EXPOSED


def test_an_unknown_scheme_is_a_bug_of_the_caller() -> None:
    with pytest.raises(InvariantError, match="exchange"):
        plan_day(six_bus().day(), "majority")


def test_masks_come_from_the_randomness_that_is_given() -> None:
    """A run with a seed can be repeated to the last bit; the system's cannot."""
    day = six_bus().day()
    seeds = [1, 1, 2]
    plans = [plan_day(day, "masked", randomness=SeededRandomness(seed)).outcome for seed in seeds]
    one, again, other = (np.concatenate(plan.setpoints) for plan in plans)
    assert (one == again).all()
    assert (one != other).any()
    assert day.cost(plans[2].setpoints) == pytest.approx(day.cost(plans[0].setpoints), rel=1e-4)
