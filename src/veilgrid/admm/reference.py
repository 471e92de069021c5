"""The two oracles that every scheme is compared with: everybody alone, and one central operator."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse

from veilgrid.admm.outcome import Coordination, Progress, RunStatus
from veilgrid.errors import Finding, InputError
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits, flows
from veilgrid.grid.network import Floats
from veilgrid.grid.site import Site
from veilgrid.qp.explain import elastic
from veilgrid.qp.problem import QuadraticProgram, Solution, SolveStatus
from veilgrid.qp.solve import solve

LIMIT_TOLERANCE = 1e-7
"""A network row exceeded by less (per-unit) counts as kept while rows are generated."""

ROWS_PER_PASS = 6
"""So many of the worst exceeded rows of an interval join the central problem in one pass."""


def stack(sites: list[Site]) -> QuadraticProgram:
    """Put sites side by side into one problem: own rows first, then one row per variable.

    Raises nothing; the sites stay uncoupled.
    """
    empty = np.zeros(0)

    def joined(attribute: str) -> Floats:
        return np.concatenate([getattr(site, attribute) for site in sites] or [empty])

    quadratic = joined("quadratic")
    blocks = sparse.block_diag([site.matrix for site in sites], format="csc") if sites else None
    width = len(quadratic)
    rows = blocks if blocks is not None else sparse.csc_matrix((0, 0))
    return QuadraticProgram(
        quadratic=sparse.diags(quadratic, format="csc"),
        linear=joined("linear"),
        matrix=sparse.csc_matrix(sparse.vstack([rows, sparse.identity(width)])),
        lower=np.concatenate([joined("row_lower"), joined("lower")]),
        upper=np.concatenate([joined("row_upper"), joined("upper")]),
    )


def unstack(sites: list[Site], x: Floats) -> list[Floats]:
    """Cut a stacked vector into one set-point vector a site."""
    ends = np.cumsum([len(site.linear) for site in sites])
    return np.split(x[: ends[-1]] if len(ends) else x[:0], ends[:-1])


def alone(day: Day) -> Coordination:
    """Let every site meet its own demand at the substation's tariff; no flow between sites.

    Network limits do not enter: nobody looks at the network.
    """
    sites = list(day.sites)
    count = day.interval_count
    own = stack(sites)
    inject = sparse.block_diag([site.inject_p for site in sites], format="csc")
    demand = np.concatenate([site.load_p for site in sites])
    identity = sparse.identity(len(demand))
    wide = own.matrix.shape[1]
    contracts = 2 * len(demand)
    problem = QuadraticProgram(
        quadratic=_widen(own.quadratic, contracts),
        linear=np.concatenate(
            [own.linear, np.tile(day.buy, len(sites)), -np.tile(day.sell, len(sites))]
        ),
        matrix=sparse.csc_matrix(
            sparse.bmat(
                [
                    [own.matrix, None, None],
                    [inject, identity, -identity],
                    [None, identity, None],
                    [None, None, identity],
                ]
            )
        ),
        lower=np.concatenate([own.lower, demand, np.zeros(contracts)]),
        upper=np.concatenate([own.upper, demand, np.full(contracts, np.inf)]),
    )
    solution = solve(problem)
    setpoints = unstack(sites, solution.x[:wide])
    price = -solution.multipliers[len(own.lower) : len(own.lower) + len(demand)]
    return _coordination(day, solution, setpoints, price.reshape(len(sites), count))


def _widen(matrix: sparse.csc_matrix, extra: int) -> sparse.csc_matrix:
    return sparse.csc_matrix(sparse.block_diag([matrix, sparse.csc_matrix((extra, extra))]))


def _coordination(
    day: Day,
    solution: Solution,
    setpoints: list[Floats],
    price: Floats,
    violations: tuple[tuple[int, int, float], ...] = (),
    price_q: Floats | None = None,
) -> Coordination:
    status = {
        SolveStatus.OPTIMAL: RunStatus.CONVERGED,
        SolveStatus.INFEASIBLE: RunStatus.INFEASIBLE,
    }.get(solution.status, RunStatus.ITERATION_LIMIT)
    return Coordination(
        status=status,
        setpoints=setpoints,
        price_p=price,
        price_q=np.zeros_like(price) if price_q is None else price_q,
        history=(Progress(1, 0.0, 0.0, day.cost(setpoints)),) if setpoints else (),
        violations=violations,
    )


class ActiveRow(NamedTuple):
    """A network row that takes part in the central problem."""

    number: int
    interval: int


@dataclass
class _Central:
    """The central problem with the network rows found necessary so far."""

    day: Day
    limits: Limits
    own: QuadraticProgram
    rows: list[ActiveRow]

    def problem(self) -> QuadraticProgram:
        day, count = self.day, self.day.interval_count
        sites = day.sites
        wide = self.own.matrix.shape[1]
        together = sparse.hstack([site.inject_p for site in sites])
        load = np.sum([site.load_p for site in sites], axis=0)
        network, bound = self._network_rows()
        identity, blank = sparse.identity(count), sparse.csc_matrix((count, count))
        free = sparse.csc_matrix((self.own.matrix.shape[0], count))
        slack = sparse.csc_matrix((len(bound), count))
        matrix = sparse.bmat(
            [
                [self.own.matrix, free, free],
                [together, identity, -identity],
                [sparse.csc_matrix((count, wide)), identity, blank],
                [sparse.csc_matrix((count, wide)), blank, identity],
                [network, slack, slack],
            ]
        )
        never = np.full(len(bound), -np.inf)
        zero, open_end = np.zeros(2 * count), np.full(2 * count, np.inf)
        return QuadraticProgram(
            quadratic=_widen(self.own.quadratic, 2 * count),
            linear=np.concatenate([self.own.linear, day.buy, -day.sell]),
            matrix=sparse.csc_matrix(matrix),
            lower=np.concatenate([self.own.lower, load, zero, never]),
            upper=np.concatenate([self.own.upper, load, open_end, bound]),
        )

    def _network_rows(self) -> tuple[sparse.csr_matrix, Floats]:
        """Rows ``a_p . d + a_q . q <= bound`` on the sites' variables."""
        wide = self.own.matrix.shape[1]
        if not self.rows:
            return sparse.csr_matrix((0, wide)), np.zeros(0)
        sites, count = self.day.sites, self.day.interval_count
        load_p = np.array([site.load_p for site in sites])
        load_q = np.array([site.load_q for site in sites])
        # (bus, interval) flattened bus-major <- variables
        inject_p = sparse.block_diag([site.inject_p for site in sites], format="csr")
        inject_q = sparse.block_diag([site.inject_q for site in sites], format="csr")
        bound = np.zeros(len(self.rows))
        picks_p, picks_q, places, owners = [], [], [], []
        offsets = np.arange(len(sites)) * count
        for position, (number, interval) in enumerate(self.rows):
            active, reactive, limit = self.limits.row(number)
            limit -= self.limits.narrowing(number, interval)
            bound[position] = limit - active @ load_p[:, interval] - reactive @ load_q[:, interval]
            picks_p.append(-active)
            picks_q.append(-reactive)
            places.append(offsets + interval)
            owners.append(np.full(len(sites), position))
        shape = (len(self.rows), len(sites) * count)
        where = (np.concatenate(owners), np.concatenate(places))
        matrix = sparse.csr_matrix((np.concatenate(picks_p), where), shape=shape) @ inject_p
        matrix += sparse.csr_matrix((np.concatenate(picks_q), where), shape=shape) @ inject_q
        matrix.eliminate_zeros()
        return matrix, bound

    def grow(self, setpoints: list[Floats]) -> bool:
        """Add the worst exceeded rows of each interval; return whether any was added."""
        excess = self.limits.excess(flows(self.limits.tree, *self.day.demands(setpoints)))
        known = set(self.rows)
        added = False
        for interval in np.flatnonzero((excess > LIMIT_TOLERANCE).any(axis=0)):
            worst = np.argsort(excess[:, interval])[::-1][:ROWS_PER_PASS]
            for number in worst[excess[worst, interval] > LIMIT_TOLERANCE]:
                row = ActiveRow(int(number), int(interval))
                if row not in known:
                    self.rows.append(row)
                    added = True
        return added


