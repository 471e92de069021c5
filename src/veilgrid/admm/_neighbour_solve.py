"""Local problems of several sites at once: the array form gives all sites, a machine its own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from veilgrid.admm._neighbour_local import Answer, Junctions, Targets
from veilgrid.admm._neighbour_site import (
    Infeasible,
    LimitedProgram,
    LocalProgram,
    Scale,
    choice_of,
    with_exchange,
)
from veilgrid.errors import invariant
from veilgrid.grid.network import Floats, Tree
from veilgrid.grid.site import Site

__all__ = ["Infeasible", "LocalProblems", "Tariff", "Terms"]

Result = TypeVar("Result")

RELEASE_TOLERANCE = 1e-6
"""A site that comes this far away from its limits, in the day's units, drops its full program."""


class Tariff(NamedTuple):
    """Substation's tariff, (interval,), currency per per-unit of power held for one interval."""

    buy: Floats
    sell: Floats


class Terms(NamedTuple):
    """What sites' local problems are given besides their own data, all of it public.

    ``demand_penalty`` is (site,), ``charging`` (site,) reactive injection of line charging.
    """

    tree: Tree
    junctions: Junctions
    demand_penalty: Floats
    charging: Floats
    tariff: Tariff
    scale: Scale
    tolerance: float


class LocalProblems:
    """Local problems of the given sites; ``junctions.bus`` of the terms names their buses."""

    def __init__(
        self, sites: list[Site], terms: Terms, pool: ThreadPoolExecutor | None = None
    ) -> None:
        invariant(len(sites) == len(terms.junctions.bus), "one junction for each site")
        self._terms, self._pool = terms, pool
        self._choices = [
            choice_of(site, float(charging))
            for site, charging in zip(sites, terms.charging, strict=True)
        ]
        self._fixed = [np.clip(0.0, site.lower, site.upper) for site in sites]
        self._demand = np.stack(
            [
                choice.load - np.stack([choice.inject_p @ x, choice.inject_q @ x])
                for choice, x in zip(self._choices, self._fixed, strict=True)
            ]
        )
        self._mixed = _plus_identity(terms.junctions.stiffness, terms.demand_penalty)
        self._root = [k for k, bus in enumerate(terms.junctions.bus) if bus == terms.tree.root]
        self._limited: dict[int, LimitedProgram] = {}
        self._held: set[int] = set()
        self._programs = {k: self._program(k) for k, site in enumerate(sites) if site.is_flexible}

    def _program(self, k: int) -> LocalProgram:
        terms, choice = self._terms, self._choices[k]
        if k not in self._root:
            return LocalProgram(choice, self._mixed[k], terms.scale, terms.tolerance)
        stiffness = np.zeros((2, 2))
        stiffness[0, 0] = 1.0 / terms.junctions.slack[k, 0]
        widened = with_exchange(choice, *terms.tariff)
        return LocalProgram(widened, stiffness, terms.scale, terms.tolerance)

    @property
    def has_choice(self) -> list[int]:
        """Positions of the sites with a choice."""
        return list(self._programs)

    def solve(self, targets: Targets, wished: Floats) -> tuple[list[Floats], Answer]:
        """Solve all local problems.

        Parameters
        ----------
        targets
            Of the copies.
        wished : (site, flow=2, interval)
            Of the sites' own net demands.
        """
        terms, junctions = self._terms, self._terms.junctions
        setpoints, demand = list(self._fixed), self._demand.copy()
        wish = junctions.wish(targets) - targets.outflow
        free = [k for k in self._programs if k not in self._held and k not in self._root]

        def choose(k: int) -> Floats:
            pull = junctions.stiffness[k] @ wish[k] + terms.demand_penalty[k] * wished[k]
            return self._programs[k].solve(np.linalg.solve(self._mixed[k], pull))

        for k, x in zip(free, self._each(choose, free), strict=True):
            setpoints[k], demand[k] = x, self._programs[k].demand(x)
        answer = junctions.answer(targets, demand)
        broken = (junctions.excess(answer) > 0.0).any(axis=1)
        for k in np.flatnonzero(broken).tolist():
            if k in self._programs:
                self._held.add(int(k))
            elif k not in self._root:
                _replace(answer, int(k), junctions.one(int(k)).held(*_one(targets, demand, int(k))))
        held = sorted(self._held - set(self._root))

        def hold(k: int) -> tuple[Floats, Answer]:
            return self._limited_program(k).solve(_one(targets, demand, k)[0], wished[k])

        for k, (x, own) in zip(held, self._each(hold, held), strict=True):
            setpoints[k] = x
            _replace(answer, k, own)
            if self._is_clear(junctions.one(k), own):
                self._held.discard(k)
        for k in self._root:
            setpoints[k] = self._exchange(k, targets, answer)
        return setpoints, answer

    def _each(self, solve: Callable[[int], Result], chosen: list[int]) -> list[Result]:
        """Solve for each site, on all cores if there is a pool; Clarabel frees the interpreter."""
        if self._pool is None or len(chosen) < 2:
            return [solve(k) for k in chosen]
        quick = {k for k in chosen if self._programs[k].is_closed_form and k not in self._held}
        slow = [k for k in chosen if k not in quick]
        found = dict(zip(slow, self._pool.map(solve, slow), strict=True))
        return [solve(k) if k in quick else found[k] for k in chosen]

    def _limited_program(self, k: int) -> LimitedProgram:
        if k not in self._limited:
            terms = self._terms
            self._limited[k] = LimitedProgram(
                self._choices[k],
                terms.junctions.one(k),
                float(terms.demand_penalty[k]),
                terms.tree.slack_voltage_pu**2,
                terms.scale,
                terms.tolerance,
            )
        return self._limited[k]

    def _is_clear(self, junction: Junctions, answer: Answer) -> bool:
        unit = min(self._terms.scale.power, self._terms.scale.drop)
        return bool((junction.excess(answer) < -RELEASE_TOLERANCE * unit).all())

    def _exchange(self, k: int, targets: Targets, answer: Answer) -> Floats:
        """Let the substation trade: fill in its answer and return its site's set-points."""
        joint = 1.0 / self._terms.junctions.slack[k, 0]
        tariff, outflow = self._terms.tariff, targets.outflow[k]
        setpoints = self._fixed[k]
        demand = self._demand[k]
        if k in self._programs:
            found = self._programs[k].solve(-outflow)
            traded = 2 * len(tariff.buy)
            setpoints, trade = found[:-traded], found[-traded:]
            choice = self._choices[k]
            demand = choice.load - np.stack(
                [choice.inject_p @ setpoints, choice.inject_q @ setpoints]
            )
            total = demand[0] + outflow[0]
            exchange = trade[: len(tariff.buy)] - trade[len(tariff.buy) :]
        else:
            total = demand[0] + outflow[0]
            least, most = total - tariff.buy / joint, total - tariff.sell / joint
            exchange = np.where(least > 0.0, least, np.where(most < 0.0, most, 0.0))
        answer.own[k] = 0.0
        answer.demand[k] = demand
        answer.voltage[k] = self._terms.tree.slack_voltage_pu**2
        answer.price[k] = np.stack([joint * (total - exchange), np.zeros(len(total))])
        return np.asarray(setpoints, dtype=np.float64)


def _plus_identity(matrix: Floats, weight: Floats) -> Floats:
    return np.asarray(matrix + weight[:, np.newaxis, np.newaxis] * np.eye(2))


def _one(targets: Targets, demand: Floats, k: int) -> tuple[Targets, Floats]:
    part = slice(k, k + 1)
    return Targets(*(field[part] for field in targets)), demand[part]


def _replace(answer: Answer, k: int, own: Answer) -> None:
    for mine, new in zip(answer, own, strict=True):
        mine[k] = new[0]
