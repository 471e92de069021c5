"""Zones of a market on a radial network: parts that trade among themselves only [market 6]."""

from collections.abc import Sequence

import numpy as np

from veilgrid.errors import Finding
from veilgrid.grid.network import Network, Tree
from veilgrid.mpc.layout import Integers


def zones_of(tree: Tree, cuts: Sequence[int]) -> Integers:
    """Return the zone of each bus: (bus,).

    Parameters
    ----------
    tree
        Of the network.
    cuts
        Buses below which trade with the rest ends; the k-th begins zone ``k + 1``. The rest is
        zone 0.
    """
    zones = np.zeros(len(tree.parent), np.int64)
    for bus in tree.order:
        begins = [k + 1 for k, cut in enumerate(cuts) if cut == bus]
        zones[bus] = begins[-1] if begins else (0 if bus == tree.root else zones[tree.parent[bus]])
    return zones


def next_cut(network: Network, findings: Sequence[Finding], cuts: Sequence[int]) -> int | None:
    """Return the bus below which to cut next because of findings, or None if none is left.

    The loaded branch that is farthest out is cut first. For a voltage, the first branch on the way
    from the substation that is not cut yet is; where no power flow exists, the first one of all.
    """
    names = {str(bus.name): place for place, bus in enumerate(network.buses)}
    tree = network.tree
    depth = {int(bus): place for place, bus in enumerate(tree.order)}
    loaded, paths = [], []
    for finding in findings:
        kind, _, rest = finding.where.rpartition(", interval")[0].partition(" ")
        bus = names.get(rest.rpartition("->")[2])
        if bus is not None and kind == "branch" and bus not in cuts:
            loaded.append(bus)
        elif bus is not None:
            paths.append(bus)
    if loaded:
        return max(loaded, key=depth.__getitem__)
    for bus in paths:
        path = []
        while bus != tree.root:
            path.append(bus)
            bus = int(tree.parent[bus])
        for place in reversed(path):
            if place not in cuts:
                return place
    left = [int(bus) for bus in tree.order[1:] if int(bus) not in cuts]
    return left[0] if left else None
