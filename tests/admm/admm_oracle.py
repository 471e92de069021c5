"""Independent formulations to compare with, and the days that the tests plan."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from veilgrid.grid.lindistflow import POLYGON_SIDES
from veilgrid.grid.network import Floats
from veilgrid.grid.scenario import Scenario
from veilgrid.grid.site import Site
from veilgrid.qp.problem import QuadraticProgram, Solution
from veilgrid.qp.solve import solve

YINGKOU = Path(__file__).parents[3] / "shared" / "scenarios"
OPTIMA = {"06": 39593.86, "07": 44202.52, "08": 44781.68, "09": 39014.01}
ALONE = {"06": 40911.95, "07": 46714.64, "08": 46964.38, "09": 42267.95}


def yingkou(day: str) -> Scenario:
    """Read one of the published days where they are at hand."""
    folder = YINGKOU / f"yingkou-2023-11-{day}"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: its publisher gave no licence to ship it")
    return Scenario.read(folder)


def tightened(scenario: Scenario, impedance: float, low: float, high: float) -> Scenario:
    """Give a scenario longer lines and voltage limits."""
    branches = tuple(
        replace(
            b, resistance_pu=b.resistance_pu * impedance, reactance_pu=b.reactance_pu * impedance
        )
        for b in scenario.network.branches
    )
    network = replace(scenario.network, branches=branches, voltage_min_pu=low, voltage_max_pu=high)
    return replace(scenario, network=network)


def in_other_units(scenario: Scenario, currency: float, base: float) -> Scenario:
    """Say the same with another currency and another base power."""
    branches = tuple(
        replace(
            b,
            resistance_pu=b.resistance_pu * base,
            reactance_pu=b.reactance_pu * base,
            charging_pu=b.charging_pu / base,
        )
        for b in scenario.network.branches
    )
    network = replace(
        scenario.network, branches=branches, base_mva=scenario.network.base_mva * base
    )
    devices = tuple(
        replace(d, cost_linear=d.cost_linear * currency, cost_quadratic=d.cost_quadratic * currency)
        if hasattr(d, "cost_linear")
        else d
        for d in scenario.devices
    )
    return replace(
        scenario,
        network=network,
        devices=devices,
        buy=scenario.buy * currency,
        sell=scenario.sell * currency,
    )


def shuffled(scenario: Scenario, seed: int) -> Scenario:
    """List buses, branches and devices in another order."""
    rng = np.random.default_rng(seed)
    network = scenario.network
    buses, branches = rng.permutation(len(network.buses)), rng.permutation(len(network.branches))
    return replace(
        scenario,
        network=replace(
            network,
            buses=tuple(network.buses[k] for k in buses),
            branches=tuple(network.branches[k] for k in branches),
        ),
        devices=tuple(scenario.devices[k] for k in rng.permutation(len(scenario.devices))),
        load_p_mw=scenario.load_p_mw[buses],
        load_q_mvar=scenario.load_q_mvar[buses],
    )


class Rows:
    """Collects rows ``low <= sum coefficient x <= high``."""

    def __init__(self) -> None:
        self.data: list[float] = []
        self.row: list[int] = []
        self.column: list[int] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def add(self, terms: list[tuple[int, float]], low: float, high: float) -> None:
        for column, coefficient in terms:
            self.row.append(len(self.low))
            self.column.append(column)
            self.data.append(coefficient)
        self.low.append(low)
        self.high.append(high)


def own_rows(rows: Rows, sites: tuple[Site, ...], start: np.ndarray) -> None:
    """Add each site's own rows and bounds."""
    for first, site in zip(start, sites, strict=False):
        own = site.matrix.tocsr()
        for r in range(own.shape[0]):
            span = slice(own.indptr[r], own.indptr[r + 1])
            places = (first + own.indices[span]).tolist()
            terms = list(zip(places, own.data[span].tolist(), strict=True))
            rows.add(terms, site.row_lower[r], site.row_upper[r])
        for c in range(len(site.linear)):
            rows.add([(int(first + c), 1.0)], site.lower[c], site.upper[c])


