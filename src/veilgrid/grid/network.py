"""A radial network: buses, branches, and the index arrays that kernels work on."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NewType

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from veilgrid.errors import Finding, invariant

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
BusId = NewType("BusId", str)

BUS_KINDS = ("slack", "customer", "junction")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bus:
    """An electrical bus. ``kind`` is one of :data:`BUS_KINDS`."""

    name: BusId
    kind: str = "customer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A line or transformer. Flow is positive from ``parent`` (nearer the substation) to ``child``.

    Impedances and charging are per-unit on the network's base; ``rating_mva`` may be infinite.
    """

    parent: BusId
    child: BusId
    resistance_pu: float
    reactance_pu: float
    rating_mva: float = math.inf
    charging_pu: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Network:
    """A radial network with one substation.

    Attributes
    ----------
    buses, branches
        In the order in which tables list them; kernels use this bus order.
    base_mva, base_kv
        The per-unit base.
    slack_bus, slack_voltage_pu
        The substation and the voltage it holds.
    voltage_min_pu, voltage_max_pu
        Limits for every bus but the substation; ``None`` = unbounded.
    voltage_margin_pu
        Kept from both limits when planning, because LinDistFlow is not exact. >= 0.
    """

    buses: tuple[Bus, ...]
    branches: tuple[Branch, ...]
    base_mva: float
    base_kv: float
    slack_bus: BusId
    slack_voltage_pu: float = 1.0
    voltage_min_pu: float | None = None
    voltage_max_pu: float | None = None
    voltage_margin_pu: float = 0.0

    def findings(self) -> Iterator[Finding]:
        """Yield each rule of a radial network that is broken."""
        names = [bus.name for bus in self.buses]
        known = set(names)
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield Finding(f"bus {name}", "is listed more than once")
        if self.slack_bus not in known:
            yield Finding("slack_bus", f"{self.slack_bus} is not among the buses")
            return
        parent: dict[BusId, BusId] = {}
        for branch in self.branches:
            yield from self._branch_findings(branch, known, parent)
        yield from self._unreached(parent)

    def _branch_findings(
        self, branch: Branch, known: set[BusId], parent: dict[BusId, BusId]
    ) -> Iterator[Finding]:
        """Check one branch and, if it is sound, enter it into ``parent``."""
        here = f"branch {branch.parent}->{branch.child}"
        if branch.parent == branch.child:
            yield Finding(here, "both ends are the same bus")
            return
        unknown = [end for end in (branch.parent, branch.child) if end not in known]
        for end in unknown:
            yield Finding(here, f"bus {end} is not in buses.csv")
        if unknown:
            return
        if branch.child == self.slack_bus:
            yield Finding(here, "ends at the substation", "swap from_bus and to_bus")
        elif branch.child in parent:
            yield Finding(
                here,
                f"bus {branch.child} is already fed by bus {parent[branch.child]}: the network "
                "is not radial",
                "open one of the two branches, or swap from_bus and to_bus",
            )
        else:
            parent[branch.child] = branch.parent

    def _unreached(self, parent: dict[BusId, BusId]) -> Iterator[Finding]:
        reached = {self.slack_bus}
        for bus in self.buses:
            path = [bus.name]
            while path[-1] in parent and path[-1] not in reached and len(path) <= len(self.buses):
                path.append(parent[path[-1]])
            if path[-1] in reached:
                reached.update(path)
            else:
                yield Finding(
                    f"bus {bus.name}",
                    f"cannot be reached from the substation {self.slack_bus}",
                    "add the missing branch; from_bus is the end nearer the substation",
                )

    @cached_property
    def tree(self) -> "Tree":
        """The network as index arrays. Raises nothing: validate with :meth:`findings` first."""
        problems = list(self.findings())
        invariant(not problems, f"a tree is built from a valid network, not: {problems[:1]}")
        index = {bus.name: position for position, bus in enumerate(self.buses)}
        count = len(self.buses)
        parent = np.full(count, -1, dtype=np.int64)
        resistance, reactance, charging = np.zeros(count), np.zeros(count), np.zeros(count)
        rating = np.full(count, np.inf)
        for branch in self.branches:
            child = index[branch.child]
            parent[child] = index[branch.parent]
            resistance[child], reactance[child] = branch.resistance_pu, branch.reactance_pu
            charging[child], rating[child] = branch.charging_pu, branch.rating_mva / self.base_mva
        children: list[list[int]] = [[] for _ in range(count)]
        for child in range(count):
            if parent[child] >= 0:
                children[parent[child]].append(child)
        order = [index[self.slack_bus]]
        for bus in order:
            order.extend(children[bus])
        return Tree(
            parent=parent,
            order=np.array(order, dtype=np.int64),
            resistance_pu=resistance,
            reactance_pu=reactance,
            charging_pu=charging,
            rating_pu=rating,
            slack_voltage_pu=self.slack_voltage_pu,
        )


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Index arrays of a radial network, one entry per bus; a branch has its child's index.

    Attributes
    ----------
    parent : (bus,)
        Index of the parent, -1 for the substation.
    order : (bus,)
        Bus indices, every parent before its children.
    resistance_pu, reactance_pu, charging_pu, rating_pu : (bus,), per-unit
        Of the branch that feeds the bus; 0, 0, 0, inf for the substation. ``charging_pu`` is the
        susceptance of the whole branch.
    """

    parent: Integers
    order: Integers
    resistance_pu: Floats
    reactance_pu: Floats
    charging_pu: Floats
    rating_pu: Floats
    slack_voltage_pu: float
    root: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", int(self.order[0]))
        for array in (self.parent, self.order, self.resistance_pu, self.reactance_pu):
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.parent)

    @cached_property
    def depth(self) -> Integers:
        """Hops from the substation, (bus,)."""
        depth = np.zeros(len(self), dtype=np.int64)
        for bus in self.order[1:]:
            depth[bus] = depth[self.parent[bus]] + 1
        return depth

    @cached_property
    def subtree(self) -> sparse.csr_matrix:
        """(branch, bus): one where the bus lies in the subtree that the branch feeds."""
        rows, columns = [], []
        for bus in range(len(self)):
            ancestor = bus
            while ancestor >= 0:
                rows.append(ancestor)
                columns.append(bus)
                ancestor = int(self.parent[ancestor])
        shape = (len(self), len(self))
        return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)

    @cached_property
    def path(self) -> sparse.csr_matrix:
        """(bus, branch): one where the branch lies between the substation and the bus."""
        return sparse.csr_matrix(self.subtree.T)
