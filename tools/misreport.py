"""Print what one site gains by bidding its costs 10 % off, under the settings of `sealed`.

python tools/misreport.py six-bus ../shared/scenarios/yingkou-2023-11-09
"""

import sys
from dataclasses import replace

import numpy as np

from veilgrid.admm.certify import certify
from veilgrid.admm.exchange import plan_exchange
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.report.folders import open_scenario
from veilgrid.roles.sealed.day import SETTINGS

SITES_MAX = 8
LARGEST = 5


def account(truth: Day, limits: Limits, said: Day, bus: int) -> tuple[float, float]:
    """Return what a site truly bears and what all do, if bids are as ``said``, currency."""
    outcome = plan_exchange(said, limits, settings=SETTINGS)
    site, x = truth.sites[bus], outcome.setpoints[bus]
    prices = certify(said, limits, outcome.setpoints, outcome.price_p, outcome.price_q).target
    paid = prices.price_p[bus] @ site.demand_p(x) + prices.price_q[bus] @ site.demand_q(x)
    return float(site.cost(x) + paid), truth.cost(outcome.setpoints)


def main(names: list[str]) -> None:
    """Print one line a site and factor."""
    for name in names:
        day = open_scenario(name).day()
        limits = Limits.of(day.network)
        buses = [bus for bus in day.flexible if np.any(day.sites[bus].linear)]
        if len(buses) > SITES_MAX:
            buses = sorted(buses, key=lambda bus: -weight(day, bus))[:LARGEST]
        for bus in buses:
            truthfully, together = account(day, limits, day, bus)
            for factor in (0.9, 1.1):
                site = day.sites[bus]
                bid = replace(site, linear=factor * site.linear, quadratic=factor * site.quadratic)
                sites = tuple(bid if k == bus else one for k, one in enumerate(day.sites))
                bears, cost = account(day, limits, replace(day, sites=sites), bus)
                gain, share = truthfully - bears, 100.0 * (cost - together) / together
                print(f"{day.name} {site.name}: x {factor}: gain {gain:.2f}, all {share:+.3f} %")


def weight(day: Day, bus: int) -> float:
    """Return how much money a site's devices can move."""
    site = day.sites[bus]
    return float(np.abs(site.linear) @ (site.upper - site.lower))


if __name__ == "__main__":
    main(sys.argv[1:])
