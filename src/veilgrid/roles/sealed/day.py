"""A sealed day from its data to its plan: who knows what, the machines, and one way to run them."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec
import numpy as np

from veilgrid.admm.certify import turnover
from veilgrid.admm.exchange import ExchangeSettings, Metric, strength_ceiling
from veilgrid.admm.outcome import (
    Coordination,
    Interrupted,
    Progress,
    ProgressSink,
    Refused,
    RunStatus,
)
from veilgrid.admm.reference import alone
from veilgrid.errors import RunAborted
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.site import Site
from veilgrid.machine import (
    START,
    Compute,
    Computed,
    Decide,
    Effect,
    Event,
    Machine,
    NodeId,
    Persist,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from veilgrid.roles.sealed.bid import Shape
from veilgrid.roles.sealed.course import Course
from veilgrid.roles.sealed.keys import PAYER_NODE, SITES, Keys
from veilgrid.roles.sealed.kinds import DONE
from veilgrid.roles.sealed.message import Stopped, Wished
from veilgrid.roles.sealed.narrowing import narrowed
from veilgrid.roles.sealed.party import SealedParty
from veilgrid.roles.sealed.payer import Payer
from veilgrid.roles.sealed.program import Tolerances
from veilgrid.roles.sealed.register import Register
from veilgrid.roles.sealed.sites import SiteGroup
from veilgrid.roles.sealed.sites_kept import SiteOutcome
from veilgrid.roles.sealed.start import Start
from veilgrid.secret import Randomness, Secret

SETTINGS: Final = ExchangeSettings()
"""As of `exchange`."""


@dataclass(frozen=True, kw_only=True)
class PublicDay:
    """What everybody knows before gate closure.

    Attributes
    ----------
    register
        Network, tariff, and penalties from the rated ranges of the connections.
    shapes
        Which devices each site has, by bus.
    turnover_min : price units
        Gaps are relative to the cost, but at least to this; a power of two, because it follows from
        all sites' loads.
    """

    register: Register
    shapes: tuple[Shape, ...]
    settings: ExchangeSettings
    turnover_min: float
    flexible: tuple[int, ...]

    @classmethod
    def of(cls, day: Day, limits: Limits, settings: ExchangeSettings = SETTINGS) -> "PublicDay":
        """Take the public part of a day."""
        metric = Metric.of(day, limits, settings.penalty, settings.evenness)
        members = list(day.flexible)
        give_p, give_q = np.zeros(len(day.sites)), np.zeros(len(day.sites))
        give_p[members] = 1.0 / metric.active
        if bool((metric.reactive > 0.0).all()):
            give_q[members] = 1.0 / metric.reactive
        register = Register(
            limits=limits,
            buy=day.buy,
            sell=day.sell,
            give_p=give_p,
            give_q=give_q,
            strength_max=strength_ceiling(settings, day),
            voltage_limits=(day.network.voltage_min_pu, day.network.voltage_max_pu),
        )
        return cls(
            register=register,
            shapes=tuple(Shape.of(site) for site in day.sites),
            settings=settings,
            turnover_min=2.0 ** math.floor(math.log2(turnover(day, 0.0) / register.unit)),
            flexible=tuple(day.flexible),
        )

    def course(self) -> Course:
        """Return a course at its beginning."""
        return Course(self.register, self.settings, self.turnover_min, self.flexible)

    @property
    def tolerances(self) -> Tolerances:
        """When the coordination may stop."""
        settings = self.settings
        return Tolerances(settings.gap_max, settings.excess_max, self.turnover_min)


def costs_alone(day: Day) -> dict[int, float]:
    """Return what each site would pay alone at the substation's tariff, by bus, currency."""
    setpoints = alone(day).setpoints
    return {
        bus: site.cost(x) + day.exchange_cost(site.demand_p(x))
        for bus, (site, x) in enumerate(zip(day.sites, setpoints, strict=True))
    }


@dataclass(frozen=True)
class Life:
    """The part of a day that one program plays, for everybody: begun before, or new.

    Attributes
    ----------
    keys, day
        Everybody's keys and the day's name; those of the earlier life.
    records
        What the machines of an earlier life persisted, by name.
    keep
        Called with each record of this life; it is durable when the call returns.
    """

    keys: Keys
    day: bytes
    records: Mapping[NodeId, Sequence[Any]]
    keep: Callable[[NodeId, Any], None]

    @staticmethod
    def name(randomness: Randomness) -> bytes:
        """Draw a day's name."""
        return b"day " + randomness.octets(16).hex().encode()


@dataclass(frozen=True)
class Cast:
    """The machines of one day, and the threads that solve sites."""

    machines: dict[NodeId, Machine]
    group: SiteGroup
    pool: ThreadPoolExecutor


