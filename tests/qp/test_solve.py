"""Two back-ends agree, and nobody believes either: the certificate is recomputed from the data."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from veilgrid.errors import InvariantError
from veilgrid.qp.explain import elastic
from veilgrid.qp.problem import Certificate, QuadraticProgram, Solution, SolveStatus
from veilgrid.qp.solve import BACKENDS, RepeatedSolver, SolveSettings, solve

seeds = st.integers(0, 2**32 - 1)


def program(seed: int, variables: int = 6, rows: int = 5) -> QuadraticProgram:
    """A strictly convex problem, feasible by construction: bounds lie around a point."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(variables, variables))
    matrix = rng.normal(size=(rows, variables)) * (rng.random((rows, variables)) < 0.7)
    middle = matrix @ rng.normal(size=variables)
    width = rng.uniform(0.0, 2.0, (2, rows))
    kind = rng.integers(0, 4, rows)
    return QuadraticProgram(
        quadratic=sparse.csc_matrix(root @ root.T + 0.5 * np.eye(variables)),
        linear=3.0 * rng.normal(size=variables),
        matrix=sparse.csc_matrix(matrix),
        lower=np.where(kind == 1, -np.inf, np.where(kind == 0, middle, middle - width[0])),
        upper=np.where(kind == 2, np.inf, np.where(kind == 0, middle, middle + width[1])),
    )


def small(
    lower: list[float], upper: list[float], quadratic: float = 1.0, linear: float = 0.0
) -> QuadraticProgram:
    """One variable, one row for each pair of bounds."""
    return QuadraticProgram(
        quadratic=sparse.csc_matrix([[quadratic]]),
        linear=np.array([linear]),
        matrix=sparse.csc_matrix(np.ones((len(lower), 1))),
        lower=np.array(lower),
        upper=np.array(upper),
    )


@given(seed=seeds)
@settings(max_examples=60)
def test_two_back_ends_find_the_same_optimum(seed: int) -> None:
    """A wrong sign of a bound or multiplier in either form would show as another optimum."""
    problem = program(seed)
    fine = SolveSettings(tolerance=1e-11)
    one, two = solve(problem, "clarabel", fine), solve(problem, "osqp", fine)
    assert one.status is two.status is SolveStatus.OPTIMAL
    np.testing.assert_allclose(one.x, two.x, atol=1e-6)
    for found in (one, two):
        certificate = found.certificate(problem)
        assert certificate.is_accepted(1e-6, 1e-6, 1e-6), certificate


@given(seed=seeds, shift=st.sampled_from([-0.01, 0.01, 0.3]), data=st.data())
@settings(max_examples=60)
def test_a_perturbed_solution_is_refused(seed: int, shift: float, data: st.DataObject) -> None:
    """A back-end that stops early, or a worker that lies, must not pass."""
    problem = program(seed)
    found = solve(problem)
    place = data.draw(st.integers(0, len(found.x) - 1))
    x = found.x.copy()
    x[place] += shift
    assert not replace(found, x=x).certificate(problem).is_accepted(1e-6, 1e-6, 1e-6)


@given(seed=seeds)
@settings(max_examples=60)
def test_a_perturbed_multiplier_is_refused(seed: int) -> None:
    problem = program(seed)
    found = solve(problem)
    place = int(np.argmax(abs(problem.matrix).sum(axis=1)))
    multipliers = found.multipliers.copy()
    multipliers[place] += 0.1
    assert not replace(found, multipliers=multipliers).certificate(problem).is_accepted()


@given(seed=seeds, data=st.data())
@settings(max_examples=40)
def test_no_claimed_bound_exceeds_the_optimum(seed: int, data: st.DataObject) -> None:
    """Weak duality: any multipliers that balance the gradient bound the optimum from below."""
    problem = program(seed)
    best = problem.objective(solve(problem).x)
    rng = np.random.default_rng(data.draw(seeds))
    multipliers = rng.normal(size=len(problem.lower))
    multipliers[np.isinf(problem.upper) & (multipliers > 0)] = 0.0
    multipliers[np.isinf(problem.lower) & (multipliers < 0)] = 0.0
    gradient = problem.linear + problem.matrix.T @ multipliers
    x = np.linalg.solve(problem.quadratic.toarray(), -gradient)
    certificate = Solution(
        status=SolveStatus.OPTIMAL,
        x=x,
        multipliers=multipliers,
        backend="by hand",
        iteration_count=0,
    ).certificate(problem)
    assert certificate.dual <= 1e-9
    objective = problem.objective(x)
    bound = objective - certificate.gap * max(1.0, abs(objective))
    assert bound <= best + 1e-7 * max(1.0, abs(best))


