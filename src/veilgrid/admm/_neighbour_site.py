"""The local problem of one site that has a choice: closed form, short program, or full program.

While no limit of its own bus or branch binds, a site minimises its cost plus a quadratic in its net
demand. Up to two variables an interval without rows have a closed form; anything else is a program
whose matrices never change, so it is factored once and started warm. If the answer breaks a limit,
the full program with flows and voltage as variables is solved instead.
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse

from veilgrid.admm._neighbour_local import Answer, Junctions, Targets, polygon
from veilgrid.errors import invariant
from veilgrid.grid.network import Floats
from veilgrid.grid.site import Site
from veilgrid.qp.problem import QuadraticProgram, SolveStatus
from veilgrid.qp.solve import RepeatedSolver, SolveSettings

BACKEND = "osqp"


class Scale(NamedTuple):
    """Natural units of a day: a power (per-unit), a price (currency per per-unit), a squared drop.

    Everything that is chosen without a unit is chosen relative to them.
    """

    power: float
    price: float
    drop: float


class Choice(NamedTuple):
    """What a site may choose, per-unit; the substation's exchange is two more groups."""

    quadratic: Floats
    linear: Floats
    lower: Floats
    upper: Floats
    matrix: sparse.csc_matrix
    row_lower: Floats
    row_upper: Floats
    inject_p: sparse.csr_matrix
    inject_q: sparse.csr_matrix
    load: Floats


def choice_of(site: Site, charging: float) -> Choice:
    """Take a site's choice; ``charging`` is what line charging injects at its bus."""
    return Choice(
        site.quadratic,
        site.linear,
        site.lower,
        site.upper,
        site.matrix,
        site.row_lower,
        site.row_upper,
        site.inject_p,
        site.inject_q,
        np.stack([site.load_p, site.load_q - charging]),
    )


def with_exchange(choice: Choice, buy: Floats, sell: Floats) -> Choice:
    """Add import and export at the tariff, two variables an interval, both >= 0."""
    count = len(buy)
    identity = sparse.identity(count, format="csr")
    none = np.zeros(2 * count)
    rows = choice.matrix.shape[0]
    return Choice(
        np.concatenate([choice.quadratic, none]),
        np.concatenate([choice.linear, buy, -sell]),
        np.concatenate([choice.lower, none]),
        np.concatenate([choice.upper, np.full(2 * count, np.inf)]),
        sparse.csc_matrix(sparse.hstack([choice.matrix, sparse.csc_matrix((rows, 2 * count))])),
        choice.row_lower,
        choice.row_upper,
        sparse.csr_matrix(sparse.hstack([choice.inject_p, identity, -identity])),
        sparse.csr_matrix(sparse.hstack([choice.inject_q, sparse.csr_matrix((count, 2 * count))])),
        choice.load,
    )