def cast_of(
    public: PublicDay,
    sites: Mapping[int, Site],
    alone_costs: Mapping[int, float],
    randomness: Randomness,
    *,
    party_count: int = 3,
    degree: int = 1,
    start: Wished | None = None,
    life: Life | None = None,
) -> Cast:
    """Make all parties, one group with all sites, and the payer.

    Keys are fresh unless those of a life.
    """
    keys = life.keys if life else Keys.drawn(party_count, len(public.shapes), randomness)
    agreement = keys.agreement(life.day if life else Life.name(randomness), degree)
    records = life.records if life else {}
    verify_keys = {
        name: signer.verify_key
        for name, signer in zip(agreement.parties, keys.signers, strict=True)
    }
    machines: dict[NodeId, Machine] = {
        name: SealedParty(
            name,
            agreement,
            public.course(),
            public.shapes,
            public.tolerances,
            box_key=Secret(bytes(box)),
            signer=signer,
            verify_keys=verify_keys,
            randomness=randomness,
            records=records.get(name, ()),
        )
        for name, box, signer in zip(agreement.parties, keys.boxes, keys.signers, strict=True)
    }
    pool = ThreadPoolExecutor()
    group = SiteGroup(
        SITES,
        agreement,
        public.course(),
        sites,
        alone_costs,
        keys=keys.sites,
        randomness=randomness,
        executor=pool,
        records=records.get(SITES, ()),
        start=start,
    )
    machines[SITES] = group
    machines[PAYER_NODE] = Payer(
        PAYER_NODE,
        agreement,
        public.register.unit,
        signer=keys.payer,
        randomness=randomness,
        records=records.get(PAYER_NODE, ()),
    )
    return Cast(machines, group, pool)


@dataclass
class Driven:
    """What came of running machines: outcomes in order, messages and their octets.

    Attributes
    ----------
    now_ns
        How late it is where timers fired.
    """

    outcomes: dict[NodeId, list[Any]] = field(default_factory=dict)
    message_count: int = 0
    byte_count: int = 0
    now_ns: int = 0
    timers: dict[tuple[NodeId, str], int] = field(default_factory=dict)

    def due(self) -> list[tuple[NodeId, Event]]:
        """Move on to the next timers and return them."""
        self.now_ns = min(self.timers.values())
        names = [key for key, at_ns in self.timers.items() if at_ns == self.now_ns]
        for key in names:
            del self.timers[key]
        return [(node, TimerFired(timer)) for node, timer in names]


def step_in_memory(
    machines: Mapping[NodeId, Machine],
    watch: Callable[[], None] | None = None,
    *,
    until: NodeId | None = None,
    keep: Callable[[NodeId, Any], None] | None = None,
) -> Driven:
    """Deliver all messages in order until nobody has anything left to do.

    ``watch`` is called after each event. Timers fire only where ``until`` names a machine that has
    to come to an end: when there is nothing else left to do, so silence takes no time. ``keep`` is
    called with each record before any later effect.
    """
    driven = Driven({name: [] for name in machines})
    queue: deque[tuple[NodeId, Event]] = deque((name, TimerFired(START)) for name in machines)
    while True:
        if not queue:
            if until is None or driven.outcomes[until] or not driven.timers:
                return driven
            queue.extend(driven.due())
        name, event = queue.popleft()
        for effect in machines[name].handle(event):
            if keep is not None and isinstance(effect, Persist):
                keep(name, effect.record)
            _carry_out(name, effect, machines, queue, driven)
        if watch is not None:
            watch()


def _carry_out(
    name: NodeId,
    effect: Effect,
    machines: Mapping[NodeId, Machine],
    queue: deque[tuple[NodeId, Event]],
    driven: Driven,
) -> None:
    match effect:
        case Send(to, message) if to in machines:
            driven.message_count += 1
            driven.byte_count += len(msgspec.msgpack.encode(message))
            queue.append((to, Received(name, message)))
        case SetTimer(timer, delay_ns):
            driven.timers[name, timer] = driven.now_ns + delay_ns
        case Compute(job, kernel, arguments):
            queue.append((name, Computed(job, kernel(*arguments))))
        case Decide(outcome):
            driven.outcomes[name].append(outcome)


def plan_sealed(
    day: Day,
    limits: Limits,
    *,
    randomness: Randomness,
    settings: ExchangeSettings = SETTINGS,
    party_count: int = 3,
    degree: int = 1,
    progress: ProgressSink | None = None,
    is_recorded: bool = False,
    start: object = None,
    life: Life | None = None,
) -> Coordination:
    """Plan a day under `sealed`, all parties and sites as machines in this process.

    Parameters
    ----------
    day, limits
        What to plan and within which limits. One program holds all sites' data here; what each
        machine gets is what it would get in a deployment.
    randomness
        The system's, unless a run is to be repeated.
    settings
        Of the coordination.
    party_count, degree
        Of the committee.
    progress
        Called once an iteration; an exception from it ends the run.
    is_recorded
        Whether the day goes on a ledger, in this process as well.
    start
        ``warm`` of the last day's outcome, used from the second iteration on; one that does not
        fit (:meth:`.start.Start.misfit`), or anything else, is left aside.
    life
        What an earlier run left of the same day, and where this one keeps what machines persist.

    Raises
    ------
    RunAborted
        The parties ended without a result; names the culprit where one is known.
    """
    public = PublicDay.of(day, limits, settings)
    cast = cast_of(
        public,
        dict(enumerate(day.sites)),
        costs_alone(day),
        randomness,
        party_count=party_count,
        degree=degree,
        start=Start.fitted(start, day),
        life=life,
    )
    shown = Watch(cast.group.course, public.register.unit, progress)
    with cast.pool:
        try:
            driven = step_in_memory(cast.machines, shown, keep=life.keep if life else None)
        except Interrupted:
            return _blank(day, RunStatus.ABORTED, shown)
    found = coordination_of(day, driven, SITES, public.register.unit, limits)
    if found.status is RunStatus.CONVERGED and cast.group.course.task.kind == DONE:
        found = replace(found, warm=Start.of(day, cast.group.stand()))
    if not is_recorded or found.status is not RunStatus.CONVERGED:
        return found
    from veilgrid.roles.sealed.record import recorded

    names = [str(site.name) for site in day.sites]
    salts = {names[bus]: salt for bus, salt in cast.group.salts().items()}
    party = next(one for one in cast.machines.values() if isinstance(one, SealedParty))
    bids = {names[bus]: digest for bus, digest in party.bid_digests().items()}
    left_out = [names[int(bus)] for bus in found.opened["excluded"] if names[int(bus)] in bids]
    return replace(
        found, record=recorded(day.name, bids, salts, left_out, found.opened, randomness)
    )


