"""The certificate of a whole day: verify the answer, not the work [model 5].

For any prices that the network can have, the Lagrangian - each site's least cost at those prices
plus the network's own least cost - bounds the optimum from below. With the cost of the balanced
plan above it, the difference is the gap, whatever happened on the way.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from veilgrid.admm.network_step import NetworkStep, NetworkTarget
from veilgrid.admm.site_step import SiteAnswer, SiteSteps
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.network import Floats

PRIMAL_MAX = 1e-6
DUAL_MAX = 1e-6
GAP_MAX = 5e-4

TURNOVER_MIN = 0.01
"""Currency; below it, differences are less than the micro-units that money is kept in."""


@dataclass(frozen=True, kw_only=True)
class DayCertificate:
    """How far a plan may be from optimal and feasible, recomputed from the day's data.

    Attributes
    ----------
    primal : per-unit
        Largest violation of a site's own constraint or of a network row.
    dual : share of the highest tariff
        How far the prices are from prices that the network can have.
    gap
        (cost - bound) / turnover.
    cost, bound : currency
        Of the balanced plan, and what no plan can undercut.
    """

    primal: float
    dual: float
    gap: float
    cost: float
    bound: float

    @property
    def is_accepted(self) -> bool:
        """Whether all three stay within the stated tolerance; a NaN never does."""
        return self.primal <= PRIMAL_MAX and self.dual <= DUAL_MAX and abs(self.gap) <= GAP_MAX


def turnover(day: Day, cost: float) -> float:
    """Return what relative gaps are measured against, currency.

    The cost itself, but at least one per cent of what the loads alone would cost: on a day whose
    earnings happen to cancel its costs, a gap relative to their difference would mean nothing.
    """
    load = np.sum([site.load_p for site in day.sites], axis=0)
    return max(abs(cost), 0.01 * day.exchange_cost(np.abs(load)), TURNOVER_MIN)


def bound_from_prices(
    day: Day, limits: Limits, setpoints: list[Floats], answer: SiteAnswer, target: NetworkTarget
) -> DayCertificate:
    """Certify set-points against prices of a network step.

    Parameters
    ----------
    day, limits
        The data.
    setpoints : one (variable,) array a site
        The plan.
    answer
        Cheapest answers of the flexible sites to ``target``'s prices alone.
    target
        Prices from :meth:`NetworkStep.project`.
    """
    bound = lagrangian(day, answer, target.price_p, target.price_q) - float(target.rent.sum())
    cost = day.cost(setpoints)
    ceiling = float(np.max(np.maximum(np.abs(day.buy), np.abs(day.sell)))) or 1.0
    outside = np.maximum(target.price - day.buy, day.sell - target.price)
    return DayCertificate(
        primal=primal_violation(day, limits, setpoints),
        dual=max(float(outside.max()), 0.0) / ceiling,
        gap=(cost - bound) / turnover(day, cost),
        cost=cost,
        bound=bound,
    )


def primal_violation(day: Day, limits: Limits, setpoints: list[Floats]) -> float:
    """Return the largest violation of any constraint by set-points, per-unit."""
    worst = 0.0
    for site, x in zip(day.sites, setpoints, strict=True):
        activity = site.matrix @ x
        for low, value, high in (
            (site.lower, x, site.upper),
            (site.row_lower, activity, site.row_upper),
        ):
            worst = max(worst, float(np.max(low - value, initial=0.0)))
            worst = max(worst, float(np.max(value - high, initial=0.0)))
    if not limits.are_absent:
        worst = max(worst, float(limits.excess(day.flows(setpoints)).max()))
    return worst


def lagrangian(day: Day, answer: SiteAnswer, price_p: Floats, price_q: Floats) -> float:
    """Return the sites' least cost at prices, payments included, currency.

    ``answer`` holds the cheapest answers of the flexible sites to these prices alone.
    """
    plan = list(day.load_only)
    for index, x in zip(day.flexible, answer.setpoints, strict=True):
        plan[index] = x
    demand_p, demand_q = day.demands(plan)
    own = sum(site.cost(x) for site, x in zip(day.sites, plan, strict=True))
    return own + float((price_p * demand_p).sum() + (price_q * demand_q).sum())


def cheapest_answer(day: Day, price_p: Floats, price_q: Floats) -> SiteAnswer:
    """Let all flexible sites answer prices (bus, interval) alone."""
    members = list(day.flexible)
    nothing = np.zeros(len(members))
    still = np.zeros((len(members), day.interval_count))
    with ThreadPoolExecutor() as pool:
        steps = SiteSteps([day.sites[i] for i in members], nothing, nothing, pool)
        return steps.answer(price_p[members], price_q[members], still, still)


class Certified(NamedTuple):
    """A certificate and the network prices that prove it."""

    certificate: DayCertificate
    target: NetworkTarget


def certify(
    day: Day, limits: Limits, setpoints: list[Floats], price_p: Floats, price_q: Floats
) -> Certified:
    """Certify set-points with any prices, from whatever scheme.

    One network step turns the prices into the nearest ones that the network can have; at a
    solution it leaves them as they are.

    Parameters
    ----------
    day, limits
        The data.
    setpoints : one (variable,) array a site
        The plan.
    price_p, price_q : (bus, interval), currency per per-unit and interval
        What the scheme ended with.
    """
    members = list(day.flexible)
    give = np.zeros(len(day.sites))
    give[members] = 1.0 / max(float(np.mean(np.abs(day.buy))), 1e-9)
    give_q = np.zeros_like(give) if limits.are_absent else give
    highest = max(float(np.max(np.abs(day.buy))), float(np.max(np.abs(price_p))))
    step = NetworkStep(limits, day.buy, day.sell, give, give_q, strength_max=1e4 * highest)
    demand_p, demand_q = day.demands(setpoints)
    target = step.project(
        demand_p + give[:, np.newaxis] * price_p, demand_q + give_q[:, np.newaxis] * price_q
    )
    answer = cheapest_answer(day, target.price_p, target.price_q)
    return Certified(bound_from_prices(day, limits, setpoints, answer, target), target)


def certify_alone(day: Day, setpoints: list[Floats], price_p: Floats) -> DayCertificate:
    """Certify that each site's own plan is its cheapest at the substation's tariff.

    Parameters
    ----------
    day
        The data.
    setpoints : one (variable,) array a site
        What everybody would do alone.
    price_p : (bus, interval), currency per per-unit and interval
        Each site's own marginal price, between the tariffs.
    """
    price = np.clip(price_p, day.sell, day.buy)
    nothing = np.zeros_like(price)
    bound = lagrangian(day, cheapest_answer(day, price, nothing), price, nothing)
    cost = sum(
        site.cost(x) + day.exchange_cost(site.demand_p(x))
        for site, x in zip(day.sites, setpoints, strict=True)
    )
    free = Limits(tree=day.network.tree, squared_min=None, squared_max=None)
    return DayCertificate(
        primal=primal_violation(day, free, setpoints),
        dual=0.0,
        gap=(cost - bound) / turnover(day, cost),
        cost=cost,
        bound=bound,
    )