class LocalProgram:
    """Minimises a choice's cost plus ``(d - wish)' stiffness (d - wish) / 2``.

    ``d`` is the net demand (flow=2, interval), ``stiffness`` (2, 2) constant.
    """

    def __init__(self, choice: Choice, stiffness: Floats, scale: Scale, tolerance: float) -> None:
        self.choice, self._stiffness, self._scale = choice, stiffness, scale
        self._tolerance = tolerance
        self._warm: RepeatedSolver | None = None
        count = choice.load.shape[1]
        self._groups = len(choice.linear) // count
        self._box = self._box_hessian(count)

    def _box_hessian(self, count: int) -> Floats | None:
        """Hessian of each interval, (interval, group, group), if a closed form serves."""
        choice, groups = self.choice, self._groups
        if choice.matrix.shape[0] or not 1 <= groups <= 2:
            return None
        inject = self._inject_groups(count)
        if inject is None:
            return None
        self._inject = inject
        hessian = np.einsum("fig,fe,eih->igh", inject, self._stiffness, inject)
        diagonal = np.arange(groups)
        hessian[:, diagonal, diagonal] += choice.quadratic.reshape(groups, count).T
        least = np.linalg.eigvalsh(hessian)[:, 0]
        size = np.trace(hessian, axis1=1, axis2=2)
        return hessian if bool((least > 1e-9 * size).all()) else None

    def _inject_groups(self, count: int) -> Floats | None:
        """Injection of each group in its own interval, (flow=2, interval, group)."""
        pair = []
        for matrix in (self.choice.inject_p, self.choice.inject_q):
            blocks = [matrix[:, g * count : (g + 1) * count] for g in range(self._groups)]
            diagonals = np.array([block.diagonal() for block in blocks])
            if any(abs(b - sparse.diags(d)).sum() for b, d in zip(blocks, diagonals, strict=True)):
                return None
            pair.append(diagonals.T)
        return np.stack(pair)

    @property
    def is_closed_form(self) -> bool:
        """Whether no back-end is needed."""
        return self._box is not None

    def solve(self, wish: Floats) -> Floats:
        """Return the best set-points (variable,) for a wished net demand (flow=2, interval)."""
        choice = self.choice
        push = self._stiffness @ (choice.load - wish)
        linear = choice.linear - choice.inject_p.T @ push[0] - choice.inject_q.T @ push[1]
        if self._box is not None:
            return self._closed_form(linear)
        return self._program(linear)

    def _closed_form(self, linear: Floats) -> Floats:
        groups, count = self._groups, self.choice.load.shape[1]
        low = self.choice.lower.reshape(groups, count)
        high = self.choice.upper.reshape(groups, count)
        slope = linear.reshape(groups, count)
        invariant(self._box is not None, "a closed form has its Hessian")
        hessian = self._box if self._box is not None else np.zeros((count, groups, groups))
        if groups == 1:
            return np.asarray(np.clip(-slope[0] / hessian[:, 0, 0], low[0], high[0]))
        return _box_pair(hessian, slope, low, high).ravel()

    def _program(self, linear: Floats) -> Floats:
        power, price, _ = self._scale
        if self._warm is None:
            self._warm = self._factor()
        solution = self._warm.solve(linear=linear / price)
        if solution.status is not SolveStatus.OPTIMAL:
            raise Infeasible
        return np.clip(solution.x * power, self.choice.lower, self.choice.upper)

    def _factor(self) -> RepeatedSolver:
        choice, (power, price, _) = self.choice, self._scale
        active, reactive = choice.inject_p, choice.inject_q
        stiff = self._stiffness
        hessian = sparse.diags(choice.quadratic)
        hessian = hessian + active.T @ (stiff[0, 0] * active + stiff[0, 1] * reactive)
        hessian = hessian + reactive.T @ (stiff[1, 0] * active + stiff[1, 1] * reactive)
        wide = len(choice.linear)
        problem = QuadraticProgram(
            quadratic=sparse.csc_matrix(hessian * (power / price)),
            linear=choice.linear / price,
            matrix=sparse.csc_matrix(sparse.vstack([choice.matrix, sparse.identity(wide)])),
            lower=np.concatenate([choice.row_lower, choice.lower]) / power,
            upper=np.concatenate([choice.row_upper, choice.upper]) / power,
        )
        return RepeatedSolver(problem, BACKEND, SolveSettings(tolerance=self._tolerance))

    def demand(self, x: Floats) -> Floats:
        """Net demand of set-points, (flow=2, interval)."""
        choice = self.choice
        return np.asarray(choice.load - np.stack([choice.inject_p @ x, choice.inject_q @ x]))


class Infeasible(Exception):
    """A site's own rows and limits contradict each other; caught where the run ends."""


def _box_pair(hessian: Floats, slope: Floats, low: Floats, high: Floats) -> Floats:
    """Minimise two variables an interval inside a box: the best of the face minima.

    Either the free minimum lies in the box, or the minimum lies on one of four sides.
    """
    free = np.linalg.solve(hessian, -slope.T[:, :, np.newaxis])[:, :, 0].T
    best: Floats = np.asarray(np.clip(free, low, high), dtype=np.float64)
    outside = np.flatnonzero((best != free).any(axis=0))
    if not len(outside):
        return best
    part, aim = hessian[outside], slope[:, outside]
    floor, ceiling = low[:, outside], high[:, outside]
    value = np.full(len(outside), np.inf)
    for fixed in (0, 1):
        other = 1 - fixed
        for side in (floor, ceiling):
            point = np.empty_like(aim)
            point[fixed] = side[fixed]
            step = -(aim[other] + part[:, 0, 1] * side[fixed]) / part[:, other, other]
            point[other] = np.clip(step, floor[other], ceiling[other])
            cost = 0.5 * np.einsum("it,tij,jt->t", point, part, point) + (aim * point).sum(axis=0)
            better = cost < value
            value[better] = cost[better]
            best[:, outside[better]] = point[:, better]
    return best