def _narrowed(
    day: Day, outcome: Coordination, limits: Limits, refused: list[dict[str, Any]]
) -> Coordination:
    """Add the plans that the AC power flow refused, and the limits of the last one."""
    network, plans = day.network, []
    own = network.voltage_min_pu, network.voltage_max_pu
    for one in refused:
        places = {
            name: tuple((int(bus), int(t), missed) for bus, t, missed in one["shown"][name])
            for name in ("low", "high", "over")
        }
        plans.append(Refused(float(one["cost"]), int(one["iterations"]), limits, places))
        limits = narrowed(limits, own, day.interval_count, one["shown"])
    return replace(outcome, refused=tuple(plans), limits=limits)


class Watch:
    """Shows iterations as they open."""

    def __init__(self, course: Course, unit: float, progress: ProgressSink | None) -> None:
        self._course, self._unit, self._progress = course, unit, progress
        self.history: list[Progress] = []
        self._shown = 0

    def __call__(self) -> None:
        """Show what is new."""
        seen = self._course.history
        if len(seen) < self._shown:
            self._shown = 0  # The coordination began anew.
        while self._shown < len(seen):
            one = seen[self._shown]
            self._shown += 1
            gap = one.gap * self._unit
            self.history.append(Progress(one.iteration, one.residual, gap, one.cost * self._unit))
            if self._progress is not None:
                self._progress(self.history[-1])


def _blank(day: Day, status: RunStatus, shown: Watch) -> Coordination:
    prices = np.zeros((len(day.sites), day.interval_count))
    return Coordination(
        status=status, setpoints=[], price_p=prices, price_q=prices, history=tuple(shown.history)
    )


def coordination_of(
    day: Day, driven: Driven, group: NodeId, unit: float, limits: Limits | None = None
) -> Coordination:
    """Put together what a run came to, from what each site knows for itself.

    ``limits`` are those of the day at its beginning; ``None`` = of its network.
    """
    outcomes = driven.outcomes.get(group, [])
    # The sites' word first: they name whom more parties blame than may be corrupt.
    all_ends = [outcomes, *driven.outcomes.values()]
    stopped = [one for each in all_ends for one in each if isinstance(one, Stopped)]
    if stopped or not outcomes or not isinstance(outcomes[0], SiteOutcome):
        reason = stopped[0].reason if stopped else "the sites got no result"
        culprits = stopped[0].culprits if stopped else []
        raise RunAborted(reason, ", ".join(culprits) or None)
    found = outcomes[0]
    public = found.public
    price_p = np.zeros((len(day.sites), day.interval_count))
    price_q = np.zeros_like(price_p)
    for bus in found.price_p:
        price_p[bus] = np.frombuffer(found.price_p[bus], "<f8")
        price_q[bus] = np.frombuffer(found.price_q[bus], "<f8")
    setpoints = list(day.uncontrolled)
    for bus, x in found.setpoints.items():
        setpoints[bus] = np.frombuffer(x, "<f8")
    status = RunStatus(public["status"])
    certificate = public["certificate"]
    outcome = Coordination(
        status=status,
        setpoints=setpoints,
        price_p=price_p,
        price_q=price_q,
        rent=float(certificate.get("rent", 0.0)),
        history=tuple(
            Progress(int(i), float(residual), float(gap) * unit, float(cost) * unit)
            for i, cost, gap, residual, _ in public["history"]
        ),
        message_count=driven.message_count,
        byte_count=driven.byte_count,
        opened={**certificate, "excluded": public["excluded"]},
        payments=dict(found.payments) if certificate else None,
    )
    if public["refused"]:
        outcome = _narrowed(day, outcome, limits or Limits.of(day.network), public["refused"])
    if status is RunStatus.INFEASIBLE:
        worst = [(int(row), int(t), float(excess)) for row, t, excess in public["unmet"]]
        return replace(outcome, setpoints=[], violations=tuple(worst))
    return outcome
