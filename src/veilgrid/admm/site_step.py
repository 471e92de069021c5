"""The sites' half of exchange ADMM: each site's cheapest answer to a price near a target.

``min cost(x) + price . d(x) + penalty |d(x) - target|^2 / 2`` over the site's own constraints, and
the same for reactive power. Sites are independent; several are stacked into one solve.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy import sparse

from veilgrid.admm.reference import stack, unstack
from veilgrid.grid.network import Floats
from veilgrid.grid.site import Site
from veilgrid.qp.problem import QuadraticProgram
from veilgrid.qp.solve import RepeatedSolver, SolveSettings


class SiteAnswer(NamedTuple):
    """Set-points of some sites and the net demands they make.

    Attributes
    ----------
    setpoints : one (variable,) array a site
    demand_p, demand_q : (site, interval), per-unit
    """

    setpoints: list[Floats]
    demand_p: Floats
    demand_q: Floats


class SiteStep:
    """Answer prices and targets for a group of sites, matrices prepared once.

    Parameters
    ----------
    sites
        The group; all have the same horizon.
    penalty_p, penalty_q : (site,) or (site, interval), currency per per-unit squared and interval
        Zero asks for the cheapest answer to the price alone.
    """

    def __init__(self, sites: list[Site], penalty_p: Floats, penalty_q: Floats) -> None:
        self.sites = sites
        shape = (len(sites), sites[0].interval_count)
        self.penalty_p, self.penalty_q = (
            np.broadcast_to(penalty if penalty.ndim == 2 else penalty[:, np.newaxis], shape)
            for penalty in (penalty_p, penalty_q)
        )
        self._program = stack(sites)
        self._inject_p = sparse.block_diag([site.inject_p for site in sites], format="csr")
        self._inject_q = sparse.block_diag([site.inject_q for site in sites], format="csr")
        self._load_p = np.array([site.load_p for site in sites])
        self._load_q = np.array([site.load_q for site in sites])
        pull_p = sparse.diags(self.penalty_p.ravel())
        pull_q = sparse.diags(self.penalty_q.ravel())
        quadratic = (
            self._program.quadratic
            + self._inject_p.T @ pull_p @ self._inject_p
            + self._inject_q.T @ pull_q @ self._inject_q
        )
        is_near = bool((penalty_p > 0.0).all())
        self._solver = RepeatedSolver(
            QuadraticProgram(
                quadratic=sparse.csc_matrix(quadratic),
                linear=self._program.linear,
                matrix=self._program.matrix,
                lower=self._program.lower,
                upper=self._program.upper,
            ),
            # Measured: PIQP is the faster one. Prices alone have many answers, and Clarabel's lie
            # more in the middle of them: a day that starts there needs fewer iterations.
            "piqp" if is_near else "clarabel",
            SolveSettings(tolerance=1e-9),
        )

    def answer(
        self,
        price_p: Floats,
        price_q: Floats,
        target_p: Floats | float = 0.0,
        target_q: Floats | float = 0.0,
    ) -> SiteAnswer:
        """Solve all sites of the group once; arrays are (site, interval)."""
        pull_p = price_p + self.penalty_p * (self._load_p - target_p)
        pull_q = price_q + self.penalty_q * (self._load_q - target_q)
        linear = (
            self._program.linear
            - self._inject_p.T @ pull_p.ravel()
            - self._inject_q.T @ pull_q.ravel()
        )
        x = self._solver.solve(linear=linear).x
        x = np.clip(x, *self._bounds(len(x)))
        demand_p = self._load_p - (self._inject_p @ x).reshape(self._load_p.shape)
        demand_q = self._load_q - (self._inject_q @ x).reshape(self._load_q.shape)
        return SiteAnswer(unstack(self.sites, x), demand_p, demand_q)

    def _bounds(self, width: int) -> tuple[Floats, Floats]:
        return self._program.lower[-width:], self._program.upper[-width:]


class SiteSteps:
    """All flexible sites, grouped by kind of problem and by core, answered in parallel."""

    GROUP_SIZE = 4
    """Sites in one stack: enough to save overhead, few enough not to iterate for the slowest."""

    def __init__(
        self, sites: list[Site], penalty_p: Floats, penalty_q: Floats, pool: ThreadPoolExecutor
    ) -> None:
        self._pool = pool
        self._count = len(sites)
        coupled = [i for i, site in enumerate(sites) if not site.is_separable]
        separable = [i for i, site in enumerate(sites) if site.is_separable]
        self._groups = [
            members[start : start + self.GROUP_SIZE]
            for members in (coupled, separable)
            for start in range(0, len(members), self.GROUP_SIZE)
        ]
        self._steps = [
            SiteStep([sites[i] for i in group], penalty_p[group], penalty_q[group])
            for group in self._groups
        ]

    def answer(
        self, price_p: Floats, price_q: Floats, target_p: Floats, target_q: Floats
    ) -> SiteAnswer:
        """Solve all sites; arrays are (site, interval)."""
        jobs = [
            self._pool.submit(
                step.answer, price_p[group], price_q[group], target_p[group], target_q[group]
            )
            for group, step in zip(self._groups, self._steps, strict=True)
        ]
        setpoints: list[Floats] = [np.zeros(0)] * self._count
        demand_p, demand_q = np.zeros_like(price_p), np.zeros_like(price_q)
        for group, job in zip(self._groups, jobs, strict=True):
            found = job.result()
            demand_p[group], demand_q[group] = found.demand_p, found.demand_q
            for index, x in zip(group, found.setpoints, strict=True):
                setpoints[index] = x
        return SiteAnswer(setpoints, demand_p, demand_q)