def central(day: Day, limits: Limits) -> Coordination:
    """Solve the whole day as one quadratic program; network rows join when they are exceeded.

    An infeasible day comes back without set-points, with the rows that no plan can meet.
    """
    sites = list(day.sites)
    problem = _Central(day, limits, stack(sites), [])
    count = day.interval_count
    while True:
        program = problem.problem()
        solution = solve(program)
        setpoints = unstack(sites, solution.x)
        if solution.status is not SolveStatus.OPTIMAL:
            nowhere = np.zeros((len(sites), count))
            return _coordination(day, solution, [], nowhere, _least_violation(problem))
        if limits.are_absent or not problem.grow(setpoints):
            break
    first = problem.own.matrix.shape[0]
    base = -solution.multipliers[first : first + count]
    price_p = np.tile(base, (len(sites), 1))
    price_q = np.zeros_like(price_p)
    strengths = solution.multipliers[len(solution.multipliers) - len(problem.rows) :]
    if len(strengths) == len(problem.rows):
        for (number, interval), strength in zip(problem.rows, strengths, strict=True):
            active, reactive, _ = limits.row(number)
            price_p[:, interval] += strength * active
            price_q[:, interval] += strength * reactive
    return _coordination(day, solution, setpoints, price_p, price_q=price_q)


