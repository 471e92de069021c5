"""The tree as neighbours see it: edges, who owns which end, sums over children and over the tree.

An edge has the index of its child in breadth-first order, less one; the edges of one parent lie
next to each other. Sums run in a fixed order, so that machines that add message by message get the
same numbers to the last bit.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy import sparse

from veilgrid.grid.lindistflow import charging_injection
from veilgrid.grid.network import Floats, Integers, Tree

VARIABLES = 3
"""Coupling variables of an edge: active flow, reactive flow, squared voltage of the parent."""


@dataclass(frozen=True, kw_only=True)
class Edges:
    """Index arrays of the pairs of neighbouring sites."""

    tree: Tree

    def __len__(self) -> int:
        return len(self.tree) - 1

    @cached_property
    def child(self) -> Integers:
        """Bus at the child's end, (edge,)."""
        return self.tree.order[1:]

    @cached_property
    def parent(self) -> Integers:
        """Bus at the parent's end, (edge,)."""
        return self.tree.parent[self.child]

    @cached_property
    def depth(self) -> Integers:
        """Hops from the substation to the child, (edge,)."""
        return self.tree.depth[self.child]

    @cached_property
    def of_bus(self) -> Integers:
        """Edge that feeds a bus, (bus,); -1 for the substation."""
        edge = np.full(len(self.tree), -1, dtype=np.int64)
        edge[self.child] = np.arange(len(self))
        return edge

    @cached_property
    def gather(self) -> sparse.csr_matrix:
        """(bus, edge): one where the bus is the edge's parent."""
        ones = (np.ones(len(self)), (self.parent, np.arange(len(self))))
        return sparse.csr_matrix(ones, shape=(len(self.tree), len(self)))

    def over_children(self, values: Floats) -> Floats:
        """Add up values (edge, ...) of each bus's child edges, in edge order; (bus, ...)."""
        flat = np.asarray(self.gather @ values.reshape(len(self), -1))
        return flat.reshape(len(self.tree), *values.shape[1:])

    @cached_property
    def charging(self) -> Floats:
        """Reactive power that line charging injects at each bus, (bus,), per-unit."""
        return charging_injection(self.tree)

    def up(self, values: Floats) -> Floats:
        """Add values (bus, ...) up the tree; each bus's entry becomes the sum of its subtree.

        A bus adds its children's sums to its own value in edge order.
        """
        total = values.copy()
        first = np.searchsorted(self.parent_position, np.arange(len(self.tree) + 1))
        for position in range(len(self.tree) - 1, -1, -1):
            bus = self.tree.order[position]
            for edge in range(first[position], first[position + 1]):
                total[bus] += total[self.child[edge]]
        return total

    @cached_property
    def parent_position(self) -> Integers:
        """Position of an edge's parent in breadth-first order, (edge,), never falling."""
        position = np.empty(len(self.tree), dtype=np.int64)
        position[self.tree.order] = np.arange(len(self.tree))
        return np.asarray(position[self.parent])


@dataclass(frozen=True, kw_only=True)
class NeighbourState:
    """What neighbours agreed on, one row an edge, in breadth-first order of the children.

    Attributes
    ----------
    child, parent : (edge,)
        Buses at the two ends.
    average : (edge, variable, interval), per-unit
        Active flow, reactive flow, parent's squared voltage.
    multiplier : (edge, variable, interval), currency per unit of the variable
        Of the child's end; that of the parent's end is its negative.
    price : (bus, flow=2, interval), currency per per-unit held for one interval
        Nodal prices.
    buy : (interval,)
        Tariff of the day that this was found for.
    """

    child: Integers = field(repr=False)
    parent: Integers = field(repr=False)
    average: Floats = field(repr=False)
    multiplier: Floats = field(repr=False)
    price: Floats = field(repr=False)
    buy: Floats = field(repr=False)
