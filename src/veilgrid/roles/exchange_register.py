"""What a coordinator may take for possible: the ratings of the sites' connections."""

from typing import Any, NamedTuple

import numpy as np

from veilgrid.grid.day import Day
from veilgrid.grid.network import Floats
from veilgrid.grid.site import Site


class Register(NamedTuple):
    """What the coordinator knows of each site beforehand, from its connection contract.

    Attributes
    ----------
    reach_p, reach_q : (bus,), per-unit
        No answer can be larger.
    cost_max : (bus,), currency
        No site's own devices can cost more, or earn more.
    fallback_p, fallback_q : (bus, interval), per-unit
        Taken for a site that never spoke: what its devices do if nobody coordinates them.
    fallback_cost : (bus,), currency
    """

    reach_p: Floats
    reach_q: Floats
    cost_max: Floats
    fallback_p: Floats
    fallback_q: Floats
    fallback_cost: Floats

    @classmethod
    def of(cls, day: Day) -> "Register":
        """Draw up the register from the sites' ratings."""

        def largest(site: Site) -> Floats:
            return np.maximum(np.abs(site.lower), np.abs(site.upper))

        def reach(load: Floats, inject: Any, most: Floats) -> float:
            return 1.0001 * float(np.max(np.abs(load) + abs(inject) @ most)) + 1e-6

        own = [(site, largest(site)) for site in day.sites]
        plan = day.uncontrolled
        fallback_p, fallback_q = day.demands(plan)
        return cls(
            reach_p=np.array([reach(site.load_p, site.inject_p, most) for site, most in own]),
            reach_q=np.array([reach(site.load_q, site.inject_q, most) for site, most in own]),
            cost_max=np.array(
                [
                    1.0001 * (site.quadratic @ most**2 / 2.0 + np.abs(site.linear) @ most) + 1e-6
                    for site, most in own
                ]
            ),
            fallback_p=fallback_p,
            fallback_q=fallback_q,
            fallback_cost=np.array([site.cost(x) for site, x in zip(day.sites, plan, strict=True)]),
        )
