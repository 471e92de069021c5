"""The sites of a sealed day: bids, wishes, answers and proofs from own secrets [sealed 4.1].

A group holds the edge devices of several sites that run in one process. Each site signs and
shares its own messages; the group only saves solving small problems one by one.
"""

import copy
import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from veilgrid.admm.reference import stack, unstack
from veilgrid.admm.site_step import SiteAnswer, SiteSteps
from veilgrid.errors import invariant
from veilgrid.grid.network import Floats
from veilgrid.grid.site import Site
from veilgrid.machine import (
    START,
    Compute,
    Computed,
    Decide,
    Effect,
    Event,
    NodeId,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from veilgrid.mpc.client import read_present, submit
from veilgrid.mpc.message import Output
from veilgrid.qp.problem import QuadraticProgram
from veilgrid.qp.solve import solve
from veilgrid.roles.sealed.bid import Shape, bid_of, proof_of
from veilgrid.roles.sealed.certificate import COST_BITS
from veilgrid.roles.sealed.challenge import moved_price_steps, plan_steps
from veilgrid.roles.sealed.course import (
    ANSWER,
    CERTIFICATE,
    CHALLENGE,
    DONE,
    PULL,
    REGRET,
    SURPLUS,
    WISH,
    Course,
)
from veilgrid.roles.sealed.message import Again, Agreement, Notice, Parcel, Stopped
from veilgrid.roles.sealed.mixing import MixingMemory
from veilgrid.roles.sealed.program import AMOUNT_BITS, BID, PRODUCT_BITS, client_of
from veilgrid.roles.sealed.register import FACTOR_BITS, POWER_BITS, Integers, power_steps
from veilgrid.secret import Randomness, Secret
from veilgrid.signature import Signs

_ANSWERED: Final = "answered"
_CHEAPEST: Final = "cheapest"
_PARCELS: Final = "parcels"

PARCELS_PATIENCE_NS: Final = 3_000_000_000
"""How long sites wait for all parties' parcels; shorter than the parties wait for the sites."""


@dataclass(frozen=True, slots=True)
class SiteKeys:
    """One site's own keys: to sign with, and to open what is for it alone."""

    signer: Signs
    box_key: Secret[bytes]


class Cheapest(NamedTuple):
    """Cheapest answers to prices alone, with the multipliers that prove it."""

    setpoints: list[Floats]
    row_multipliers: list[Floats]


def cheapest(sites: list[Site], price_p: Floats, price_q: Floats) -> Cheapest:
    """Solve sites at prices (site, interval) alone; multipliers push up where positive."""
    problem = stack(sites)
    pull = [
        site.inject_p.T @ price_p[place] + site.inject_q.T @ price_q[place]
        for place, site in enumerate(sites)
    ]
    solution = solve(
        QuadraticProgram(
            quadratic=problem.quadratic,
            linear=problem.linear - np.concatenate(pull),
            matrix=problem.matrix,
            lower=problem.lower,
            upper=problem.upper,
        )
    )
    ends = np.cumsum([site.matrix.shape[0] for site in sites])
    multipliers = np.split(-solution.multipliers[: ends[-1]], ends[:-1])
    setpoints = [
        np.clip(x, site.lower, site.upper)
        for site, x in zip(sites, unstack(sites, solution.x), strict=True)
    ]
    return Cheapest(setpoints, multipliers)


def free_of_cost(site: Site) -> Site:
    """Return the same site with devices that cost nothing."""
    nothing = np.zeros_like(site.linear)
    return replace(site, quadratic=nothing, linear=nothing)


def near(
    steps: SiteSteps, price_p: Floats, price_q: Floats, target_p: Floats, target_q: Floats
) -> SiteAnswer:
    """Answer prices near targets; arrays are (site, interval)."""
    return steps.answer(price_p, price_q, target_p, target_q)


class SiteOutcome(msgspec.Struct, frozen=True, tag=True):
    """How a day ended for the sites of a group; arrays as octets of float64.

    Attributes
    ----------
    setpoints : by flexible bus, (variable,), per-unit
    payments, own_costs : by bus, currency
    price_p, price_q : by flexible bus, (interval,), currency per per-unit and interval
    public
        What opened to all.
    """

    setpoints: dict[int, bytes]
    payments: dict[int, float]
    own_costs: dict[int, float]
    price_p: dict[int, bytes]
    price_q: dict[int, bytes]
    public: dict[str, Any]


def _octets(own: list[int], arrays: Floats | list[Floats]) -> dict[int, bytes]:
    return {
        bus: np.ascontiguousarray(one, dtype="<f8").tobytes()
        for bus, one in zip(own, arrays, strict=True)
    }


class SiteGroup:
    """Sites of one process, over all tasks of a day.

    Parameters
    ----------
    me
        Name of the process.
    agreement
        Who takes part.
    course
        Where the day starts; a copy for this group alone.
    sites : by bus
        The sites' own problems.
    costs_alone : by bus, currency
        What each would pay alone.
    keys : by bus
        Each site's own keys.
    executor
        Where sites are solved side by side.
    """

    def __init__(
        self,
        me: NodeId,
        agreement: Agreement,
        course: Course,
        sites: Mapping[int, Site],
        costs_alone: Mapping[int, float],
        *,
        keys: Mapping[int, SiteKeys],
        randomness: Randomness,
        executor: ThreadPoolExecutor,
    ) -> None:
        self.me, self.agreement, self.course = me, agreement, course
        self._sites, self._alone, self._keys = dict(sites), dict(costs_alone), dict(keys)
        self._shapes = {bus: Shape.of(site) for bus, site in sites.items()}
        self._randomness, self._executor = randomness, executor
        self._notices: dict[int, dict[NodeId, bytes]] = {}
        self._parcels: dict[int, dict[int, dict[int, Output]]] = {}
        self._opened: dict[int, tuple[dict[str, Any], str]] = {}
        self._payments: dict[int, float] = {}
        self._own_costs: dict[int, float] = {}
        self._cheapest: Cheapest | None = None
        self._is_over = self._is_late = False
        self._timer = ""
        self._stopped: dict[NodeId, Stopped] = {}
        self._opening, self._agains = copy.deepcopy(course), dict[NodeId, Again]()
        self._is_warm = False
        self._arrange()

    def _arrange(self) -> None:
        """Prepare for the sites that still take part."""
        register = self.course.register
        self._own = [bus for bus in self.course.members if bus in self._sites]
        give_p, give_q = register.give_p[self._own], register.give_q[self._own]
        self._penalty_p = np.divide(1.0, give_p)
        self._penalty_q = np.divide(1.0, give_q, out=np.zeros_like(give_q), where=give_q > 0.0)
        self._weight = np.sqrt(np.stack([self._penalty_p, self._penalty_q]))[:, :, np.newaxis]
        self._weight = self._weight / np.sqrt(register.unit)
        members = [self._sites[bus] for bus in self._own]
        self._steps = SiteSteps(members, self._penalty_p, self._penalty_q, self._executor)
        nothing = np.zeros(len(members))
        self._alone_steps = SiteSteps(members, nothing, nothing, self._executor)
        self._memory = MixingMemory(self.course.settings.memory)
        shape = (len(self._own), register.interval_count)
        self._price_p, self._price_q = np.tile(register.buy, (len(self._own), 1)), np.zeros(shape)
        self._pull_p, self._pull_q = np.zeros(shape), np.zeros(shape)
        self._wish = self._former_wish = np.zeros((2, *shape))
        self._former_price = np.zeros((2, *shape))
        self._demand = np.zeros((2, *shape))
        self._step = np.zeros((2, *shape))
        self._setpoints: list[Floats] = []
        self._cheapest = None
        self._is_stepped = False

    # -- events ---------------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event. All branching on event kind happens here."""
        if self._is_over:
            return []
        match event:
            case TimerFired(name) if name == START:
                return self._bid()
            case Computed((_, number), value) if number == self._job:
                return self._on_computed(value)
            case Received(sender, Notice() as notice) if sender in self.agreement.parties:
                return self._on_notice(sender, notice)
            case Received(sender, Parcel() as parcel) if sender in self.agreement.parties:
                return self._on_parcel(sender, parcel)
            case TimerFired(name) if name == f"{_PARCELS} {self.course.task.number}":
                self._is_late = True
                return self._go_on()
            case Received(sender, Stopped() as stopped) if sender in self.agreement.parties:
                return [] if stopped.is_lost else self._on_word(sender, stopped)
            case Received(sender, Again() as again) if sender in self.agreement.parties:
                return self._on_again(sender, again)
            case _:
                return []

    def _bid(self) -> list[Effect]:
        unit = self.course.register.unit
        bids = {bus: bid_of(site, unit, self._alone[bus]) for bus, site in self._sites.items()}
        return self._submit(bids, BID)

    def _submit(self, vectors: Mapping[int, Integers | list[int]], name: str) -> list[Effect]:
        """Share one vector a site with all parties, for the present task."""
        agreement, session = self.agreement, self.agreement.session(self.course.task.number)
        effects: list[Effect] = []
        for bus, vector in vectors.items():
            submission = submit(
                session,
                client_of(bus, name),
                [int(value) for value in vector],
                degree=agreement.degree,
                box_keys=agreement.box_keys,
                signer=self._keys[bus].signer,
                randomness=self._randomness,
            )
            effects += [Send(party, submission) for party in agreement.parties]
        return effects

    # -- hearing --------------------------------------------------------------------------------

    def _on_notice(self, sender: NodeId, notice: Notice) -> list[Effect]:
        number = self.course.task.number
        if not self._is_of_now(notice) or not number <= notice.task <= number + 1:
            return []
        self._notices.setdefault(notice.task, {})[sender] = notice.result
        return self._go_on()

    def _on_parcel(self, sender: NodeId, parcel: Parcel) -> list[Effect]:
        number = self.course.task.number
        if not self._is_of_now(parcel) or not number <= parcel.task <= number + 1:
            return []
        by_bus = self._parcels.setdefault(parcel.task, {})
        place = self.agreement.parties.index(sender)
        by_bus.setdefault(parcel.bus, {})[place] = parcel.output
        return self._go_on()

    def _is_of_now(self, said: Notice | Parcel) -> bool:
        return (said.day, said.attempt) == (self.agreement.day, self.agreement.attempt)

    @property
    def _job(self) -> tuple[int, int]:
        return self.agreement.attempt, self.course.task.number

    def _on_again(self, sender: NodeId, again: Again) -> list[Effect]:
        """Begin again once more parties say so than may be corrupt, from the last wishes."""
        agreement = self.agreement
        if (again.day, again.attempt) != (agreement.day, agreement.attempt + 1):
            return []
        self._agains[sender] = again
        if list(self._agains.values()).count(again) <= agreement.degree:
            return []
        self._agains.clear()
        self._notices.clear()
        self._parcels.clear()
        self.agreement = replace(agreement, attempt=again.attempt)
        is_warm = self.course.task.iteration > 1
        kept = (self._own, self._wish, self._price_p, self._price_q)
        if again.is_from_bids:
            self.course = copy.deepcopy(self._opening)
            self._arrange()
            return self._bid()
        self.course.begin_again()
        self._arrange()
        if is_warm and kept[0] == self._own:
            self._is_warm, (_, self._wish, self._price_p, self._price_q) = True, kept
        return self._act()

    def _on_word(self, sender: NodeId, stopped: Stopped) -> list[Effect]:
        """Stop once more parties say so than may be corrupt, and blame whom that many blame."""
        if stopped.day != self.agreement.day:
            return []
        self._stopped[sender] = stopped
        said, degree = list(self._stopped.values()), self.agreement.degree
        if len(said) <= degree:
            return []
        blamed = [name for one in said for name in set(one.culprits)]
        culprits = sorted({name for name in blamed if blamed.count(name) > degree})
        reason = next((one.reason for one in said if culprits == one.culprits), stopped.reason)
        return self._on_stopped(msgspec.structs.replace(stopped, reason=reason, culprits=culprits))

    def _on_stopped(self, stopped: Stopped) -> list[Effect]:
        self._is_over = True
        return [Decide(stopped)]

    def _go_on(self) -> list[Effect]:
        """Do the next task once enough parties agree on what the last one opened."""
        task = self.course.task
        said = list(self._notices.get(task.number, {}).values())
        agreed = [one for one in set(said) if said.count(one) > self.agreement.degree]
        if not agreed:
            return []
        if not self._has_parcels(agreed[0]):
            name = f"{_PARCELS} {task.number}"
            was_set, self._timer = self._timer == name, name
            return [] if was_set else [SetTimer(name, PARCELS_PATIENCE_NS)]
        result = msgspec.msgpack.decode(agreed[0])
        if not self._read(result):
            reason = "the parties' shares of what opens to one site contradict each other"
            return self._on_stopped(Stopped(self.agreement.day, task.number, reason, []))
        self._is_late = False
        self._notices.pop(task.number, None)
        self._parcels.pop(task.number, None)
        self._opened.clear()
        was_excluded = set(self.course.excluded)
        self.course.advance(result)
        if set(self.course.excluded) != was_excluded:
            self._arrange()
        return self._act()

    def _has_parcels(self, result: bytes) -> bool:
        """Whether everything that opens to sites of this group alone has arrived."""
        expected = self._expected(msgspec.msgpack.decode(result))
        came = self._parcels.get(self.course.task.number, {})
        count = len(self.agreement.parties)
        # Who withholds parcels is one of the few that may be corrupt: the others' do.
        enough = count - self.agreement.degree if self._is_late else count
        return all(len(came.get(bus, {})) >= enough for bus in expected)

    def _expected(self, result: dict[str, Any]) -> list[int]:
        if result.get("missing"):
            return []
        if self.course.task.kind in (WISH, PULL):
            return self._own
        return list(self._sites) if self.course.task.kind == CERTIFICATE else []

    def _read(self, result: dict[str, Any]) -> bool:
        """Open what is for the sites of this group; return whether all of it could be read."""
        came = self._parcels.get(self.course.task.number, {})
        unit = self.course.register.unit
        for bus in self._expected(result):
            agreement, key = self.agreement, self._keys[bus].box_key
            values = read_present(came[bus], len(agreement.parties), agreement.degree, key)
            if values is None:
                return False
            if self.course.task.kind == CERTIFICATE:
                amounts = [value / 2.0 ** (COST_BITS + 1) * unit for value in values]
                self._payments[bus], self._own_costs[bus] = amounts
                continue
            prices = np.array(values, dtype=np.float64) * (unit / 2.0 ** (POWER_BITS + FACTOR_BITS))
            place, times = self._own.index(bus), self.course.register.interval_count
            active, reactive = self._price_p, self._price_q
            if self.course.task.kind == PULL:
                active, reactive = self._pull_p, self._pull_q
            active[place] = prices[:times]
            if len(prices) > times:
                reactive[place] = prices[times:]
        return True

    # -- acting ---------------------------------------------------------------------------------

    def _act(self) -> list[Effect]:
        """Do what the present task asks of the sites."""
        task = self.course.task
        if task.kind == DONE:
            self._is_over = True
            return [Decide(self._outcome())]
        if not self._own:
            return []
        if task.kind == WISH:
            if task.iteration > 1:
                return self._send_wish() if self._is_stepped else [self._answer()]
            if self._is_warm:
                return [self._answer()]
            nothing = np.zeros_like(self._price_p)
            own = (self._alone_steps, self._price_p, self._price_q, nothing, nothing)
            return [Compute((_ANSWERED, self._job), near, own)]
        if task.kind == ANSWER:
            if task.iteration == 1:
                return self._send_answer()
            return [self._answer()]
        if task.kind == PULL:
            return []
        if task.kind == SURPLUS:
            sites = [free_of_cost(self._sites[bus]) for bus in self._own]
            relief = (sites, self._pull_p, self._pull_q)
            return [Compute((_CHEAPEST, self._job), cheapest, relief)]
        if task.kind == CHALLENGE:
            moved = self._moved_prices()
            sites = [self._sites[bus] for bus in self._own]
            return [Compute((_CHEAPEST, self._job), cheapest, (sites, *moved))]
        if task.kind in (REGRET, CERTIFICATE) and self._cheapest is None:
            return [self._compute(_CHEAPEST)]
        return self._send_proof()

    def _answer(self) -> Compute:
        target = self._targets()
        arguments = (self._steps, self._price_p, self._price_q, target[0], target[1])
        return Compute((_ANSWERED, self._job), near, arguments)

    def _compute(self, kind: str) -> Compute:
        sites = [self._sites[bus] for bus in self._own]
        arguments = (sites, self._price_p.copy(), self._price_q.copy())
        return Compute((kind, self._job), cheapest, arguments)

    def _on_computed(self, value: SiteAnswer | Cheapest) -> list[Effect]:
        task = self.course.task
        if isinstance(value, SiteAnswer):
            self._take(value.setpoints)
            if task.iteration > 1:
                self._measure()
            if task.kind == ANSWER:
                return self._send_answer()
            if task.iteration > 1:
                return self._send_wish()
            if self._is_warm:
                self._is_warm = False
                self._measure()
                self._wish, self._is_stepped = self._wish + self._step, False
                return self._send_wish()
            price = np.stack([self._price_p, self._price_q])
            self._wish = self._demand + price * self._give()
            return self._send_wish()
        if task.kind == SURPLUS:
            return self._send_surplus(value)
        if task.kind == CHALLENGE:
            return self._send_proofs(value, *self._moved_prices())
        self._cheapest = value
        return self._send_regret() if task.kind == REGRET else self._send_proof()

    def _take(self, setpoints: list[Floats]) -> None:
        self._setpoints = setpoints
        self._cheapest = None
        pairs = [(self._sites[bus], x) for bus, x in zip(self._own, setpoints, strict=True)]
        self._demand = np.array(
            [[site.demand_p(x) for site, x in pairs], [site.demand_q(x) for site, x in pairs]]
        )

    def _give(self) -> Floats:
        register = self.course.register
        give = np.stack([register.give_p[self._own], register.give_q[self._own]])
        return np.asarray(give[:, :, np.newaxis])

    def _targets(self) -> Floats:
        return np.asarray(self._wish - self._give() * np.stack([self._price_p, self._price_q]))

    def _flat(self, values: Floats) -> Floats:
        """Return (part, site, interval) as weighted (site, element)."""
        weighted = np.swapaxes(values * self._weight, 0, 1)
        return np.ascontiguousarray(weighted.reshape(len(self._own), -1))

    def _unflat(self, values: Floats) -> Floats:
        wide = np.swapaxes(values.reshape(len(self._own), 2, -1), 0, 1)
        out = self._wish.copy()
        np.divide(wide, self._weight, out=out, where=self._weight > 0.0)
        return out

    def _measure(self) -> None:
        """Take the step from the present wishes that the answers ask for."""
        has_reactive = self._penalty_q[np.newaxis, :, np.newaxis] > 0.0
        off = self._demand - self._targets()
        is_moving = np.concatenate([np.ones_like(has_reactive), has_reactive])
        self._step = self.course.settings.relaxation * np.where(is_moving, off, 0.0)
        self._is_stepped = True

    def _products(self) -> list[list[int]]:
        """Return each site's products that the present message carries, in steps."""
        if not self.course.product_count:
            return [[] for _ in self._own]
        is_due = self.course.task.kind == ANSWER and self.course.rule.is_due
        found = self._memory.products(self._flat(self._wish), self._flat(self._step), is_due=is_due)
        return [[round(value * 2.0**PRODUCT_BITS) for value in row] for row in found.tolist()]

    def _send_wish(self) -> list[Effect]:
        squares = self._products()
        self._former_wish = self._wish
        self._former_price = np.stack([self._price_p, self._price_q])
        if self.course.task.iteration > 1:
            point, step = self._flat(self._wish), self._flat(self._step)
            self._wish = self._unflat(self._memory.next_point(point, step, self.course.mixture))
        self._is_stepped = False
        pairs = self._pairs(self._wish)
        vectors = {
            bus: [*pairs[bus].tolist(), *squares[place]] for place, bus in enumerate(self._own)
        }
        return self._submit(vectors, self._name())

    def _pairs(self, values: Floats) -> dict[int, Integers]:
        """Return one vector a bus, active then reactive, in steps."""
        steps = power_steps(values)
        return {
            bus: np.concatenate([steps[0, place], steps[1, place]])
            for place, bus in enumerate(self._own)
        }

    def _name(self) -> str:
        task = self.course.task
        return f"{task.kind} {task.number}"

    def _send_answer(self) -> list[Effect]:
        """Send demands, own cost, payment and products."""
        products = self._products()
        unit, pairs = self.course.register.unit, self._pairs(self._demand)
        vectors: dict[int, list[int]] = {}
        for place, bus in enumerate(self._own):
            own = self._sites[bus].cost(self._setpoints[place])
            paid = self._paid(place, self._demand[:, place])
            amounts = [round(value / unit * 2.0**AMOUNT_BITS) for value in (own, paid)]
            vectors[bus] = [*pairs[bus].tolist(), *amounts, *products[place]]
        return self._submit(vectors, self._name())

    def _paid(self, place: int, demand: Floats) -> float:
        return float(self._price_p[place] @ demand[0] + self._price_q[place] @ demand[1])

    def _send_regret(self) -> list[Effect]:
        """Send what each site would save by its cheapest answer to the prices alone."""
        unit, vectors = self.course.register.unit, {}
        best = self._cheapest.setpoints if self._cheapest is not None else []
        for place, (bus, x) in enumerate(zip(self._own, best, strict=True)):
            site = self._sites[bus]
            now = site.cost(self._setpoints[place]) + self._paid(place, self._demand[:, place])
            least = site.cost(x) + self._paid(place, np.stack([site.demand_p(x), site.demand_q(x)]))
            vectors[bus] = [round((now - least) / unit * 2.0**AMOUNT_BITS)]
        return self._submit(vectors, self._name())

    def _send_surplus(self, relief: Cheapest) -> list[Effect]:
        """Send the demands that relieve network rows most, and the weighted sum that is left."""
        pairs = [(self._sites[bus], x) for bus, x in zip(self._own, relief.setpoints, strict=True)]
        demand = np.array(
            [[site.demand_p(x) for site, x in pairs], [site.demand_q(x) for site, x in pairs]]
        )
        left = (self._pull_p * demand[0] + self._pull_q * demand[1]).sum(axis=1)
        steps = np.rint(left / self.course.register.unit * 2.0**AMOUNT_BITS)
        vectors = {
            bus: [*vector.tolist(), int(steps[place])]
            for place, (bus, vector) in enumerate(self._pairs(demand).items())
        }
        return self._submit(vectors, self._name())

    def _moved_prices(self) -> tuple[Floats, Floats]:
        """Return the prices at which the last answers are the cheapest: moved by the penalty."""
        course, wish = self.course, power_steps(self._former_wish)
        price = power_steps(self._former_price / course.register.unit)
        register = course.registers[course.task.iteration - 1]
        out = np.zeros((2, len(self._own), register.interval_count))
        for place, bus in enumerate(self._own):
            demand = np.array(plan_steps(self._sites[bus], self._setpoints[place]))
            steps = moved_price_steps(register, bus, price[:, place], wish[:, place], demand)
            out[:, place] = steps / 2.0**POWER_BITS * register.unit
        return out[0], out[1]

    def _send_proof(self) -> list[Effect]:
        found = self._cheapest
        invariant(found is not None, "the cheapest answers are known")
        return self._send_proofs(found, self._price_p, self._price_q)  # type: ignore[arg-type]

    def _send_proofs(self, found: Cheapest, price_p: Floats, price_q: Floats) -> list[Effect]:
        vectors = {
            bus: proof_of(
                self._sites[bus],
                self._setpoints[place],
                found.setpoints[place],
                found.row_multipliers[place],
                price_p[place],
                price_q[place],
                self.course.register.unit,
            )
            for place, bus in enumerate(self._own)
        }
        return self._submit(vectors, self._name())

    def salts(self) -> dict[int, bytes]:
        """Return each site's salt of commitments on this day, from its own key [sealed 6.5]."""
        day = self.agreement.day
        return {
            bus: hashlib.sha256(
                b"sealed salt 1 " + keys.box_key.reveal_to("own salt") + day
            ).digest()
            for bus, keys in self._keys.items()
        }

    def _outcome(self) -> SiteOutcome:
        return SiteOutcome(
            setpoints=_octets(self._own, self._setpoints),
            payments=self._payments,
            own_costs=self._own_costs,
            price_p=_octets(self._own, self._price_p),
            price_q=_octets(self._own, self._price_q),
            public=self.course.outcome(),
        )