def full_problem(scenario: Scenario, margin_pu: float) -> QuadraticProgram:
    """Write the whole day with explicit flows and voltages [model 2 and 3], branch by branch.

    Columns: the sites' set-points, then for each interval P and Q into each bus, u of each bus,
    then purchase and sale.
    """
    day, network = scenario.day(), scenario.network
    sites, count, intervals = day.sites, len(network.buses), day.interval_count
    start = np.cumsum([0, *[len(site.linear) for site in sites]])
    place = {bus.name: k for k, bus in enumerate(network.buses)}
    wide = int(start[-1])
    block = 3 * count + 2

    def column(interval: int, kind: int, bus: int) -> int:
        return wide + interval * block + kind * count + bus

    rows = Rows()
    own_rows(rows, sites, start)
    charging = np.zeros(count)
    for branch in network.branches:
        for end in (branch.parent, branch.child):
            charging[place[end]] += branch.charging_pu / 2.0 * network.slack_voltage_pu**2
    for t in range(intervals):
        for bus, site in enumerate(sites):
            below = [place[b.child] for b in network.branches if place[b.parent] == bus]
            for kind, inject, load in (
                (0, site.inject_p, site.load_p[t]),
                (1, site.inject_q, site.load_q[t] - charging[bus]),
            ):
                line = inject.tocsr()[[t]].tocoo()
                terms = [
                    (int(start[bus] + c), float(v))
                    for c, v in zip(line.col, line.data, strict=True)
                ]
                terms += [(column(t, kind, child), -1.0) for child in below]
                rows.add([*terms, (column(t, kind, bus), 1.0)], load, load)
        root = place[network.slack_bus]
        rows.add([(column(t, 2, root), 1.0)], *[network.slack_voltage_pu**2] * 2)
        for branch in network.branches:
            p, c = place[branch.parent], place[branch.child]
            drop = [
                (column(t, 2, c), 1.0),
                (column(t, 2, p), -1.0),
                (column(t, 0, c), 2.0 * branch.resistance_pu),
                (column(t, 1, c), 2.0 * branch.reactance_pu),
            ]
            rows.add(drop, 0.0, 0.0)
            low, high = network.voltage_min_pu, network.voltage_max_pu
            if low is not None or high is not None:
                bottom = -np.inf if low is None else (low + margin_pu) ** 2
                top = np.inf if high is None else (high - margin_pu) ** 2
                rows.add([(column(t, 2, c), 1.0)], bottom, top)
            if np.isfinite(branch.rating_mva):
                reach = branch.rating_mva / network.base_mva * np.cos(np.pi / POLYGON_SIDES)
                for side in range(POLYGON_SIDES):
                    angle = 2.0 * np.pi * side / POLYGON_SIDES
                    towards = [(column(t, 0, c), np.cos(angle)), (column(t, 1, c), np.sin(angle))]
                    rows.add(towards, -np.inf, reach)
        buy, sell = wide + t * block + 3 * count, wide + t * block + 3 * count + 1
        rows.add([(column(t, 0, root), 1.0), (buy, -1.0), (sell, 1.0)], 0.0, 0.0)
        rows.add([(buy, 1.0)], 0.0, np.inf)
        rows.add([(sell, 1.0)], 0.0, np.inf)
    width = wide + intervals * block
    linear, quadratic = np.zeros(width), np.zeros(width)
    linear[:wide] = np.concatenate([site.linear for site in sites])
    quadratic[:wide] = np.concatenate([site.quadratic for site in sites])
    for t in range(intervals):
        linear[wide + t * block + 3 * count] = day.buy[t]
        linear[wide + t * block + 3 * count + 1] = -day.sell[t]
    shape = (len(rows.low), width)
    return QuadraticProgram(
        quadratic=sparse.diags(quadratic, format="csc"),
        linear=linear,
        matrix=sparse.csc_matrix((rows.data, (rows.row, rows.column)), shape=shape),
        lower=np.array(rows.low),
        upper=np.array(rows.high),
    )


def full_solution(scenario: Scenario, margin_pu: float) -> tuple[Solution, float]:
    """Solve the explicit formulation; return the solution and its cost."""
    problem = full_problem(scenario, margin_pu)
    found = solve(problem, "osqp")
    return found, problem.objective(found.x)


def scale_of(scenario: Scenario) -> float:
    """What costs of a day are compared in: what its loads alone would cost."""
    day = scenario.day()
    load: Floats = np.sum([site.load_p for site in day.sites], axis=0)
    return max(day.exchange_cost(np.abs(load)), float(np.abs(day.buy).max()), 1e-6)
