"""Sites that plan with their neighbours, as machines: scheme ``neighbour`` in both forms."""

from collections.abc import Mapping

from veilgrid.admm.neighbour import EdgeSettings, NeighbourSettings, Tamper
from veilgrid.errors import invariant
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import NodeId
from veilgrid.roles._neighbour_edge import Agreed, EdgeSite, edge_sites
from veilgrid.roles._neighbour_sweep import SweepSite, sweep_sites

__all__ = ["Agreed", "EdgeSite", "NeighbourSite", "SweepSite", "neighbour_sites"]

NeighbourSite = SweepSite | EdgeSite


def neighbour_sites(
    day: Day,
    limits: Limits,
    settings: NeighbourSettings | EdgeSettings | None = None,
    tamper: Mapping[int, Tamper] | None = None,
) -> Mapping[NodeId, NeighbourSite]:
    """Make the machines of all sites of a day, named after their buses.

    Each gets the public constants and its own site; the day as a whole serves to draw up the
    agreement only. ``tamper`` as in :func:`veilgrid.admm.neighbour.plan_neighbour`.
    """
    if isinstance(settings, EdgeSettings):
        return edge_sites(day, limits, settings, dict(tamper or {}))
    invariant(not tamper, "sites tamper in the published form only")
    return sweep_sites(day, limits, settings or NeighbourSettings())
