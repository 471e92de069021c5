"""A scenario as the algorithms see it: sites, network, tariff, all per-unit."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from veilgrid.grid.horizon import Horizon
from veilgrid.grid.lindistflow import Flows, flows
from veilgrid.grid.network import Floats, Network
from veilgrid.grid.site import Site


@dataclass(frozen=True, kw_only=True)
class Day:
    """One horizon on one network.

    Attributes
    ----------
    sites
        One for each bus, in bus order.
    buy, sell : (interval,), currency per per-unit of power held for one interval
        What the substation pays for import and gets for export; ``buy >= sell``.
    """

    name: str
    horizon: Horizon
    network: Network
    sites: tuple[Site, ...]
    buy: Floats = field(repr=False)
    sell: Floats = field(repr=False)
    currency: str = ""

    @property
    def interval_count(self) -> int:
        """Number of intervals."""
        return self.horizon.interval_count

    def demands(self, setpoints: list[Floats]) -> tuple[Floats, Floats]:
        """Net demands of all sites' set-points, two arrays (bus, interval), per-unit."""
        pairs = list(zip(self.sites, setpoints, strict=True))
        active = np.array([site.demand_p(x) for site, x in pairs])
        return active, np.array([site.demand_q(x) for site, x in pairs])

    def flows(self, setpoints: list[Floats]) -> Flows:
        """Flows and voltages that all sites' set-points cause."""
        return flows(self.network.tree, *self.demands(setpoints))

    def exchange_cost(self, exchange: Floats) -> float:
        """Cost of the substation's exchange (interval,), import positive, currency."""
        return float(np.maximum(self.buy * exchange, self.sell * exchange).sum())

    def cost(self, setpoints: list[Floats]) -> float:
        """Cost of a balanced plan: all sites' devices and the substation's exchange, currency."""
        exchange = self.demands(setpoints)[0].sum(axis=0)
        own = sum(site.cost(x) for site, x in zip(self.sites, setpoints, strict=True))
        return own + self.exchange_cost(exchange)

    @cached_property
    def load_only(self) -> list[Floats]:
        """Set-points of nobody: each variable at the value nearest zero that its bounds allow."""
        return [np.clip(0.0, site.lower, site.upper) for site in self.sites]

    @cached_property
    def uncontrolled(self) -> list[Floats]:
        """Set-points if nobody coordinates: renewables feed in, batteries idle, cars charge."""
        return [site.uncontrolled for site in self.sites]

    @cached_property
    def flexible(self) -> tuple[int, ...]:
        """Indices of the sites that have a choice."""
        return tuple(i for i, site in enumerate(self.sites) if site.is_flexible)
