"""Sites whose answers to prices and targets are solved masked, by third parties [masking 3, 5].

The sites' half of a day, whoever coordinates: bids are masked and registered, each offer becomes
one c' a site that is checked by whoever holds the recovery rows, workers solve, validators judge,
and net demands and set-points are recovered.
"""

from dataclasses import replace
from typing import NamedTuple

import msgspec
import numpy as np

from veilgrid.admm.exchange import ExchangeState
from veilgrid.admm.masked_site import site_form
from veilgrid.errors import invariant
from veilgrid.grid.day import Day
from veilgrid.grid.network import Floats
from veilgrid.qp.mask import MaskedProblem, MaskOptions
from veilgrid.roles.masked_edge import EdgeDevice, Offer, Public, agrees
from veilgrid.roles.masked_record import Misconduct, Record
from veilgrid.roles.masked_task import with_linear
from veilgrid.roles.masked_workshop import Workshop
from veilgrid.secret import Randomness


class Answered(NamedTuple):
    """Accepted answers of the members, in their order; arrays (member, interval).

    ``solutions`` are what edge devices recover, all variables.
    """

    demand_p: Floats
    demand_q: Floats
    setpoints: tuple[Floats, ...]
    records: tuple[Record, ...]
    problems: tuple[MaskedProblem, ...]
    solutions: tuple[Floats, ...]


class MaskedSites:
    """The flexible sites of a day with their edge devices.

    Parameters
    ----------
    day
        Whose bids are masked.
    penalty_p, penalty_q : (flexible site,)
        On net demands, at scale one.
    options
        Of the masks.
    workshop
        Who solves and judges.
    randomness
        Of the keys.
    misconduct
        Which edge devices, or which coordinator, cheat.
    """

    def __init__(
        self,
        day: Day,
        penalty_p: Floats,
        penalty_q: Floats,
        options: MaskOptions,
        workshop: Workshop,
        randomness: Randomness,
        misconduct: Misconduct,
    ) -> None:
        self._sites = list(day.sites)
        self.options, self.workshop, self._misconduct = options, workshop, misconduct
        self.members = list(day.flexible)
        self.edges: dict[int, EdgeDevice] = {}
        self.public: dict[int, Public] = {}
        self.named: list[str] = []
        self.scale = 1.0
        for place, index in enumerate(self.members):
            form = site_form(day.sites[index], float(penalty_p[place]), float(penalty_q[place]))
            self.edges[index] = EdgeDevice(form, options, randomness)
            self._register(index)
        names = {index: edge.name for index, edge in self.edges.items()}
        workshop.assign(names, {index: edge.near for index, edge in self.edges.items()})

    def _register(self, index: int) -> None:
        traffic, edge = self.workshop.traffic, self.edges[index]
        self.public[index] = Public.of(edge)
        traffic.order(len(msgspec.msgpack.encode(edge.registration())))
        both = len(edge.near.octets) + 8 * edge.cheapest.quadratic.size
        traffic.send(both)  # to the store
        traffic.send(both, self.workshop.readers)
        rows = self.public[index].rows
        traffic.send(8 * (rows.matrix.size + rows.offset.size))

    def exclude(self, index: int) -> None:
        """Go on without a site."""
        self.workshop.exclude(self.edges[index].name)
        self.members.remove(index)
        del self.edges[index], self.public[index]

    def answers(self, kind: str, offer: ExchangeState, iteration: int) -> Answered:
        """Get accepted answers to an offer (member, interval), recovered.

        ``kind`` is ``near`` a target, or the ``cheapest`` to prices alone.
        """
        problems = self.problems(kind, self._favoured(offer))
        records = self.workshop.settle(kind, iteration, problems)
        demand_p, demand_q = np.zeros_like(offer.price_p), np.zeros_like(offer.price_q)
        setpoints, solutions = [], []
        for place, index in enumerate(self.members):
            edge, solution = self.edges[index], records[index].submission.solution
            active, reactive = edge.form.demands(self.public[index].rows.recover(solution.values))
            own = edge.setpoints(solution)
            demand_p[place] = active
            demand_q[place] = self._sites[index].demand_q(own) if reactive is None else reactive
            setpoints.append(own)
            solutions.append(edge.key.recover(solution.values))
        return Answered(
            demand_p,
            demand_q,
            tuple(setpoints),
            tuple(records[index] for index in self.members),
            tuple(problems[index] for index in self.members),
            tuple(solutions),
        )

    def _favoured(self, offer: ExchangeState) -> ExchangeState:
        """Return what a coordinator offers: the same, unless it favours somebody."""
        premium = np.array([self._misconduct.favouring.get(i, 0.0) for i in self.members])
        return replace(offer, price_p=offer.price_p + premium[:, np.newaxis])

    def problems(self, kind: str, offer: ExchangeState) -> dict[int, MaskedProblem]:
        """Let edge devices mask an offer; a c' that does not follow is replaced [masking 5]."""
        made = {}
        for place, index in enumerate(self.members):
            edge, public = self.edges[index], self.public[index]
            own = Offer(
                offer.price_p[place],
                offer.price_q[place],
                offer.target_p[place],
                offer.target_q[place],
                self.scale,
            )
            falsify = self._misconduct.falsifying.get(index)
            said = own if falsify is None else falsify(edge, own)
            if kind == "near":
                problem, due = edge.near_task(said), public.near_linear(own)
            else:
                problem = edge.cheapest_task(said.price_p, said.price_q)
                due = public.cheapest_linear(own)
            if not agrees(problem.linear, due):
                self.named.append(edge.name)
                problem = with_linear(problem, due)
            made[index] = problem
        return made

    def rescale(self, scale: float) -> None:
        """Register new H' where penalties were changed; G' and h' stay, and so do the keys."""
        if scale == self.scale:
            return
        self.scale = scale
        traffic = self.workshop.traffic
        for index, edge in self.edges.items():
            found = edge.near_at(scale)
            is_due = agrees(found.quadratic, self.public[index].quadratic(scale))
            invariant(is_due, "a rescaled H' follows from the registered one")
            size = 8 * found.quadratic.size
            traffic.send(size)  # to the store
            traffic.send(size, self.workshop.readers)
            traffic.order(len(found.digest))

    def remask(self) -> None:
        """Draw fresh keys and register again; workers can keep no factor."""
        for index, edge in self.edges.items():
            for problem in edge.problems():
                self.workshop.forget(problem.digest)
            edge.remask()
            self._register(index)
