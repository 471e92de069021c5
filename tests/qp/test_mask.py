"""A masked problem has the solution of the plain one, whatever the mask; slacks do not change."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, sparse

from veilgrid.qp.dense import (
    DenseSolution,
    DenseSolver,
    certificate,
    is_acceptable,
    quantised,
)
from veilgrid.qp.leak import is_redundant, opposite_pairs, slacks
from veilgrid.qp.mask import (
    CONDITION,
    EVERY_OPTION,
    MaskOptions,
    StandardForm,
    draw_mask,
    null_space,
)
from veilgrid.qp.problem import QuadraticProgram
from veilgrid.qp.solve import SolveSettings, solve
from veilgrid.secret import SeededRandomness

OPTIONS = {
    "plain": MaskOptions(),
    "scaled": MaskOptions(has_row_scaling=True),
    "shuffled": MaskOptions(has_permutation=True),
    "decoys": MaskOptions(decoy_share=0.5),
    "all": EVERY_OPTION,
}


def drawn_form(seed: int, width: int = 12, equal: int = 4, *, is_strict: bool = True):
    """Draw a bounded program that is feasible by construction."""
    draw = np.random.default_rng(seed)
    inside = draw.normal(size=width)
    rows = draw.normal(size=(equal, width))
    curve = draw.uniform(0.5, 2.0, width) if is_strict else np.zeros(width)
    unit = sparse.identity(width, format="csr")
    more = sparse.csr_matrix(draw.normal(size=(3, width)))
    return StandardForm(
        quadratic=sparse.diags(curve, format="csr"),
        linear=draw.normal(size=width) * 5.0,
        equal=sparse.csr_matrix(rows),
        equal_to=rows @ inside,
        matrix=sparse.csr_matrix(sparse.vstack([-unit, unit, more])),
        bound=np.concatenate(
            [
                draw.uniform(0.1, 2.0, width) - inside,
                inside + draw.uniform(0.1, 2.0, width),
                more @ inside + draw.uniform(0.0, 1.0, 3),
            ]
        ),
    )


def plain_solution(form: StandardForm):
    """Solve by the independent back-end, unmasked."""
    program = QuadraticProgram(
        quadratic=sparse.csc_matrix(form.quadratic),
        linear=form.linear,
        matrix=sparse.csc_matrix(sparse.vstack([form.equal, form.matrix])),
        lower=np.concatenate([form.equal_to, np.full(len(form.bound), -np.inf)]),
        upper=np.concatenate([form.equal_to, form.bound]),
    )
    return solve(program, "clarabel", SolveSettings(tolerance=1e-12)).x


@given(seed=st.integers(0, 10**6), name=st.sampled_from(sorted(OPTIONS)))
@settings(max_examples=40)
def test_a_masked_solution_recovers_to_the_plain_one(seed: int, name: str) -> None:
    """Were it another, sites would follow plans that nobody wants."""
    form = drawn_form(seed)
    key = draw_mask(form, SeededRandomness(seed), OPTIONS[name])
    problem = key.masked()
    found = DenseSolver(problem).solve(problem.linear)
    assert is_acceptable(certificate(problem, found))
    expected = plain_solution(form)
    assert key.recover(found.values) == pytest.approx(expected, abs=1e-6)
    chosen = [0, 3, 7]
    assert key.rows_for(chosen).recover(found.values) == pytest.approx(expected[chosen], abs=1e-6)
    assert form.equal @ key.recover(found.values) == pytest.approx(form.equal_to, abs=1e-9)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25)
def test_slacks_are_the_same_under_any_mask(seed: int) -> None:
    """The audit rests on this identity: each row publishes its slack."""
    form = drawn_form(seed)
    draw = np.random.default_rng(seed)
    for number in range(2):
        key = draw_mask(form, SeededRandomness(seed + number), MaskOptions(condition=30.0))
        y = draw.normal(size=key.width)
        shown = slacks(key.masked(), y)
        assert shown == pytest.approx(form.bound - form.matrix @ key.recover(y), abs=1e-9)


def test_two_masks_of_one_problem_share_no_number() -> None:
    """A mask that was not fresh would link a site's days by plain equality."""
    form = drawn_form(1)
    randomness = SeededRandomness(5)
    one, two = (draw_mask(form, randomness).masked() for _ in range(2))
    assert not np.intersect1d(one.matrix, two.matrix).size
    assert not np.intersect1d(one.bound, two.bound).size
    assert one.digest != two.digest


def test_the_random_matrix_has_the_stated_condition() -> None:
    form = drawn_form(2)
    key = draw_mask(form, SeededRandomness(1))
    basis = key.rows_for(slice(None)).matrix
    sizes = np.linalg.svd(basis, compute_uv=False)
    assert sizes[0] / sizes[-1] == pytest.approx(CONDITION)
    free, row_space = null_space(form.equal)
    assert np.abs(form.equal @ free).max() <= 1e-12
    assert free.shape[1] + row_space.shape[1] == form.equal.shape[1]
    assert np.abs(form.equal @ basis).max() <= 1e-12


