"""PIQP takes a problem apart: bounds, fixed variables, empty rows. Nothing may get lost."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from veilgrid.admm.reference import stack
from veilgrid.grid.device import Battery
from veilgrid.grid.horizon import Horizon
from veilgrid.grid.network import BusId
from veilgrid.grid.site import Site
from veilgrid.qp.problem import QuadraticProgram, SolveStatus
from veilgrid.qp.solve import RepeatedSolver, SolveSettings, solve

seeds = st.integers(0, 2**32 - 1)

FINE = SolveSettings(tolerance=1e-9)


def boxed(seed: int, variables: int = 7, rows: int = 4) -> QuadraticProgram:
    """A feasible problem whose rows are of every kind that the form tells apart.

    Rows come in random order: some couple variables, some are a variable's bounds, with any factor,
    some bound a variable a second time, some have no bounds, some no entries.
    """
    rng = np.random.default_rng(seed)
    point = rng.normal(size=variables)
    root = rng.normal(size=(variables, variables)) * (rng.random(variables) < 0.7)
    coupling = rng.normal(size=(rows, variables)) * (rng.random((rows, variables)) < 0.5)
    single = np.diag(rng.choice([-2.0, -1.0, 1.0, 0.5], variables))
    again = np.eye(variables)[rng.integers(0, variables, 3)] * rng.choice([-1.0, 3.0], (3, 1))
    matrix = np.vstack([coupling, single, again, np.zeros((2, variables))])
    matrix = matrix[rng.permutation(len(matrix))]
    middle, width = matrix @ point, rng.uniform(0.1, 2.0, (2, len(matrix)))
    kind = rng.choice(5, len(matrix), p=[0.25, 0.1, 0.1, 0.5, 0.05])
    is_one = np.count_nonzero(matrix, axis=1) == 1
    kind[is_one] = np.where(kind[is_one] == 4, 3, kind[is_one])
    return QuadraticProgram(
        quadratic=sparse.csc_matrix(root @ root.T + 0.1 * np.eye(variables)),
        linear=3.0 * rng.normal(size=variables),
        matrix=sparse.csc_matrix(matrix),
        lower=np.where(np.isin(kind, (1, 4)), -np.inf, np.where(kind, middle - width[0], middle)),
        upper=np.where(np.isin(kind, (2, 4)), np.inf, np.where(kind, middle + width[1], middle)),
    )


@given(seed=seeds)
@settings(max_examples=150)
def test_a_problem_taken_apart_has_the_same_optimum_and_a_proof(seed: int) -> None:
    """A bound of a negative factor, or a multiplier of a fixed variable, is easily turned round."""
    problem = boxed(seed)
    found, other = solve(problem, "piqp", FINE), solve(problem, "clarabel", FINE)
    assert found.status is other.status is SolveStatus.OPTIMAL
    assert found.backend == "piqp"
    assert found.certificate(problem).is_accepted(1e-7, 1e-6, 1e-7), found.certificate(problem)
    best = problem.objective(other.x)
    assert problem.objective(found.x) == pytest.approx(best, abs=1e-6 * max(1.0, abs(best)))


@given(seed=seeds, data=st.data())
@settings(max_examples=60)
def test_an_answer_does_not_depend_on_what_was_asked_before(seed: int, data: st.DataObject) -> None:
    """Bounds, costs or fixed values left over from before would give a mixed answer."""
    problem = boxed(seed)
    kept = RepeatedSolver(problem, "piqp", FINE)
    rng = np.random.default_rng(seed)
    for _ in range(3):
        shift = rng.normal(size=len(problem.linear))
        updates = {"linear": problem.linear + shift}
        if data.draw(st.booleans()):
            moved = problem.matrix @ (0.3 * shift)
            updates |= {"lower": problem.lower + moved, "upper": problem.upper + moved}
        problem = replace(problem, **updates)
        fresh = RepeatedSolver(problem, "piqp", FINE).solve()
        found = kept.solve(**updates)
        assert found.backend == "piqp"
        assert found.certificate(problem).is_accepted(1e-7, 1e-6, 1e-7)
        np.testing.assert_allclose(found.x, fresh.x, atol=1e-9)


@pytest.mark.parametrize(("low", "high"), [(0.5, 1.0), (-1.0, -0.5), (0.25, 0.25)])
def test_a_row_without_anything_left_to_choose_is_still_checked(low: float, high: float) -> None:
    """A battery whose ranges are zero but whose balance is not has no plan."""
    program = QuadraticProgram(
        quadratic=sparse.csc_matrix((2, 2)),
        linear=np.zeros(2),
        matrix=sparse.csc_matrix([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]),
        lower=np.array([low, 0.0, 0.0]),
        upper=np.array([high, 0.0, 0.0]),
    )
    assert solve(program, "piqp").status is SolveStatus.INFEASIBLE
    met = replace(program, lower=np.array([low, low, 0.0]), upper=np.array([high, low, 0.0]))
    found = solve(met, "piqp")
    assert (found.status, found.backend) == (SolveStatus.OPTIMAL, "piqp")
    np.testing.assert_array_equal(found.x, [low, 0.0])


@pytest.mark.parametrize("charge_mw", [0.0, 0.3])
@pytest.mark.parametrize("power", [1e-6, 1.0, 1e3])
def test_storage_that_costs_nothing_is_solved_and_proved(charge_mw: float, power: float) -> None:
    """Many plans are equally good, of which none is a corner: the answer still needs its proof."""
    battery = Battery(
        name="free",
        bus=BusId("a"),
        charge_max_mw=charge_mw,
        discharge_max_mw=0.2,
        energy_max_mwh=0.5,
        energy_initial_mwh=0.1,
        discharge_efficiency=0.9,
    )
    horizon = Horizon(start="2026-11-22T00:00:00+00:00", interval_minutes=60, interval_count=24)
    blank = np.zeros(24)
    site = Site.of("a", 0, [battery], horizon, 1.0, blank, blank)
    own = stack([site])
    for price in (np.ones(24), np.repeat([1.0, 3.0], 12), blank):
        asked = replace(own, linear=own.linear - site.inject_p.T @ (power * price))
        found = solve(asked, "piqp", FINE)
        assert found.backend == "piqp"
        best = asked.objective(solve(asked, "clarabel", FINE).x)
        assert asked.objective(found.x) == pytest.approx(best, abs=1e-7 * power + 2e-9)
        certificate = found.certificate(asked)
        assert certificate.primal <= 1e-8
        assert certificate.dual <= 1e-7 * max(1.0, power)
