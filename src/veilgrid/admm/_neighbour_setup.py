"""What neighbours agree on before they start: units, penalties, inner limits; all from public data.

Loads enter only through the day's units, which a register may round as it likes: they scale
penalties and tolerances and need not be exact.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from veilgrid.admm._neighbour_average import Relay, relays
from veilgrid.admm._neighbour_local import Junctions
from veilgrid.admm._neighbour_mix import Past
from veilgrid.admm._neighbour_site import Scale
from veilgrid.admm._neighbour_solve import Tariff, Terms
from veilgrid.admm._neighbour_tree import VARIABLES, Edges
from veilgrid.errors import invariant
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits, flows
from veilgrid.grid.network import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourSettings:
    """How neighbours coordinate.

    Attributes
    ----------
    tolerance : > 0
        Largest primal residual and largest change of an average at the end: of flows relative to
        the largest load or range of a site or 1 per-unit, whichever is less; of squared voltages
        relative to the largest drop of the loads alone or 1, whichever is less.
    limit_tolerance : > 0, per-unit
        By how much the balanced plan may exceed a limit at the end.
    limit_margin : >= 0
        Kept from limits inside the iteration, which meets them only in the end: of squared
        voltages in per-unit squared, of ratings as a fraction.
    iteration_count_max : > 0
    demand_penalty : > 0
        Weight of a site's own net demand, in the day's price per power.
    limited_penalty, exchange_penalty, free_penalty : > 0
        Weight of a copy on which a limit acts, of the substation's flows, and of any other;
        relative to the joint weight of the sites that can move it.
    relaxation : in (0, 2)
        Over-relaxation; 1 = none.
    memory : >= 1
        How many past iterates Anderson acceleration mixes; 1 = none.
    local_tolerance : > 0
        Of local programs.
    """

    tolerance: float = 1e-3
    limit_tolerance: float = 1e-6
    limit_margin: float = 5e-5
    iteration_count_max: int = 1000
    demand_penalty: float = 5.0
    limited_penalty: float = 0.3
    exchange_penalty: float = 1.0
    free_penalty: float = 0.01
    relaxation: float = 1.6
    memory: int = 10
    local_tolerance: float = 1e-8


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Public constants of a run.

    Attributes
    ----------
    penalty : (edge, variable), currency per squared unit of the variable
    demand_penalty : (bus,), currency per per-unit squared
    choice : (bus,), 0 or 1
        Whether a site has a choice; the substation counts as none.
    limits
        The limits that local problems keep, a little inside the real ones.
    """

    settings: NeighbourSettings
    edges: Edges
    scale: Scale
    tariff: Tariff
    limits: Limits
    choice: Floats
    penalty: Floats
    demand_penalty: Floats

    @classmethod
    def of(cls, day: Day, limits: Limits, settings: NeighbourSettings) -> "Agreement":
        """Draw it up for a day."""
        edges = Edges(tree=day.network.tree)
        scale = scale_of(day, edges)
        choice = np.array([site.is_flexible for site in day.sites], dtype=np.float64)
        choice[edges.tree.root] = 0.0
        weight = np.full(len(day.sites), settings.demand_penalty * scale.price / scale.power)
        return cls(
            settings=settings,
            edges=edges,
            scale=scale,
            tariff=Tariff(day.buy, day.sell),
            limits=_inner(limits, settings.limit_margin),
            choice=choice,
            penalty=penalties(edges, limits, choice / weight, settings),
            demand_penalty=weight,
        )

    @property
    def tolerances(self) -> Floats:
        """Largest residual and change at the end, (variable,)."""
        power, drop = min(1.0, self.scale.power), min(1.0, self.scale.drop)
        return self.settings.tolerance * np.array([power, power, drop])

    @cached_property
    def relays(self) -> list[Relay]:
        """All sites' relays, in bus order."""
        return relays(self.edges, self.penalty, self.demand_penalty, self.choice)

    @cached_property
    def terms(self) -> Terms:
        """Terms of all sites' local problems, in bus order."""
        edges = self.edges
        buses = np.arange(len(edges.tree), dtype=np.int64)
        return Terms(
            edges.tree,
            Junctions.of(edges, self.limits, self.penalty, buses),
            self.demand_penalty,
            edges.charging,
            self.tariff,
            self.scale,
            self.settings.local_tolerance,
        )

    def past(self, bus: int) -> Past:
        """Return an empty memory of one site."""
        edges, edge = self.edges, int(self.edges.of_bus[bus])
        return Past(
            self.penalty[edge] if edge >= 0 else np.ones(VARIABLES),
            self.penalty[edges.parent == bus],
            float(self.demand_penalty[bus]),
            self.scale.price * self.scale.power,
            self.settings.memory,
        )

    def terms_of(self, bus: int) -> Terms:
        """Terms of one site's local problem."""
        return self.terms._replace(
            junctions=self.terms.junctions.one(bus),
            demand_penalty=self.demand_penalty[bus : bus + 1],
            charging=self.edges.charging[bus : bus + 1],
        )


