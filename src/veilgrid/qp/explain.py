"""Explain an infeasible problem: which limits cannot be met together, and by how much.

An elastic problem gives every soft row a slack and minimises the sum of slacks; rows that keep a
slack at the optimum are the explanation [Chinneck, Feasibility and Infeasibility in Optimization].
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from veilgrid.errors import SolverFailed
from veilgrid.qp.problem import Floats, QuadraticProgram


@dataclass(frozen=True)
class Elastic:
    """The least total violation of the soft rows.

    Attributes
    ----------
    violation : (row,)
        By how much each row is exceeded above (> 0) or undercut below (< 0), in the row's unit.
    x : (variable,)
        A point with that violation.
    is_hard_infeasible
        The hard rows alone contradict each other; then violation is zero and x is empty.
    """

    violation: Floats
    x: Floats
    is_hard_infeasible: bool


def elastic(problem: QuadraticProgram, soft: Floats, tolerance: float = 1e-9) -> Elastic:
    """Minimise the weighted sum of violations of soft rows.

    Parameters
    ----------
    problem
        The infeasible problem; its costs are ignored.
    soft : (row,), >= 0
        Weight of a violation; 0 marks a hard row.
    tolerance
        Slacks below it count as none.

    Raises
    ------
    SolverFailed
        The linear-programming back-end gave no verdict.
    """
    from scipy import optimize  # A fifth of a second, and few need it.

    rows, columns = problem.matrix.shape
    bendable = np.flatnonzero(soft > 0.0)
    pick = sparse.csc_matrix(
        (np.ones(len(bendable)), (bendable, np.arange(len(bendable)))), shape=(rows, len(bendable))
    )
    wide = sparse.csr_matrix(sparse.hstack([problem.matrix, -pick, pick]))
    cost = np.concatenate([np.zeros(columns), soft[bendable], soft[bendable]])
    equal = problem.lower == problem.upper
    above, below = ~equal & np.isfinite(problem.upper), ~equal & np.isfinite(problem.lower)
    solved = optimize.linprog(
        cost,
        A_ub=sparse.vstack([wide[above], -wide[below]]),
        b_ub=np.concatenate([problem.upper[above], -problem.lower[below]]),
        A_eq=wide[equal],
        b_eq=problem.upper[equal],
        bounds=[(None, None)] * columns + [(0.0, None)] * (2 * len(bendable)),
        method="highs",
    )
    violation = np.zeros(rows)
    if solved.status == 2:
        return Elastic(violation, np.zeros(0), is_hard_infeasible=True)
    if solved.status != 0:
        raise SolverFailed("highs", str(solved.message))
    up, down = np.split(solved.x[columns:], 2)
    violation[bendable] = up - down
    violation[np.abs(violation) <= tolerance] = 0.0
    return Elastic(violation, solved.x[:columns], is_hard_infeasible=False)
