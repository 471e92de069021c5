"""Scheme ``neighbour``: sites agree with their neighbours on the tree, nobody in the middle.

Two forms. In the default one, wishes are added up the tree and prices come down; in the published
one, consensus ADMM, the two ends of each edge average their copies of flow and voltage by
themselves [model 4; docs/protocol/neighbour.md].
"""

from collections.abc import Mapping

from veilgrid.admm._neighbour_edge import EdgeSettings, Said, Tamper, plan_edge
from veilgrid.admm._neighbour_sweep import NeighbourSettings, plan_sweep
from veilgrid.admm._neighbour_tree import NeighbourState
from veilgrid.admm.outcome import Coordination, ProgressSink
from veilgrid.admm.reference import central
from veilgrid.errors import invariant
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits

__all__ = [
    "EdgeSettings",
    "NeighbourSettings",
    "NeighbourState",
    "Said",
    "Tamper",
    "plan_neighbour",
]


def plan_neighbour(
    day: Day,
    limits: Limits,
    settings: NeighbourSettings | EdgeSettings | None = None,
    start: NeighbourState | None = None,
    progress: ProgressSink | None = None,
    tamper: Mapping[int, Tamper] | None = None,
) -> Coordination:
    """Let neighbouring sites agree on a day.

    Parameters
    ----------
    day
        What to plan.
    limits
        Of the network; in the default form the plan keeps them to ``limit_tolerance``.
    settings
        How to coordinate; ``None`` = defaults. :class:`EdgeSettings` asks for the published form.
    start
        ``warm`` of an earlier day's outcome on the same tree; in the default form only.
    progress
        Called after each iteration.
    tamper
        What chosen sites, named by bus index, tell their neighbours instead of the truth; in the
        published form only.

    Returns
    -------
    Coordination
        ``warm`` is a :class:`NeighbourState`. ABORTED if a site fell silent.

    Raises
    ------
    InputError
        A site's own constraints contradict each other.
    """
    if len(day.sites) == 1:
        return central(day, limits)
    if isinstance(settings, EdgeSettings):
        return plan_edge(day, limits, settings, progress, tamper)
    invariant(not tamper, "sites tamper in the published form only")
    return plan_sweep(day, limits, settings or NeighbourSettings(), start, progress)