def least_violation(day: Day, limits: Limits) -> tuple[tuple[int, int, float], ...]:
    """Find the network rows that no plan can meet, with the least total violation.

    Returns
    -------
    tuple of (row, interval, amount)
        Empty if the day is feasible.

    Raises
    ------
    InputError
        The sites' own constraints contradict each other; each such site is a finding.
    """
    return _least_violation(_Central(day, limits, stack(list(day.sites)), []))


def _least_violation(problem: _Central) -> tuple[tuple[int, int, float], ...]:
    sites = list(problem.day.sites)
    while True:
        program = problem.problem()
        first = len(program.lower) - len(problem.rows)
        soft = np.zeros(len(program.lower))
        for place, row in enumerate(problem.rows):
            active, reactive, _ = problem.limits.row(row.number)
            largest = float(max(np.abs(active).max(), np.abs(reactive).max()))
            soft[first + place] = 1.0 / largest if largest > 0.0 else 1.0
        least = elastic(program, soft)
        if least.is_hard_infeasible:
            raise InputError(site_findings(sites))
        if not problem.grow(unstack(sites, least.x)):
            break
    return tuple(
        (number, interval, float(amount))
        for (number, interval), amount in zip(problem.rows, least.violation[first:], strict=True)
        if amount > LIMIT_TOLERANCE
    )


def site_findings(sites: list[Site]) -> list[Finding]:
    """Name each site whose own constraints contradict each other, and the rows that do."""
    findings = []
    for site in sites:
        if not site.row_names:
            continue  # Bounds alone never contradict each other.
        program = stack([site])
        soft = np.zeros(len(program.lower))
        soft[: site.matrix.shape[0]] = 1.0
        least = elastic(program, soft)
        start = 0
        for device, what, length in site.row_names:
            worst = float(np.max(np.abs(least.violation[start : start + length]), initial=0.0))
            if worst > 0.0:
                interval = int(np.argmax(np.abs(least.violation[start : start + length])))
                findings.append(
                    Finding(
                        f"site {site.name}, device {device}",
                        f"{what} cannot be met: short by {worst:.6g} per-unit, "
                        f"first at row {interval} of {length}",
                    )
                )
            start += length
    return findings or [Finding("scenario", "the sites' constraints contradict each other")]
