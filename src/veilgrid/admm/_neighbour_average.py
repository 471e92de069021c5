"""Average copies along the tree: the consistent flows nearest to all copies, by sums up and down.

A relay is what one site needs for it: constants that follow from public data alone (tree,
impedances, penalties, which sites have a choice), and two steps. Going up, a site eliminates what
lies below it and passes on a linear term for its edge; going down, it learns its edge's averages
and passes on those of its children. Everything is a deviation from a consistent starting point, so
that sites without a choice do not move [docs/protocol/neighbour.md 3].
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from veilgrid.admm._neighbour_tree import VARIABLES, Edges
from veilgrid.errors import invariant
from veilgrid.grid.network import Floats


class Pull(NamedTuple):
    """What ends of edges pull averages towards: penalty times deviation, plus multiplier.

    Attributes
    ----------
    own : (variable, interval)
        Of the child's end of the site's edge to its parent.
    below : (child, variable, interval)
        Of the parent's ends of the edges to its children.
    demand : (flow=2, interval)
        Of the site's own net demand; ignored where the site has no choice.
    """

    own: Floats
    below: Floats
    demand: Floats


class Split(NamedTuple):
    """Averages that a site passes on, as deviations.

    ``demand`` is (flow=2, interval), ``below`` (child, variable, interval).
    """

    demand: Floats
    below: Floats


@dataclass(frozen=True, kw_only=True)
class Relay:
    """Constants of one site's part in averaging.

    Attributes
    ----------
    is_root, has_choice
    live : (child,)
        Children whose subtree has a choice; the flows to the others do not deviate.
    hessian : (variable, variable)
        Of the cost of the subtree in the averages of the site's own edge, child's end included.
    gain_pull, gain_own : (inner, inner), (inner, variable)
        Inner averages (own demand, flows to live children) from inner pulls and own averages.
    lift : (variable, inner)
        Effect of inner pulls on what is passed up.
    lead : (variable,)
        Own squared voltage from the averages of the own edge.
    """

    is_root: bool
    has_choice: bool
    live: tuple[bool, ...]
    hessian: Floats = field(repr=False)
    gain_pull: Floats = field(repr=False)
    gain_own: Floats = field(repr=False)
    lift: Floats = field(repr=False)
    lead: Floats = field(repr=False)

    @property
    def is_live(self) -> bool:
        """Whether the subtree that the site heads has a choice."""
        return self.has_choice or any(self.live)

    def up(self, pull: Pull, sums: Floats) -> tuple[Floats, Floats]:
        """Eliminate what lies below.

        Parameters
        ----------
        pull
            Of the site's own ends.
        sums : (child, variable, interval)
            What the children passed up.

        Returns
        -------
        (variable, interval), (inner, interval)
            What to pass up, and the inner pulls to keep for :meth:`down`.
        """
        joint = sums + pull.below
        rows = [pull.demand] if self.has_choice else []
        rows += [part[:2] for part, live in zip(joint, self.live, strict=True) if live]
        count = pull.own.shape[1]
        inner = np.concatenate(rows) if rows else np.zeros((0, count))
        voltage = np.zeros(count)
        for part in joint:
            voltage = voltage + part[2]
        return pull.own + np.outer(self.lead, voltage) + self.lift @ inner, inner

    def down(self, own: Floats, inner: Floats) -> Split:
        """Split the averages of the own edge, (variable, interval), over what lies below."""
        found = self.gain_pull @ inner + self.gain_own @ own
        level = self.lead @ own
        below = np.zeros((len(self.live), VARIABLES, own.shape[1]))
        start = 2 if self.has_choice else 0
        demand = found[:start] if self.has_choice else np.zeros((2, own.shape[1]))
        for child, live in enumerate(self.live):
            if live:
                below[child, :2] = found[start : start + 2]
                start += 2
            below[child, 2] = level
        return Split(demand, below)


def relays(edges: Edges, penalty: Floats, demand_penalty: Floats, choice: Floats) -> list[Relay]:
    """Prepare the relays of all sites from public data.

    Parameters
    ----------
    edges
        The tree.
    penalty : (edge, variable), currency per squared unit
        Weight of each end's copy.
    demand_penalty : (bus,), currency per per-unit squared
        Weight of a site's own net demand.
    choice : (bus,), bool
        Whether a site has a choice.

    Returns
    -------
    list of Relay, in bus order
    """
    made: dict[int, Relay] = {}
    tree = edges.tree
    below: dict[int, list[int]] = {int(bus): [] for bus in tree.order}
    for edge, parent in enumerate(edges.parent):
        below[int(parent)].append(edge)
    for bus in tree.order[::-1]:
        own = int(bus)
        is_root = own == tree.root
        lead = np.array([-2.0 * tree.resistance_pu[own], -2.0 * tree.reactance_pu[own], 1.0])
        children = [made[int(edges.child[edge])] for edge in below[own]]
        made[own] = _relay(
            is_root=is_root,
            has_choice=bool(choice[own]) and not is_root,
            own=np.zeros(VARIABLES) if is_root else penalty[edges.of_bus[own]],
            demand=float(demand_penalty[own]),
            lead=np.zeros(VARIABLES) if is_root else lead,
            below=[
                child.hessian + np.diag(penalty[edge])
                for child, edge in zip(children, below[own], strict=True)
            ],
            live=tuple(child.is_live for child in children),
        )
    return [made[bus] for bus in range(len(tree))]


def _relay(
    *,
    is_root: bool,
    has_choice: bool,
    own: Floats,
    demand: float,
    lead: Floats,
    below: list[Floats],
    live: tuple[bool, ...],
) -> Relay:
    """Eliminate one site's inner averages; ``below`` are its children's joint Hessians."""
    parts = ([np.zeros((3, 3))] if has_choice else []) + [
        part for part, is_live in zip(below, live, strict=True) if is_live
    ]
    count = 2 * len(parts)
    inside = np.zeros((count, count))
    across = np.zeros((count, VARIABLES))
    for k, part in enumerate(parts):
        rows = slice(2 * k, 2 * k + 2)
        is_demand = has_choice and k == 0
        inside[rows, rows] = demand * np.eye(2) if is_demand else part[:2, :2]
        across[rows] = 0.0 if is_demand else np.outer(part[:2, 2], lead)
    curvature = sum(float(part[2, 2]) for part in below)
    outside = np.diag(own) + curvature * np.outer(lead, lead)
    gain_pull, gain_own = _gains(inside, across, is_bound=not is_root)
    lift = gain_own.T - (across.T + gain_own.T @ inside) @ gain_pull
    hessian = outside + across.T @ gain_own
    hessian = hessian + gain_own.T @ across + gain_own.T @ inside @ gain_own
    invariant(bool(np.isfinite(hessian).all()), "the elimination of a subtree is regular")
    return Relay(
        is_root=is_root,
        has_choice=has_choice,
        live=live,
        hessian=hessian,
        gain_pull=gain_pull,
        gain_own=gain_own,
        lift=lift,
        lead=lead,
    )


def _gains(inside: Floats, across: Floats, *, is_bound: bool) -> tuple[Floats, Floats]:
    """Minimise over the inner averages; bound = their sum is the flow of the own edge."""
    count = len(inside)
    if not count:
        return np.zeros((0, 0)), np.zeros((0, VARIABLES))
    if not is_bound:
        inverse: Floats = np.asarray(np.linalg.inv(inside), dtype=np.float64)
        return inverse, -inverse @ across
    total = np.tile(np.eye(2), count // 2)
    scale = float(np.trace(inside)) / count
    system = np.zeros((count + 2, count + 2))
    system[:count, :count] = inside / scale
    system[:count, count:], system[count:, :count] = total.T, total
    whole: Floats = np.asarray(np.linalg.inv(system), dtype=np.float64)
    pulled = whole[:count, :count] / scale
    own = -pulled @ across
    own[:, :2] += whole[:count, count:]
    return pulled, own
