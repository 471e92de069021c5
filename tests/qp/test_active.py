"""A bordered system solves what a factored one would, whatever rows joined or left."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from veilgrid.qp._active import CHANGED_MAX, ActiveSystem
from veilgrid.qp.dense import DenseSolver
from veilgrid.qp.mask import MaskedProblem


def drawn_system(seed: int):
    draw = np.random.default_rng(seed)
    width, count = 14, 40
    root = draw.normal(size=(width, width))
    rows = draw.normal(size=(count, width))
    rows /= np.linalg.norm(rows, axis=1)[:, np.newaxis]
    return draw, root @ root.T + 0.1 * np.eye(width), rows, draw.normal(size=count)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30)
def test_a_bordered_system_has_the_solution_of_the_whole_one(seed: int) -> None:
    """A row that was forgotten, or one that still pushed, would make a warm solve wrong."""
    draw, quadratic, rows, bound = drawn_system(seed)
    width = len(quadratic)
    system = ActiveSystem(quadratic, rows, np.sort(draw.permutation(len(rows))[:6]))
    for _ in range(5):
        active = np.sort(draw.permutation(len(rows))[: draw.integers(0, 12)])
        assert system.reaches(active)
        system.move(active)
        linear = draw.normal(size=width)
        y, force = system.solve(linear, bound)
        count = len(active)
        whole = np.zeros((width + count, width + count))
        whole[:width, :width] = quadratic
        whole[width:, :width] = rows[active]
        whole[:width, width:] = rows[active].T
        expected = np.linalg.solve(whole, np.concatenate([-linear, bound[active]]))
        np.testing.assert_allclose(y, expected[:width], atol=1e-8 * np.abs(expected).max())
        found = force[active]
        np.testing.assert_allclose(found, expected[width:], atol=1e-8 * np.abs(expected).max())
        assert not np.delete(force, active).any()


def test_a_far_active_set_is_factored_anew() -> None:
    """A border as large as the system would cost more than it saves."""
    rows = np.eye(2 * CHANGED_MAX)
    system = ActiveSystem(np.eye(2 * CHANGED_MAX), rows, np.arange(3))
    assert system.reaches(np.arange(CHANGED_MAX))
    assert not system.reaches(np.arange(CHANGED_MAX + 10))


def test_rows_that_repeat_each_other_have_no_factor() -> None:
    rows = np.array([[1e3, 0.0], [0.0, 1e3], [1e3, 0.0]])
    system = ActiveSystem(np.zeros((2, 2)), rows, np.array([1]))
    with pytest.raises(linalg.LinAlgError):
        system.move(np.array([0, 1, 2]))


def test_a_problem_without_a_factor_is_solved_by_the_interior_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A day in some hundreds of masked ones met such rows and stopped with a warning."""
    problem = MaskedProblem(
        quadratic=np.eye(2),
        linear=-np.array([3.0, 2.0]),
        matrix=np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]),
        bound=np.array([1.0, 1.0, 0.0]),
    )
    assert DenseSolver(problem).solve(problem.linear).method == "active set"

    def no_pivot(*_: object) -> None:
        raise linalg.LinAlgError

    monkeypatch.setattr("veilgrid.qp.dense.ActiveSystem", no_pivot)
    solver = DenseSolver(problem)
    solver.begin(np.array([0, 1]))
    found = solver.solve(problem.linear)
    assert found.method == "interior point"
    assert np.allclose(found.values, 1.0, atol=1e-6)