def test_decoys_never_bind_and_scales_are_positive() -> None:
    """A decoy that bound would cut off solutions."""
    form = drawn_form(3)
    key = draw_mask(form, SeededRandomness(3), EVERY_OPTION)
    problem = key.masked()
    true = key.true_rows()
    assert len(true) == len(form.bound)
    assert len(problem.bound) > len(form.bound)
    found = DenseSolver(problem).solve(problem.linear)
    shown = slacks(problem, found.values)
    decoys = [row for row in range(len(shown)) if row not in true]
    assert shown[decoys].min() > 1e-3
    assert found.multipliers[decoys].max() == 0
    assert all(is_redundant(problem, row) for row in decoys)


def test_opposite_rows_are_found_through_scaling_and_order() -> None:
    """The attack that makes the options of little use has to work, or the audit flatters."""
    form = drawn_form(4)
    key = draw_mask(form, SeededRandomness(4), EVERY_OPTION)
    problem = key.masked()
    pairs = opposite_pairs(problem)
    true = key.true_rows()
    matched = sum(
        1
        for one, two in zip(pairs.first, pairs.second, strict=True)
        if int(one) in true and int(two) in true and abs(true[int(one)] - true[int(two)]) == 12
    )
    assert matched == 12


@given(seed=st.integers(0, 10**6), is_strict=st.booleans())
@settings(max_examples=40)
def test_the_dense_solver_agrees_with_the_general_one_cold_and_warm(
    seed: int, is_strict: bool
) -> None:
    """Kept factors must never make a solve wrong; costs are compared, as optima may not be one."""
    form = drawn_form(seed, is_strict=is_strict)
    key = draw_mask(form, SeededRandomness(seed))
    problem = key.masked()
    solver = DenseSolver(problem)
    draw = np.random.default_rng(seed)
    for _ in range(4):
        changed = replace(form, linear=form.linear + draw.normal(size=len(form.linear)))
        masked = replace(problem, linear=key.linear(changed.linear))
        found = solver.solve(masked.linear)
        assert is_acceptable(certificate(masked, found)), found.method
        best = changed.objective(plain_solution(changed))
        mine = changed.objective(key.recover(found.values))
        assert mine == pytest.approx(best, abs=1e-5 * (1.0 + abs(best)))


def test_a_certificate_looks_at_everything() -> None:
    """Each condition alone must refuse: rows, signs, stationarity, gap, shape."""
    form = drawn_form(6)
    key = draw_mask(form, SeededRandomness(6))
    problem = key.masked()
    good = DenseSolver(problem).solve(problem.linear)
    y, force = good.values, good.multipliers * 1e-9
    binding = int(np.argmax(force))
    assert force[binding] > 0.01
    outside = y + 1e-3 * problem.matrix[binding] / np.linalg.norm(problem.matrix[binding]) ** 2
    loose = force.copy()
    loose[int(np.argmax(slacks(problem, y)))] += 0.1
    inner = np.linalg.lstsq(
        np.vstack([problem.matrix, problem.quadratic]),
        np.concatenate([problem.bound - 0.2, -problem.linear]),
        rcond=None,
    )[0]
    for claim in (
        quantised(outside, force, ""),
        quantised(y, np.zeros_like(force), ""),
        quantised(y, loose, ""),
        quantised(inner, force, ""),
        DenseSolution(y=good.y, multipliers=-good.multipliers - 1),
        DenseSolution(y=good.y[:-1], multipliers=good.multipliers),
        DenseSolution(y=good.y, multipliers=good.multipliers[:-1]),
    ):
        assert not is_acceptable(certificate(problem, claim))
    assert is_acceptable(certificate(problem, good))


def test_a_feasible_stationary_point_with_a_gap_is_refused() -> None:
    """Multipliers that balance costs can be found at any point; only the gap shows it."""
    form = drawn_form(7)
    problem = draw_mask(form, SeededRandomness(7)).masked()
    good = DenseSolver(problem).solve(problem.linear)
    inside = DenseSolver(problem).solve(problem.linear - 3.0 * problem.quadratic @ good.values)
    y = 0.5 * (good.values + inside.values)
    force, _ = optimize.nnls(problem.matrix.T, -(problem.quadratic @ y + problem.linear))
    found = certificate(problem, quantised(y, force, ""))
    assert found.primal <= 1e-8
    assert found.dual <= 1e-7
    assert found.gap > 1e-3
    assert not is_acceptable(found)


def test_an_optimum_of_all_rows_but_one_is_refused() -> None:
    """Stationarity and gap are perfect there; only the broken row gives it away."""
    form = drawn_form(8)
    problem = draw_mask(form, SeededRandomness(8)).masked()
    good = DenseSolver(problem).solve(problem.linear)
    dropped = int(np.argmax(good.multipliers))
    kept = np.delete(np.arange(len(problem.bound)), dropped)
    fewer = replace(problem, matrix=problem.matrix[kept], bound=problem.bound[kept])
    free = DenseSolver(fewer).solve(problem.linear)
    force = np.zeros(len(problem.bound))
    force[kept] = free.multipliers * 1e-9
    found = certificate(problem, quantised(free.values, force, ""))
    assert found.dual <= 1e-6
    assert found.gap <= 1e-6
    assert found.primal > 1e-3
    assert not is_acceptable(found)
