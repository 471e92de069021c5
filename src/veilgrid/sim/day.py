"""A whole masked day in the simulator: sites, workers, validators, operator, faults [day 6]."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.ledger.journalled import Committed
from veilgrid.ledger.message import Confirmed
from veilgrid.machine import Machine, NodeId
from veilgrid.roles.ledger_admission import Asking, Assessor, Attested, Quote
from veilgrid.roles.ledger_day import (
    agreement_of,
    build_operator,
    build_validator,
    group_arguments,
    operator_arguments,
    validator_arguments,
)
from veilgrid.roles.ledger_message import MESSAGES, DayResult, Keyed, floats_of
from veilgrid.roles.ledger_seat import Agreement, Patience, bus_of, client_of
from veilgrid.roles.ledger_site import SiteGroup
from veilgrid.roles.ledger_worker import Worker
from veilgrid.roles.sealed.deployment import unpack_public, unpack_site
from veilgrid.secret import Secret, SeededRandomness
from veilgrid.signature import Signer
from veilgrid.sim.cast import Replaying, Twins
from veilgrid.sim.checker import Agreement as Agreed
from veilgrid.sim.checker import Checker, Durability, NoSecretOnWire, Violation
from veilgrid.sim.day_cast import LyingGroup, LyingWorker, SilentSince, WrongVerdicts
from veilgrid.sim.day_faults import Faults
from veilgrid.sim.world import MILLISECOND_NS, Build, World

STEP_MAX: Final = 1_500_000
_POWER_TOLERANCE: Final = 1e-6
Attest = Callable[[str], tuple[Quote, Assessor | None]]
PATIENCE: Final = Patience(
    again_ns=1000 * MILLISECOND_NS,
    site_ns=8000 * MILLISECOND_NS,
    worker_ns=4000 * MILLISECOND_NS,
    bids_ns=20_000 * MILLISECOND_NS,
    client_ns=400 * MILLISECOND_NS,
    view_ns=1500 * MILLISECOND_NS,
    status_ns=300 * MILLISECOND_NS,
)


@dataclass(frozen=True, kw_only=True)
class SimulatedDay:
    """How a simulated day ended.

    Attributes
    ----------
    digest
        Of every step: equal for equal scenario, seed and faults.
    outcome
        The operator's status, or ``stalled``.
    violations
        Properties that did not hold, in words.
    refused
        Whose evidence a quorum of validators refused, and why.
    """

    seed: int
    digest: str
    outcome: str
    violations: tuple[str, ...]
    result: DayResult | None
    step_count: int
    crash_count: int
    seconds: float
    refused: dict[str, str] = field(default_factory=dict)


class MoneyAndPower(Checker):
    """Payments sum to zero, and what sites do is what was planned and paid for."""

    def __init__(self, day: Day, agreement: Agreement, honest: Sequence[str]) -> None:
        self._day, self._agreement, self._honest = day, agreement, honest

    def finished(self, world: World) -> None:
        """Look at the operator's result and at the edge devices' set-points."""
        result = result_of(world, self._agreement)
        if result is None or result.status != "converged":
            return
        if sum(amount for _, amount in result.payments) != 0:
            raise Violation("payments do not sum to zero")
        shape = (len(self._agreement.buses), self._day.interval_count)
        planned = floats_of(result.demand_p, *shape)
        if planned is None:
            raise Violation("a converged day has no plan")
        for group in dict.fromkeys(self._agreement.groups.values()):
            machine: Any = world.machine(NodeId(group))
            for name, device in (machine.devices if machine is not None else {}).items():
                bus = bus_of(name)
                if bus in result.excluded or name not in self._honest:
                    continue
                index = self._agreement.buses.index(bus)
                is_still = index not in self._agreement.flexible
                done = device.site.uncontrolled if is_still else device.setpoints
                if done is None:
                    raise Violation(f"site {bus} has no set-points at the end of the day")
                off = float(abs(device.site.demand_p(done) - planned[index]).max())
                if off > _POWER_TOLERANCE:
                    raise Violation(f"site {bus} does not do what was planned: {off:.1e} off")


def result_of(world: World, agreement: Agreement) -> DayResult | None:
    """Return how the operator says that the day ended, None before."""
    for outcome in reversed(world.decided(NodeId(agreement.operator))):
        if isinstance(outcome, DayResult):
            return outcome
    return None


def agreement_for(day: Day, faults: Faults, *, is_attested: bool = False) -> Agreement:
    """Name the processes of a simulated day; keys follow from names."""
    bare = agreement_of(
        day,
        validator_count=faults.validators,
        worker_count=faults.workers,
        group_count=faults.site_processes,
        patience=PATIENCE,
    )
    names = (*bare.validators, *bare.followers)
    keys = {name: _signer(name).verify_key for name in names}
    return msgspec.structs.replace(bare, keys=keys, is_attested=is_attested)


def _signer(name: str) -> Signer:
    return Signer(Secret(hashlib.sha256(b"simulated key of " + name.encode()).digest()))


def planted(day: Day, seed: int) -> tuple[Day, dict[str, float]]:
    """Return the day with one cost of each flexible site made recognisable, and those costs."""
    rng, sites, canaries = random.Random(seed), list(day.sites), dict[str, float]()
    for index in day.flexible:
        site = sites[index]
        places = [k for k, cost in enumerate(site.linear) if cost != 0.0]
        if not places:
            continue
        linear = site.linear.copy()
        linear[places[0]] *= 1.0 + 1e-7 * (0.5 + rng.random())
        sites[index] = replace(site, linear=linear)
        canaries[f"cost of {site.name}"] = float(linear[places[0]])
    return replace(day, sites=tuple(sites)), canaries


class _Crashes:
    """Crash named processes when the operator sees a step of the ledger begin."""

    def __init__(self, faults: Faults, operator: str) -> None:
        self._open = list(faults.crash)
        self._operator = NodeId(operator)

    def __call__(self, world: World) -> bool:
        machine: Any = world.machine(self._operator)
        if machine is None or not self._open:
            return False
        step = machine.seat.view.iteration if machine.seat.view.beacon else 0
        for crash in [one for one in self._open if step >= one.at_step]:
            self._open.remove(crash)
            world.crash(NodeId(crash.node), int(crash.down_ms * MILLISECOND_NS))
        return False


def simulate_day(
    day: Day,
    seed: int,
    faults: Faults,
    *,
    step_max: int = STEP_MAX,
    attest: Attest | None = None,
) -> SimulatedDay:
    """Run one day of the whole system on a simulated network.

    Parameters
    ----------
    day
        What to plan.
    seed
        Of everything: keys of masks, weather, liars.
    faults
        What goes wrong; checked before.
    step_max
        Events until the day counts as stalled.
    attest
        By process: what makes its evidence and, of a validator, what judges that of others. None
        asks nobody for evidence.
    """
    day, costs = planted(day, seed)
    agreement = agreement_for(day, faults, is_attested=attest is not None)
    builds = day_builds(day, agreement, seed, faults)
    if attest is not None:
        asked = [*agreement.validators, *agreement.followers[1:]]
        for name in asked:
            builds[NodeId(name)] = _attested(builds[NodeId(name)], name, agreement, attest)
    liars = {liar.node for liar in faults.liar}
    honest = [NodeId(name) for name in agreement.validators if name not in liars]
    honest_sites = [client_of(b) for b in agreement.buses if client_of(b) not in liars]
    seeds = MaskSeeds()
    found: list[str] = []
    checkers: list[Checker] = [
        Agreed(_sequence, lambda o: (o.digest, o.records), honest),
        Durability(_promise, _evidence, honest),
        NoSecretOnWire(costs) if costs else Checker(),
        seeds,
    ]
    world = World(builds, seed, faults.world_weather, messages=MESSAGES, checkers=checkers)
    crashes = _Crashes(faults, agreement.operator)

    def is_over(world: World) -> bool:
        crashes(world)
        return result_of(world, agreement) is not None

    try:
        if not world.run(min(faults.storm_steps, step_max), is_over):
            world.heal()
            world.run(max(step_max - world.step_count, 0), is_over)
    except Violation as violation:
        found.append(str(violation))
    for checker in (*checkers, MoneyAndPower(day, agreement, honest_sites)):
        try:
            checker.finished(world)
        except Violation as violation:
            found.append(str(violation))
    result = result_of(world, agreement)
    operator: Any = world.machine(NodeId(agreement.operator))
    return SimulatedDay(
        seed=seed,
        digest=world.digest,
        outcome=result.status if result is not None else "stalled",
        violations=tuple(dict.fromkeys(found)),
        result=result,
        step_count=world.step_count,
        crash_count=world.crash_count,
        seconds=world.now_ns / 1e9,
        refused=dict(operator.seat.view.refused) if operator is not None else {},
    )


def _sequence(outcome: Any) -> int | None:
    return outcome.sequence if isinstance(outcome, Confirmed) else None


def _promise(outcome: Any) -> Any:
    return (outcome.sequence, outcome.digest) if isinstance(outcome, Confirmed) else None


def _evidence(record: Any) -> Any:
    return (record.proof.sequence, record.proof.digest) if isinstance(record, Committed) else None


class MaskSeeds(Checker):
    """The seeds from which masks follow are in journals and in no frame."""

    def __init__(self) -> None:
        self._seeds: dict[bytes, str] = {}

    def persisted(self, node: NodeId, record: Any) -> None:  # noqa: ARG002 - the hook's form
        """Take note of a seed."""
        if isinstance(record, Keyed):
            self._seeds[record.seed] = record.site

    def sent(self, sender: NodeId, to: NodeId, message: Any, frame: bytes) -> None:
        """Scan a frame."""
        for seed, site in self._seeds.items():
            if seed in frame:
                kind = type(message).__name__
                raise Violation(f"the mask's seed of {site} left {sender} for {to} in a {kind}")


def day_builds(day: Day, agreement: Agreement, seed: int, faults: Faults) -> dict[NodeId, Build]:
    """Return how to make each machine of a day, liars among them."""
    limits = Limits.of(day.network)
    keys = {NodeId(name): key for name, key in agreement.keys.items()}
    lies = {liar.node: liar for liar in faults.liar}
    told = operator_arguments(day, limits, agreement)
    public = validator_arguments(day, limits, agreement, tells_all=True)
    operator = NodeId(agreement.operator)
    builds: dict[NodeId, Build] = {
        operator: lambda records: build_operator(
            operator, told, records, _signer(agreement.operator), keys
        )
    }
    for name in agreement.validators:
        lie = lies.get(name)

        def validator(records: Sequence[Any], me: str = name, kind: str = "") -> Machine:
            if kind == "wrong-verdicts":
                shared = unpack_public(public.public)
                return WrongVerdicts(NodeId(me), agreement, shared, _signer(me), records)
            return build_validator(NodeId(me), public, records, _signer(me), keys)

        own = _with_kind(validator, name, lie.kind if lie else "")
        builds[NodeId(name)] = _wrapped(own, name, agreement, seed, lies)
    for name in agreement.workers:
        builds[NodeId(name)] = _wrapped(_worker(name, agreement, lies), name, agreement, seed, lies)
    for number, name in enumerate(dict.fromkeys(agreement.groups.values())):
        builds[NodeId(name)] = _group(name, number, day, limits, agreement, seed, lies)
    return builds


def _attested(own: Build, name: str, agreement: Agreement, attest: Attest) -> Build:
    """Put asking and showing evidence around a machine."""

    def built(records: Sequence[Any]) -> Machine:
        quote, assessor = attest(name)
        if assessor is None:
            return Attested(own(records), NodeId(name), agreement, quote)
        return Asking(own(records), NodeId(name), agreement, quote, assessor)

    return built


def _with_kind(make: Callable[..., Machine], name: str, kind: str) -> Build:
    return lambda records: make(records, name, kind)


def _worker(name: str, agreement: Agreement, lies: dict[str, Any]) -> Build:
    lie = lies.get(name)
    honest = lie is None or lie.kind in ("silent", "replaying")

    def built(records: Sequence[Any]) -> Machine:
        if honest or lie is None:
            return Worker(NodeId(name), agreement, _signer(name), records)
        liar = LyingWorker(NodeId(name), agreement, _signer(name), records)
        liar.kind = lie.kind
        return liar

    return built


def _group(
    name: str,
    number: int,
    day: Day,
    limits: Limits,
    agreement: Agreement,
    seed: int,
    lies: dict[str, Any],
) -> Build:
    told = group_arguments(day, limits, agreement, name)
    own = {site: (lie.kind, lie.since) for site, lie in lies.items() if site.startswith("site:")}

    def built(records: Sequence[Any]) -> Machine:
        kind: type[SiteGroup] = LyingGroup if own else SiteGroup
        group = kind(
            NodeId(name),
            agreement,
            _signer(name),
            {bus: unpack_site(octets) for bus, octets in told.sites.items()},
            told.costs_alone,
            told.penalties,
            SeededRandomness(1000 * seed + number),
            records,
        )
        if isinstance(group, LyingGroup):
            group.lies = own
        return group

    return built


def _wrapped(own: Build, name: str, agreement: Agreement, seed: int, lies: dict[str, Any]) -> Build:
    """Put a liar around a machine, where its kind is one of messages."""
    lie = lies.get(name)
    if lie is None:
        return own
    peers = [NodeId(n) for n in (*agreement.validators, *agreement.followers) if n != name]
    if lie.kind == "silent":
        return lambda records: SilentSince(own(records), lie.since)
    if lie.kind == "replaying":
        rng = random.Random(f"{seed} {name}")
        return lambda records: Replaying(own(records), rng, peers, 0.05)
    if lie.kind == "twins":
        others = [NodeId(n) for n in agreement.validators if n != name]
        middle = len(others) // 2
        rest = [peer for peer in peers if peer not in others]
        sides = ([*others[: middle + 1], *rest, NodeId(name)], [*others[middle:], NodeId(name)])
        return lambda records: Twins((own(records), own(records)), sides)
    return own
