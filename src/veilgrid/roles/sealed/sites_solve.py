"""The small problems that sites of a sealed day solve from own secrets [sealed 4.1].

Pure functions, so that they run as jobs beside the machine of the sites.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from veilgrid.admm.reference import stack, unstack
from veilgrid.admm.site_step import SiteAnswer, SiteSteps
from veilgrid.grid.network import Floats
from veilgrid.grid.site import Site
from veilgrid.qp.problem import QuadraticProgram
from veilgrid.qp.solve import solve


class Cheapest(NamedTuple):
    """Cheapest answers to prices alone, with the multipliers that prove it."""

    setpoints: list[Floats]
    row_multipliers: list[Floats]


def cheapest(sites: list[Site], price_p: Floats, price_q: Floats) -> Cheapest:
    """Solve sites at prices (site, interval) alone; multipliers push up where positive."""
    problem = stack(sites)
    pull = [
        site.inject_p.T @ price_p[place] + site.inject_q.T @ price_q[place]
        for place, site in enumerate(sites)
    ]
    solution = solve(
        QuadraticProgram(
            quadratic=problem.quadratic,
            linear=problem.linear - np.concatenate(pull),
            matrix=problem.matrix,
            lower=problem.lower,
            upper=problem.upper,
        ),
        "piqp",
    )
    ends = np.cumsum([site.matrix.shape[0] for site in sites])
    multipliers = np.split(-solution.multipliers[: ends[-1]], ends[:-1])
    setpoints = [
        np.clip(x, site.lower, site.upper)
        for site, x in zip(sites, unstack(sites, solution.x), strict=True)
    ]
    return Cheapest(setpoints, multipliers)


def free_of_cost(site: Site) -> Site:
    """Return the same site with devices that cost nothing."""
    nothing = np.zeros_like(site.linear)
    return replace(site, quadratic=nothing, linear=nothing)


def near(
    steps: SiteSteps, price_p: Floats, price_q: Floats, target_p: Floats, target_q: Floats
) -> SiteAnswer:
    """Answer prices near targets; arrays are (site, interval)."""
    return steps.answer(price_p, price_q, target_p, target_q)
