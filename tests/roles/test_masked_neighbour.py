"""Masked days without a coordinator: neighbours agree, and third parties solve for them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import sparse

from roles.test_masked import SIX, gap_to_central, plain_answers, yingkou
from veilgrid.admm import _neighbour_site, site_step
from veilgrid.admm._neighbour_local import Targets
from veilgrid.admm._neighbour_sweep import Agreement, NeighbourSettings, plan_sweep
from veilgrid.admm.exchange import ExchangeSettings, Metric
from veilgrid.admm.neighbour import EdgeSettings, plan_neighbour
from veilgrid.admm.outcome import RunStatus
from veilgrid.admm.site_step import SiteAnswer, SiteSteps
from veilgrid.errors import RunAborted
from veilgrid.grid.lindistflow import Limits
from veilgrid.qp.dense import DenseSolution
from veilgrid.qp.leak import slacks
from veilgrid.qp.mask import EVERY_OPTION, MaskOptions
from veilgrid.qp.problem import QuadraticProgram
from veilgrid.qp.solve import RepeatedSolver, SolveSettings, solve
from veilgrid.roles import masked_neighbour
from veilgrid.roles.masked_neighbour import (
    EdgeWatched,
    MaskedNeighbourSettings,
    plan_masked_neighbour,
)
from veilgrid.roles.masked_record import HONEST, Misconduct, Watched
from veilgrid.roles.masked_task import Submission
from veilgrid.roles.operator import plan_day
from veilgrid.secret import SeededRandomness

PLAIN = MaskOptions()
SHORT = EdgeSettings(iteration_count_max=12, local_tolerance=1e-12)
"""The released settings need thousands of iterations; each one is a test by itself."""


def planned(scenario, coordination, options=PLAIN, misconduct=HONEST):
    day, limits = scenario.day(), Limits.of(scenario.network)
    seen: list[Watched] = []
    edges: list[EdgeWatched] = []
    settings = MaskedNeighbourSettings(coordination=coordination, options=options)
    outcome = plan_masked_neighbour(
        day,
        limits,
        SeededRandomness(7),
        settings,
        misconduct=misconduct,
        watch=seen.append,
        watch_edge=edges.append,
    )
    return day, limits, outcome, seen, edges


@pytest.fixture(scope="module")
def swept():
    return planned(SIX, NeighbourSettings())


def test_a_day_swept_masked_ends_at_the_optimum(swept) -> None:
    day, limits, outcome, seen, _ = swept
    plan = outcome.coordination
    assert plan.status is RunStatus.CONVERGED
    assert plan.iteration_count <= 150
    assert abs(gap_to_central(day, limits, outcome)) <= 2e-4
    assert outcome.refused == outcome.excluded == outcome.named == ()
    assert [entry.iteration for entry in plan.history] == list(range(1, plan.iteration_count + 1))
    assert {entry.kind for entry in seen} == {"cheapest", "near"}


def test_swept_iterates_are_those_of_plain_subproblems(swept, monkeypatch) -> None:
    """The same oracle as of exchange, under the sweep's own penalties."""
    day, limits, _, seen, _ = swept
    agreement, members = Agreement.of(day, limits, NeighbourSettings()), list(day.flexible)
    metric = Metric(active=agreement.penalty_p[members], reactive=agreement.penalty_q[members])
    monkeypatch.setattr(Metric, "of", classmethod(lambda *_: metric))
    near = [entry for entry in seen if entry.kind == "near"]
    assert len(near) > 10
    for kind, masked, plain, _ in plain_answers(day, limits, near[:20], ExchangeSettings()):
        assert kind == "near"
        assert masked == pytest.approx(plain, abs=1e-6)


def exact(program: QuadraticProgram, _backend: str, _settings: SolveSettings) -> RepeatedSolver:
    return RepeatedSolver(program, "clarabel", SolveSettings(tolerance=1e-12))


