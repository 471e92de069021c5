"""The edge devices of a process of sites: bid, mask, announce, recover [day 4.1]."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from veilgrid.admm.masked_site import site_form
from veilgrid.grid.network import Floats
from veilgrid.grid.site import Site
from veilgrid.ledger.operation import Announce, Bid
from veilgrid.machine import (
    START,
    Compute,
    Computed,
    Decide,
    Effect,
    Event,
    NodeId,
    Persist,
    Received,
    Send,
    TimerFired,
)
from veilgrid.qp.mask import MaskedProblem, MaskOptions, linear_digest
from veilgrid.roles.ledger_message import (
    NEAR,
    Book,
    Closed,
    Costs,
    Declared,
    FetchBook,
    FetchCosts,
    FetchDeclared,
    FetchProblem,
    FetchSolved,
    Keyed,
    Offered,
    ProblemData,
    Solved,
    floats_of,
    octets_of,
)
from veilgrid.roles.ledger_seat import AGAIN, Agreement, Seat, bus_of, client_of, send_all
from veilgrid.roles.ledger_worker import solution_of
from veilgrid.roles.masked_edge import EdgeDevice, Offer, agrees
from veilgrid.secret import Randomness
from veilgrid.signature import Signs


class Stretched:
    """Octets that follow from one seed: as hard to predict as the seed."""

    is_deterministic = False

    def __init__(self, seed: bytes) -> None:
        self._seed, self._count = seed, 0

    def octets(self, count: int) -> bytes:
        """Return the next octets."""
        self._count += 1
        head = b"veilgrid mask 1" + self._seed + self._count.to_bytes(8, "big")
        return hashlib.shake_256(head).digest(count)


def edge_kernel(
    site: Site, penalty_p: float, penalty_q: float, seed: bytes
) -> tuple[EdgeDevice, Floats]:
    """Mask a site's problem; return its edge device and c' without penalty of the devices."""
    form = site_form(site, penalty_p, penalty_q)
    edge = EdgeDevice(form, MaskOptions(), Stretched(seed))
    return edge, edge.key.linear(form.problem.linear, form.cheapest)


def is_bid_sound(site: Site) -> bool:
    """Whether an edge device passes its owner's bid on: finite, ordered, and possible alone.

    What devices do uncontrolled must lie within the bounds that the bid names.
    """
    numbers = (site.quadratic, site.linear, site.load_p, site.load_q, site.uncontrolled)
    if not all(bool(np.isfinite(part).all()) for part in numbers):
        return False
    is_ordered = bool((site.lower <= site.upper).all()) and bool(
        (site.row_lower <= site.row_upper).all()
    )
    is_within = bool(
        ((site.uncontrolled >= site.lower - 1e-9) & (site.uncontrolled <= site.upper + 1e-9)).all()
    )
    return is_ordered and is_within and bool((site.quadratic >= 0.0).all())


@dataclass(slots=True)
class _Device:
    """One edge device: bid, mask, last solutions."""

    site: Site
    cost_alone: float
    edge: EdgeDevice | None = None
    cheapest_linear: Floats | None = None
    declared: Declared | None = None
    announced: dict[int, bytes] = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)
    solved: dict[int, Solved] = field(default_factory=dict)
    settled: tuple[int, bytes] | None = None
    recovered: tuple[int, bytes] | None = None
    setpoints: Floats | None = None


class SiteGroup:
    """Edge devices of several sites in one process.

    Parameters
    ----------
    sites, costs_alone
        By bus name: each owner's bid, and what the site would pay alone, currency.
    penalties
        By bus name: of active and reactive demand, from the public register.
    """

    def __init__(
        self,
        me: NodeId,
        agreement: Agreement,
        signer: Signs,
        sites: Mapping[str, Site],
        costs_alone: Mapping[str, float],
        penalties: Mapping[str, tuple[float, float]],
        randomness: Randomness,
        records: Sequence[Any] = (),
    ) -> None:
        self.me, self.agreement = me, agreement
        self.devices = {
            client_of(bus): _Device(site, costs_alone[bus]) for bus, site in sites.items()
        }
        self.seat = Seat(me, agreement, self.devices, signer, records)
        self._penalties = penalties
        self._seeds = {r.site: r.seed for r in records if isinstance(r, Keyed)}
        self._fresh: list[Effect] = []
        for name in self.devices:
            if bus_of(name) in penalties and name not in self._seeds:
                self._seeds[name] = randomness.octets(32)
                self._fresh.append(Persist(Keyed(name, self._seeds[name])))
        self._bid: set[str] = set()
        self._told_costs = False
        self._is_closed = False

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event."""
        effects = self._take(event)
        return [*effects, *self._act()]

    def _take(self, event: Event) -> list[Effect]:
        operator = NodeId(self.agreement.operator)
        match event:
            case TimerFired(name) if name == START:
                return self._start()
            case TimerFired(name) if name == AGAIN:
                return [*self.seat.again(), *self._fetch()]
            case Computed(("edge", name), (edge, linear)):
                self._declare(str(name), edge, linear)
            case Received(sender, Offered() as offered) if sender == operator:
                return self._on_offer(offered)
            case Received(sender, FetchProblem(name, digest)):
                data = self._problem(name, digest)
                return [Send(sender, data)] if data else []
            case Received(_, Solved() as solved):
                self._on_solved(solved)
            case Received(sender, FetchBook(name)):
                device = self.devices.get(name)
                return [Send(sender, device.declared.book)] if device and device.declared else []
            case Received(sender, FetchDeclared(name)) if sender == operator:
                device = self.devices.get(name)
                return [Send(sender, device.declared)] if device and device.declared else []
            case Received(sender, FetchCosts(name)) if sender == operator:
                return self._costs(name)
            case Received() | TimerFired():
                return self.seat.handle(event) or []
        return []

    # -- bids ------------------------------------------------------------------------------------

    def _start(self) -> list[Effect]:
        effects, self._fresh = [*self._fresh, *self.seat.start()], []
        for name, device in self.devices.items():
            if not is_bid_sound(device.site):
                continue
            if name in self._seeds:
                arguments = (device.site, *self._penalties[bus_of(name)], self._seeds[name])
                effects.append(Compute(("edge", name), edge_kernel, arguments))
            else:
                demand = device.site.uncontrolled
                device.declared = Declared(
                    Book(name),
                    octets_of(device.site.demand_p(demand)),
                    octets_of(device.site.demand_q(demand)),
                )
        return effects

    def _declare(self, name: str, edge: EdgeDevice, linear: Floats) -> None:
        device = self.devices[name]
        device.edge, device.cheapest_linear = edge, linear
        rows = edge.rows()
        book = Book(
            name,
            edge.near.digest,
            edge.cheapest.digest,
            linear_digest(edge.near.digest, edge.near.linear),
            rows.digest,
        )
        still = device.site.uncontrolled
        device.declared = Declared(
            book,
            octets_of(device.site.demand_p(still)),
            octets_of(device.site.demand_q(still)),
            octets_of(rows.matrix),
            octets_of(rows.offset),
            octets_of(edge.near.linear),
            octets_of(linear),
        )

    def _problem(self, name: str, digest: bytes) -> ProblemData | None:
        device = self.devices.get(name)
        edge = device.edge if device else None
        if edge is None:
            return None
        held: list[MaskedProblem] = [p for p in (edge.near, edge.cheapest) if p.digest == digest]
        if not held:
            return None
        rows, width = held[0].matrix.shape
        return ProblemData(digest, rows, width, held[0].octets)

    # -- steps -----------------------------------------------------------------------------------

    def _on_offer(self, offered: Offered) -> list[Effect]:
        """Announce the c' of an offer, if the edge device comes to the same one."""
        device, view = self.devices.get(offered.site), self.seat.view
        if device is None or device.edge is None or offered.step < view.iteration:
            return []
        due = self._due(device, offered)
        said = None if due is None else floats_of(offered.linear, len(due))
        if due is None or said is None:
            return []
        if not agrees(said, due):
            return []
        edge = device.edge
        base = edge.near if offered.kind == NEAR else edge.cheapest
        announced = self._announced(offered, linear_digest(base.digest, said))
        if announced is None:
            return []
        digest = announced
        device.kinds = {s: k for s, k in device.kinds.items() if s > offered.step - 8}
        if device.announced.get(offered.step) == digest:
            return []
        device.announced = {offered.step: digest}
        device.kinds[offered.step] = offered.kind
        operation = Announce(self.agreement.day, offered.step, digest)
        return self.seat.desk.submit(offered.site, operation)

    def _announced(self, offered: Offered, digest: bytes) -> bytes | None:  # noqa: ARG002
        """Return what it announces; a dishonest or silent site overrides this."""
        return digest

    def _due(self, device: _Device, offered: Offered) -> Floats | None:
        edge, count = device.edge, device.site.interval_count
        parts = (offered.price_p, offered.price_q, offered.target_p, offered.target_q)
        own = [floats_of(part, count) for part in parts]
        if edge is None or any(part is None for part in own):
            return None
        price_p, price_q, target_p, target_q = own
        if offered.kind == NEAR:
            return edge.near_task(Offer(price_p, price_q, target_p, target_q)).linear  # type: ignore[arg-type]
        return edge.cheapest_task(price_p, price_q).linear  # type: ignore[arg-type]

    def _on_solved(self, solved: Solved) -> None:
        device = self.devices.get(solved.site)
        if device is not None and len(device.solved) < 64:
            device.solved[solved.step] = solved
            oldest = self.seat.view.iteration - 8
            device.solved = {s: held for s, held in device.solved.items() if s >= oldest}

    def _act(self) -> list[Effect]:
        view, effects = self.seat.view, list[Effect]()
        if view.is_open and view.is_bidding:
            for name, device in self.devices.items():
                is_let_in = not self.agreement.is_attested or name in view.admitted
                if device.declared is not None and is_let_in and name not in self._bid:
                    self._bid.add(name)
                    bid = Bid(self.agreement.day, device.declared.book.digest)
                    effects += self.seat.desk.submit(name, bid)
                    effects.append(Send(NodeId(self.agreement.operator), device.declared))
                    effects += send_all(self.agreement.validators, device.declared.book)
        for name, task in view.tasks.items():
            device_ = self.devices.get(name)
            if device_ is not None and task.accepted:
                if device_.kinds.get(view.iteration) == NEAR:
                    device_.settled = (view.iteration, task.solution)
                self._recover(name)
        if view.last is not None:  # Settled one step before: a restart has forgotten its kind.
            step = view.last.iteration - 1
            for name, device_ in self.devices.items():
                if digest := view.solution(step, name):
                    device_.settled = (step, digest)
                    self._recover(name)
        if view.settlement is not None and not self._told_costs:
            self._told_costs = True
            for name in self.devices:
                effects += self._costs(name)
        if view.is_closed and not self._is_closed:
            self._is_closed = True
            effects.append(Decide(Closed(view.iteration, self.agreement.day.encode())))
        return effects

    def _recover(self, name: str) -> None:
        """Recover the set-points of the newest accepted solution near a target."""
        device = self.devices[name]
        if device.edge is None or device.settled in (None, device.recovered):
            return
        step, digest = device.settled or (0, b"")
        solved = device.solved.get(step)
        if solved is None or solved.claim.solution != digest:
            return
        solution = solution_of(solved)
        if solution is not None and hashed(solved) == digest:
            device.setpoints = device.edge.setpoints(solution)
            device.recovered = device.settled

    def _fetch(self) -> list[Effect]:
        """Ask for accepted solutions that did not arrive."""
        return [
            *(
                effect
                for name, device in self.devices.items()
                if device.settled is not None and device.settled != device.recovered
                for effect in send_all(
                    [*self.agreement.validators, *self.agreement.workers],
                    FetchSolved(device.settled[0], name),
                )
            ),
        ]

    def _costs(self, name: str) -> list[Effect]:
        """Say what the devices cost in the plan; excluded sites do what they do uncontrolled."""
        device, view = self.devices.get(name), self.seat.view
        if device is None or view.settlement is None:
            return []
        self._recover(name)
        is_still = name in view.excluded or name not in self._seeds
        setpoints = device.site.uncontrolled if is_still else device.setpoints
        if setpoints is None or (not is_still and device.settled != device.recovered):
            return []
        costs = Costs(name, device.site.cost(setpoints), device.cost_alone)
        return [Send(NodeId(self.agreement.operator), costs)]


def hashed(solved: Solved) -> bytes:
    """Return the digest of a solution as workers claim it."""
    octets = solved.variables + solved.multipliers
    return hashlib.sha256(b"masked solution 1 " + octets).digest()