def scale_of(day: Day, edges: Edges) -> Scale:
    """Find the natural units of a day: the largest load or range of a site, and the tariff."""
    loads = [np.abs(load).max() for site in day.sites for load in (site.load_p, site.load_q)]
    widths = [
        (site, site.upper - site.lower)
        for site in day.sites
        if site.is_flexible and bool(np.isfinite(site.upper - site.lower).all())
    ]
    gives = [float((abs(site.inject_p) @ width).max()) for site, width in widths]
    power = max(float(max(loads)), max(gives, default=0.0)) or 1.0
    price = float(np.median(np.abs(day.buy))) or float(np.abs(day.buy).max()) or 1.0
    state = flows(edges.tree, *day.demands(day.load_only))
    drop = float(np.abs(state.voltage_squared - edges.tree.slack_voltage_pu**2).max())
    steepest = float(np.max(edges.tree.resistance_pu + edges.tree.reactance_pu))
    return Scale(power, price, drop or 2.0 * steepest * power or 1.0)


def penalties(
    edges: Edges, limits: Limits, compliance: Floats, settings: NeighbourSettings
) -> Floats:
    """Weigh copies by how much the sites below can move them.

    A copy that sites move by ``reach_i`` for each unit of their own net demand, each giving
    ``compliance_i``, gives ``sum of compliance_i reach_i^2``; its weight is one over that, times
    the setting. So weights follow any change of unit or currency [docs/protocol/neighbour.md 4].

    Parameters
    ----------
    edges
        The tree.
    limits
        Tell which copies a limit acts on.
    compliance : (bus,)
        One over the weight of a site's own net demand; 0 without choice.
    settings
        Relative weights.

    Returns
    -------
    (edge, variable), currency per squared unit of the variable
    """
    tree = edges.tree
    flow = edges.up(compliance)[edges.child]
    voltage = _voltage_compliance(edges, compliance)[edges.parent]
    has_voltage = limits.squared_min is not None or limits.squared_max is not None
    rated = np.isfinite(tree.rating_pu[edges.child])
    weight = np.where(rated, settings.limited_penalty, settings.free_penalty)
    top = edges.parent == tree.root
    weight[top] = np.maximum(np.where(rated[top], weight[top], 0.0), settings.exchange_penalty)
    least = float(flow[flow > 0.0].min(initial=np.inf))
    flow = np.maximum(flow, least if np.isfinite(least) else 1.0)
    most = float(voltage.max(initial=0.0))
    # A voltage that hardly moves gets the weight of one that moves a tenth as far as the most.
    voltage = np.maximum(voltage, 1e-2 * most if most > 0.0 else 1.0)
    level = settings.limited_penalty if has_voltage else settings.free_penalty
    found = np.stack([weight / flow, weight / flow, level / voltage], axis=1)
    invariant(bool((found > 0.0).all() and np.isfinite(found).all()), "penalties are positive")
    return found


def _voltage_compliance(edges: Edges, compliance: Floats) -> Floats:
    """Sum over sites of compliance times squared effect on each bus's squared voltage, (bus,).

    The effect of a site on a bus is twice the impedance that their paths share; it grows along the
    bus's path, so the sum is gathered branch by branch going down.
    """
    tree = edges.tree
    below = edges.up(compliance)
    total = np.zeros(len(tree))
    reach = np.zeros((len(tree), 2))
    for bus in tree.order[1:]:
        parent = tree.parent[bus]
        step = 2.0 * np.array([tree.resistance_pu[bus], tree.reactance_pu[bus]])
        reach[bus] = reach[parent] + step
        total[bus] = total[parent] + below[bus] * float(step @ (2.0 * reach[parent] + step))
    return total


def _inner(limits: Limits, margin: float) -> Limits:
    low, high = limits.squared_min, limits.squared_max
    return replace(
        limits,
        tree=replace(limits.tree, rating_pu=limits.tree.rating_pu * (1.0 - margin)),
        squared_min=None if low is None else low + margin,
        squared_max=None if high is None else high - margin,
    )