def test_the_whole_run_is_that_of_neighbours_who_solve_for_themselves(monkeypatch) -> None:
    """Given the same cheapest answers, of which there are many, iterates are equal to the end."""
    monkeypatch.setattr(site_step, "RepeatedSolver", exact)
    settings = NeighbourSettings(iteration_count_max=30)
    day, limits, outcome, seen, _ = planned(SIX, settings)
    cheapest = iter([entry for entry in seen if entry.kind == "cheapest"])
    agreement, members = Agreement.of(day, limits, settings), list(day.flexible)
    sites = [day.sites[i] for i in members]

    class Replayed:
        def answer(self, *_: object) -> SiteAnswer:
            entry = next(cheapest)
            own = [x[: len(site.linear)] for x, site in zip(entry.solutions, sites, strict=True)]
            return SiteAnswer(own, entry.demand_p, entry.demand_q)

    with ThreadPoolExecutor(2) as pool:

        def steps_at(scale: float):
            if scale == 0.0:
                return Replayed()
            penalties = scale * agreement.penalty_p[members], scale * agreement.penalty_q[members]
            return SiteSteps(sites, *penalties, pool)

        plain = plan_sweep(day, limits, settings, None, None, steps_at)
    ours = np.array([entry.primal for entry in outcome.coordination.history])
    theirs = np.array([entry.primal for entry in plain.history])
    assert len(ours) == 30
    np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)
    np.testing.assert_allclose(
        outcome.coordination.warm.average, plain.warm.average, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("options", [MaskOptions(), EVERY_OPTION], ids=["plain", "all"])
def test_the_published_form_has_the_iterates_of_unmasked_neighbours(
    options: MaskOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies, averages, residuals: were one off, so would be all after it."""
    monkeypatch.setattr(_neighbour_site, "BACKEND", "clarabel")  # the exacter oracle
    day, limits, outcome, _, _ = planned(SIX, SHORT, options)
    plain = plan_neighbour(day, limits, SHORT)
    ours = [(entry.primal, entry.cost) for entry in outcome.coordination.history]
    theirs = [(entry.primal, entry.cost) for entry in plain.history]
    np.testing.assert_allclose(
        [primal for primal, _ in ours], [primal for primal, _ in theirs], atol=1e-6, rtol=0
    )
    assert outcome.coordination.status is plain.status is RunStatus.ITERATION_LIMIT
    state, expected = outcome.coordination.warm, plain.warm
    np.testing.assert_allclose(state.average, expected.average, atol=1e-6, rtol=0)
    np.testing.assert_allclose(state.multiplier, expected.multiplier, atol=1e-6, rtol=0)


def test_a_masked_local_problem_is_the_local_problem() -> None:
    """An independent solver gets the same copies from the unmasked standard form."""
    _, _, _, _, edges = planned(SIX, SHORT)
    seen = edges[-1]
    for k, bus in enumerate(seen.buses):
        form = seen.forms[k]
        own = Targets(*(part[bus : bus + 1] for part in seen.targets))
        plain = form.problem
        program = QuadraticProgram(
            quadratic=sparse.csc_matrix(plain.quadratic),
            linear=form.linear(own),
            matrix=sparse.csc_matrix(sparse.vstack([plain.equal, plain.matrix])),
            lower=np.concatenate([plain.equal_to, np.full(len(plain.bound), -np.inf)]),
            upper=np.concatenate([plain.equal_to, plain.bound]),
        )
        x = solve(program, "clarabel", SolveSettings(tolerance=1e-12)).x
        np.testing.assert_allclose(
            seen.solutions[k][form.coupling], x[form.coupling], atol=2e-6, rtol=0
        )
        assert slacks(seen.problems[k], seen.records[k].submission.solution.values) == (
            pytest.approx(plain.bound - plain.matrix @ seen.solutions[k], abs=1e-9)
        )


def lie(_task, _problem, submission: Submission) -> Submission:
    moved = DenseSolution(
        y=submission.solution.y + 10**6, multipliers=submission.solution.multipliers
    )
    return Submission(submission.claim, moved)


@pytest.mark.parametrize("coordination", [NeighbourSettings(), SHORT], ids=["sweep", "published"])
def test_a_worker_that_cheats_is_barred_here_too(coordination) -> None:
    _, _, outcome, _, _ = planned(
        SIX, coordination, misconduct=Misconduct(workers={"worker-0": lie})
    )
    assert {worker for _, worker, _ in outcome.refused} == {"worker-0"}
    both = Misconduct(workers={"worker-0": lie, "worker-1": lie})
    with pytest.raises(RunAborted, match="no worker"):
        planned(SIX, coordination, misconduct=both)


def test_a_silent_site_is_excluded_and_the_others_begin_anew() -> None:
    """Plain neighbours are stalled for good by one who is silent."""
    misconduct = Misconduct(refusing={3: 3})
    day, limits, outcome, _, _ = planned(SIX, NeighbourSettings(), misconduct=misconduct)
    plan = outcome.coordination
    assert plan.status is RunStatus.CONVERGED
    assert outcome.excluded == (3,)
    assert plan.setpoints[3] == pytest.approx(day.sites[3].uncontrolled)
    assert limits.excess(day.flows(plan.setpoints)).max() <= 1e-6
    numbers = [entry.iteration for entry in plan.history]
    assert numbers == sorted(set(numbers))


def test_a_falsified_linear_cost_is_named_by_the_parent() -> None:
    def falsify(_edge, offer):
        return offer._replace(target_p=offer.target_p + 1e-3)

    misconduct = Misconduct(falsifying={3: falsify})
    day, limits, outcome, _, _ = planned(SIX, NeighbourSettings(), misconduct=misconduct)
    assert outcome.named == (str(day.sites[3].name),)
    assert abs(gap_to_central(day, limits, outcome)) <= 2e-4


def test_the_operator_runs_each_coordination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_neighbour, "PUBLISHED", SHORT)
    found = plan_day(SIX.day(), "masked", randomness=SeededRandomness(1), coordination="neighbour")
    assert found.is_as_wanted
    with pytest.raises(AssertionError, match="cannot be coordinated"):
        plan_day(SIX.day(), "central", coordination="neighbour")


@pytest.mark.slow
def test_a_yingkou_day_is_swept_masked() -> None:
    day, limits, outcome, _, _ = planned(yingkou("06"), NeighbourSettings())
    assert outcome.coordination.status is RunStatus.CONVERGED
    assert outcome.coordination.iteration_count <= 150
    assert abs(gap_to_central(day, limits, outcome)) <= 2e-4