@pytest.mark.parametrize("field", ["x", "multipliers"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_solution_that_is_no_number_is_never_accepted(field: str, poison: float) -> None:
    """Comparisons with NaN are false: written the other way round, NaN would pass."""
    problem = program(3)
    found = solve(problem)
    values = getattr(found, field).copy()
    values[0] = poison
    certificate = replace(found, **{field: values}).certificate(problem)
    assert not certificate.is_accepted(np.inf, np.inf, 1.0)
    assert not certificate.is_accepted()


@pytest.mark.parametrize("place", range(3))
def test_a_certificate_with_a_nan_is_never_accepted(place: int) -> None:
    figures = [0.0, 0.0, 0.0]
    figures[place] = np.nan
    assert not Certificate(*figures).is_accepted()


@pytest.mark.parametrize(
    ("lower", "upper", "multiplier"), [(-np.inf, 1.0, -2.0), (-1.0, np.inf, 2.0)]
)
def test_a_multiplier_on_an_infinite_bound_is_a_dual_violation(
    lower: float, upper: float, multiplier: float
) -> None:
    """It would balance the gradient at any point and prove any point optimal."""
    problem = small([lower], [upper], linear=-multiplier)
    claimed = Solution(
        status=SolveStatus.OPTIMAL,
        x=np.zeros(1),
        multipliers=np.array([multiplier]),
        backend="a liar",
        iteration_count=0,
    )
    assert claimed.certificate(problem).dual == abs(multiplier)
    assert not claimed.certificate(problem).is_accepted()


@given(seed=seeds, data=st.data())
@settings(max_examples=40)
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_a_solver_kept_warm_finds_what_a_fresh_one_finds(
    backend: str, seed: int, data: st.DataObject
) -> None:
    """State left over from an earlier solve would give a stale or mixed answer."""
    problem = program(seed)
    kept = RepeatedSolver(problem, backend)
    rng = np.random.default_rng(seed)
    for _ in range(4):
        shift = rng.normal(size=len(problem.linear))
        moved = problem.matrix @ (0.3 * shift)
        changed = data.draw(st.sets(st.sampled_from(["linear", "bounds"])))
        updates = {}
        if "linear" in changed:
            updates["linear"] = problem.linear + shift
        if "bounds" in changed:
            updates |= {"lower": problem.lower + moved, "upper": problem.upper + moved}
        problem = replace(problem, **updates)
        found, fresh = kept.solve(**updates), solve(problem)
        assert found.status is fresh.status is SolveStatus.OPTIMAL
        np.testing.assert_allclose(found.x, fresh.x, atol=1e-5)
        assert found.certificate(problem).is_accepted(1e-6, 1e-6, 1e-6)


def test_what_splitting_cannot_finish_is_solved_all_the_same() -> None:
    """An iteration limit of one back-end must not come out as an inaccurate answer."""
    problem = program(5)
    kept = RepeatedSolver(problem, "osqp", SolveSettings(tolerance=1e-9, iteration_count_max=10))
    found = kept.solve()
    assert found.backend == "clarabel"
    assert found.certificate(problem).is_accepted(1e-6, 1e-6, 1e-6)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_infeasible_and_unbounded_are_values(backend: str) -> None:
    """An outcome of the data is no exception: callers explain it to people."""
    contradiction = small([1.0, -np.inf], [np.inf, 0.0])
    assert solve(contradiction, backend).status is SolveStatus.INFEASIBLE
    downhill = small([0.0], [np.inf], quadratic=0.0, linear=-1.0)
    assert solve(downhill, backend).status is SolveStatus.UNBOUNDED


def test_an_iteration_limit_is_a_value() -> None:
    found = solve(program(7), "clarabel", SolveSettings(iteration_count_max=1))
    assert found.status is SolveStatus.ITERATION_LIMIT


def test_a_warm_solver_finds_its_way_back_from_infeasible_bounds() -> None:
    """One impossible interval must not spoil the next, possible one."""
    kept = RepeatedSolver(small([0.0, -1.0], [1.0, 1.0], linear=-5.0), "osqp")
    assert kept.solve(lower=np.array([0.0, 3.0]), upper=np.array([1.0, 4.0])).status is (
        SolveStatus.INFEASIBLE
    )
    found = kept.solve(lower=np.array([0.0, -1.0]), upper=np.array([1.0, 0.5]))
    assert found.status is SolveStatus.OPTIMAL
    np.testing.assert_allclose(found.x, [0.5], atol=1e-6)


KINDS = [(-np.inf, 1.0), (0.25, 0.25), (0.5, np.inf), (-1.0, 1.5), (-np.inf, np.inf)]


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("pull", [-5.0, 5.0])
def test_a_solver_kept_warm_follows_a_row_that_changes_its_kind(
    backend: str, first: tuple[float, float], pull: float
) -> None:
    """A form prepared for an open row would never hear of the bound that it gets later."""
    kept = RepeatedSolver(small([first[0]], [first[1]], linear=pull), backend)
    for low, high in (first, *KINDS):
        found = kept.solve(lower=np.array([low]), upper=np.array([high]))
        np.testing.assert_allclose(found.x, [np.clip(-pull, low, high)], atol=1e-6)


@pytest.mark.parametrize(
    "broken",
    [
        {"linear": np.zeros(2)},
        {"lower": np.array([2.0])},
        {"lower": np.array([np.nan])},
        {"upper": np.zeros(3)},
    ],
)
def test_data_that_do_not_fit_together_are_a_bug(broken: dict) -> None:
    with pytest.raises(InvariantError):
        replace(small([0.0], [1.0]), **broken)


def test_an_unknown_back_end_is_a_bug_that_names_those_known() -> None:
    with pytest.raises(InvariantError, match="clarabel"):
        solve(small([0.0], [1.0]), "abacus")


@given(
    seed=seeds,
    above=st.floats(0.1, 2.0),
    planted=st.sets(st.integers(0, 5), min_size=1, max_size=3),
)
@settings(max_examples=40)
def test_the_explanation_names_exactly_the_planted_contradictions(
    seed: int, above: float, planted: set[int]
) -> None:
    """Each variable has a hard range; a planted row asks for more than its range holds."""
    rng = np.random.default_rng(seed)
    count = 6
    high = rng.uniform(0.5, 1.5, count)
    asked = np.where(np.isin(np.arange(count), list(planted)), high + above, high / 2.0)
    problem = QuadraticProgram(
        quadratic=sparse.csc_matrix(np.eye(count)),
        linear=rng.normal(size=count),
        matrix=sparse.csc_matrix(np.vstack([np.eye(count), np.eye(count)])),
        lower=np.concatenate([np.zeros(count), asked]),
        upper=np.concatenate([high, np.full(count, np.inf)]),
    )
    assert solve(problem).status is SolveStatus.INFEASIBLE
    found = elastic(problem, np.concatenate([np.zeros(count), np.ones(count)]))
    assert not found.is_hard_infeasible
    assert set(np.flatnonzero(found.violation)) == {count + k for k in planted}
    np.testing.assert_allclose(found.violation[[count + k for k in sorted(planted)]], -above)
    bent = replace(problem, lower=problem.lower + np.minimum(found.violation, 0.0) - 1e-9)
    assert solve(bent).status is SolveStatus.OPTIMAL


def test_the_explanation_spreads_over_rows_that_only_together_cannot_be_met() -> None:
    """x >= 1 and x <= 0: either is to blame, the sum of what is missing is one."""
    found = elastic(small([1.0, -np.inf], [np.inf, 0.0]), np.ones(2))
    assert abs(found.violation).sum() == pytest.approx(1.0)


def test_a_contradiction_among_hard_rows_is_said_so() -> None:
    found = elastic(small([1.0, -np.inf, 0.0], [np.inf, 0.0, 1.0]), np.array([0.0, 0.0, 1.0]))
    assert found.is_hard_infeasible
    assert not found.violation.any()


def test_a_feasible_problem_needs_no_explanation() -> None:
    problem = program(11)
    found = elastic(problem, np.ones(len(problem.lower)))
    assert not found.violation.any()