class LimitedProgram:
    """A site's whole local problem with its flows and its voltage as variables.

    Variables: set-points, outflow to the children P and Q (unless a leaf), flow from the parent P
    and Q, own squared voltage; powers in the day's power, the voltage from the lower end of its
    range in the day's drop.
    """

    def __init__(
        self,
        choice: Choice,
        junction: Junctions,
        demand_penalty: float,
        centre: float,
        scale: Scale,
        tolerance: float,
    ) -> None:
        self._choice, self._junction, self._scale = choice, junction, scale
        self._demand_penalty = demand_penalty
        self._centre = centre
        self._is_leaf = not bool(junction.slack.any())
        self._count = choice.load.shape[1]
        self._warm = self._factor(tolerance)

    def _factor(self, tolerance: float) -> RepeatedSolver:
        choice, own, (power, price, drop) = self._choice, self._junction, self._scale
        count, wide = self._count, len(choice.linear)
        identity = sparse.identity(count, format="csc")
        unit = np.array([power, power, drop])
        lead = np.array([own.resistance[0], own.reactance[0], 1.0])
        hessian = own.penalty[0, 2] * np.outer(lead, lead)
        hessian += np.diag([own.penalty[0, 0], own.penalty[0, 1], own.voltage_penalty[0]])
        hessian *= np.outer(unit, unit) / (price * power)
        inject = sparse.csr_matrix(sparse.vstack([choice.inject_p, choice.inject_q]))
        near = sparse.diags(choice.quadratic) + self._demand_penalty * (inject.T @ inject)
        blocks = [sparse.csc_matrix(near * (power / price))]
        if not self._is_leaf:
            joint = power / (price * own.slack[0])
            blocks.append(sparse.diags(np.repeat(joint, count)))
        blocks.append(sparse.kron(sparse.csc_matrix(hessian), identity))
        outflow = 0 if self._is_leaf else 2 * count
        # Balance: flow in - outflow + injection = load.
        pair = sparse.identity(2 * count)
        balance = [inject] + ([] if self._is_leaf else [-pair])
        balance += [pair, sparse.csc_matrix((2 * count, count))]
        rows = [
            sparse.hstack(
                [choice.matrix, sparse.csc_matrix((choice.matrix.shape[0], outflow + 3 * count))]
            ),
            sparse.hstack(balance),
            sparse.hstack([sparse.identity(wide), sparse.csc_matrix((wide, outflow + 3 * count))]),
            sparse.hstack([sparse.csc_matrix((count, wide + outflow + 2 * count)), identity]),
        ]
        ends = np.full(count, 1.0) / drop
        load = choice.load.ravel() / power
        lower = [
            choice.row_lower / power,
            load,
            choice.lower / power,
            ends * (own.squared_min - self._centre),
        ]
        upper = [
            choice.row_upper / power,
            load,
            choice.upper / power,
            ends * (own.squared_max - self._centre),
        ]
        reach = float(own.reach[0])
        if np.isfinite(reach):
            sides = sparse.kron(sparse.csc_matrix(polygon()), identity)
            height = sides.shape[0]
            left = sparse.csc_matrix((height, wide + outflow))
            rows.append(sparse.hstack([left, sides, sparse.csc_matrix((height, count))]))
            lower.append(np.full(height, -np.inf))
            upper.append(np.full(height, reach / power))
        self._first_balance = choice.matrix.shape[0]
        problem = QuadraticProgram(
            quadratic=sparse.csc_matrix(sparse.block_diag(blocks)),
            linear=np.zeros(wide + outflow + 3 * count),
            matrix=sparse.csc_matrix(sparse.vstack(rows)),
            lower=np.concatenate(lower),
            upper=np.concatenate(upper),
        )
        return RepeatedSolver(problem, BACKEND, SolveSettings(tolerance=tolerance))

    def solve(self, targets: Targets, demand: Floats) -> tuple[Floats, Answer]:
        """Return set-points and copies.

        ``targets`` has a site axis of one, ``demand`` (flow=2, interval) is what the site's own net
        demand is pulled towards.
        """
        choice, own, (power, price, drop) = self._choice, self._junction, self._scale
        count, wide = self._count, len(choice.linear)
        penalty = own.penalty[0]
        below = targets.own[0, 2] - self._centre
        pull = penalty[2] * below
        lack = self._demand_penalty * (choice.load - demand)
        near = choice.linear - choice.inject_p.T @ lack[0] - choice.inject_q.T @ lack[1]
        linear = [near / price]
        if not self._is_leaf:
            linear.append((-targets.outflow[0] / own.slack[0][:, np.newaxis]).ravel() / price)
        flow = penalty[:2, np.newaxis] * targets.own[0, :2] + np.outer(own.impedance[0], pull)
        level = pull + own.voltage_penalty[0] * (targets.voltage[0] - self._centre)
        linear += [-flow.ravel() / price, -level * (drop / (price * power))]
        solution = self._warm.solve(linear=np.concatenate(linear))
        if solution.status is not SolveStatus.OPTIMAL:
            raise Infeasible
        x = np.clip(solution.x[:wide] * power, choice.lower, choice.upper)
        inward = solution.x[-3 * count : -count].reshape(1, 2, count) * power
        voltage = solution.x[-count:][np.newaxis] * drop + self._centre
        upper = voltage + own.drop(inward)
        copies = np.stack([inward[:, 0], inward[:, 1], upper], axis=1)
        first = self._first_balance
        cost = -solution.multipliers[first : first + 2 * count] * price
        demand = choice.load - np.stack([choice.inject_p @ x, choice.inject_q @ x])
        answer = Answer(copies, voltage, cost.reshape(1, 2, count), demand[np.newaxis])
        return x, answer
