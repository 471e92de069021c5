"""What a masked problem gives away: attacks on H', c', G', h' and solutions [masking 8].

All of them use only what a worker holds, plus what anybody can guess of a site's kind (its devices
inject or consume, a day has so many intervals, tariffs are public). They are written to be scored
against the truth by an audit; nothing else uses them.
"""

from typing import NamedTuple

import numpy as np
from scipy import linalg, optimize

from veilgrid.qp.mask import MaskedProblem, opposite_unit_rows
from veilgrid.qp.problem import Floats

Integers = np.ndarray

PAIR_TOLERANCE = 1e-8
"""Two unit rows whose sum is smaller are opposite."""


def slacks(problem: MaskedProblem, y: Floats) -> Floats:
    """Return ``h' - G'y``, (row,): with plain rows exactly ``h - Gx`` for any mask.

    ``h' - G'y = (h - G x0) - G N R y = h - G x`` [Laud and Pankova 2013].
    """
    return np.asarray(problem.bound - problem.matrix @ y)


class Pairs(NamedTuple):
    """Rows that are opposite: a variable's lower and upper bound, up to scale.

    Attributes
    ----------
    first, second : (pair,)
        Row indices.
    direction : (pair, masked)
        Unit normal of the second row.
    width : (pair,)
        Distance of the two bounds along it, in units of the row's own length.
    """

    first: Integers
    second: Integers
    direction: Floats
    width: Floats

    def position(self, problem: MaskedProblem, y: Floats) -> Floats:
        """Return where the solution lies between the two bounds, (pair,), 0 = at the first."""
        length = np.linalg.norm(problem.matrix, axis=1)
        below = slacks(problem, y)[self.first] / length[self.first]
        return np.asarray(below / np.where(self.width > 1e-12, self.width, np.inf))


def opposite_pairs(problem: MaskedProblem) -> Pairs:
    """Find opposite rows whatever their order and positive scales."""
    length = np.linalg.norm(problem.matrix, axis=1)
    unit = problem.matrix / np.where(length > 0.0, length, 1.0)[:, np.newaxis]
    one, two = opposite_unit_rows(unit, PAIR_TOLERANCE)
    bound = problem.bound / np.where(length > 0.0, length, 1.0)
    width = bound[one] + bound[two] if len(one) else np.zeros(0)
    return Pairs(one, two, unit[two], np.asarray(width))


def quadratic_costs(problem: MaskedProblem, basis: Floats, shapes: list[Floats]) -> Floats:
    """Fit how much of each shape is in H': ``H' = sum_k value_k B' diag(shape_k) B``.

    Parameters
    ----------
    problem
        What the worker holds.
    basis : (variable, masked)
        Rows of ``N R`` that the upper bounds in G' publish.
    shapes : each (variable,)
        Which variables share one coefficient.
    """
    parts = [(basis.T * shape) @ basis for shape in shapes]
    columns = np.stack([part.ravel() for part in parts], axis=1)
    return np.asarray(linalg.lstsq(columns, problem.quadratic.ravel())[0])


def linear_costs(rest: Floats, basis: Floats, shapes: list[Floats]) -> Floats:
    """Fit how much of each shape is in c': ``rest = B' sum_k value_k shape_k``."""
    columns = np.stack([basis.T @ shape for shape in shapes], axis=1)
    return np.asarray(linalg.lstsq(columns, rest)[0])


def subspace_angle(one: Floats, two: Floats) -> float:
    """Return the largest principal angle of two column spaces, rad; infinite if sizes differ.

    Row spaces of G' do not depend on the mask, so equal sites are linked from day to day.
    """
    if one.shape != two.shape:
        return np.inf
    left, _ = np.linalg.qr(one)
    right, _ = np.linalg.qr(two)
    # The sine is exact for small angles, where the cosine is not.
    away = right - left @ (left.T @ right)
    return float(np.arcsin(min(1.0, float(np.linalg.norm(away, 2)))))


def fingerprint(problem: MaskedProblem) -> Floats:
    """Return the generalised eigenvalues of (H', G''G'), sorted: the same under any mask."""
    gram = problem.matrix.T @ problem.matrix
    return np.asarray(np.sort(linalg.eigvalsh(problem.quadratic, gram)))


def is_redundant(problem: MaskedProblem, row: int) -> bool:
    """Ask a linear program whether a row can ever bind; true rows mostly can, decoys cannot."""
    others = np.delete(np.arange(len(problem.bound)), row)
    length = float(np.linalg.norm(problem.matrix[row]))
    found = optimize.linprog(
        -problem.matrix[row] / length,
        A_ub=problem.matrix[others],
        b_ub=problem.bound[others],
        bounds=(None, None),
        method="highs",
    )
    if found.status != 0:
        return False
    return bool(-found.fun < problem.bound[row] / length - 1e-7)


def sparse_relation(directions: Floats, target: int) -> Floats:
    """Find the relation with least absolute sum among directions in which one has weight 1.

    Physical equations, such as a battery's from one interval to the next, are such relations.

    Parameters
    ----------
    directions : (pair, masked)
        Scaled so that each box has width one.
    target
        Whose weight is 1.
    """
    null = linalg.null_space(directions.T)
    if null.shape[1] == 0:
        return np.zeros(len(directions))
    count, free = null.shape
    cost = np.concatenate([np.zeros(free), np.ones(count)])
    identity = np.eye(count)
    found = optimize.linprog(
        cost,
        A_ub=np.block([[null, -identity], [-null, -identity]]),
        b_ub=np.zeros(2 * count),
        A_eq=np.concatenate([null[target], np.zeros(count)])[np.newaxis],
        b_eq=[1.0],
        bounds=[(None, None)] * free + [(0.0, None)] * count,
        method="highs",
    )
    return np.asarray(null @ found.x[:free]) if found.status == 0 else np.zeros(count)
