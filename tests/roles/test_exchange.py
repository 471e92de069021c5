"""Coordinator and sites as machines plan what the arrays plan, whoever misbehaves."""

import random
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from veilgrid.admm.exchange import ExchangeSettings, plan_exchange
from veilgrid.admm.exchange_message import Answer, Check, Close, Message, Offer, Regret
from veilgrid.admm.outcome import Coordination, RunStatus
from veilgrid.admm.site_step import SiteSteps
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits, flows
from veilgrid.machine import (
    START,
    Compute,
    Computed,
    Decide,
    NodeId,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from veilgrid.node.local import run_machines
from veilgrid.node.wire import Codec
from veilgrid.report.folders import open_scenario
from veilgrid.roles.exchange import (
    COORDINATOR,
    MALFORMED,
    SILENT,
    TOO_LARGE,
    Accusation,
    ExchangeOutcome,
    exchange_machines,
)
from veilgrid.roles.exchange_register import Register
from veilgrid.roles.exchange_site import SitePlan, packed

FLEXIBLE = NodeId("village")
RIGID = NodeId("grid")
SHORT = ExchangeSettings(iteration_count_max=12)


def six_bus(*, has_limits: bool = True) -> Day:
    scenario = open_scenario("six-bus")
    if has_limits:
        return scenario.day()
    branches = tuple(replace(branch, rating_mva=np.inf) for branch in scenario.network.branches)
    network = replace(scenario.network, branches=branches, voltage_min_pu=None, voltage_max_pu=None)
    return replace(scenario, network=network).day()


class Site:
    """A liar: an honest site whose effects go through ``twist`` before they leave it."""

    def __init__(self, honest, twist) -> None:
        self.honest, self.twist = honest, twist

    def handle(self, event) -> list:
        return [kept for effect in self.honest.handle(event) for kept in self.twist(effect)]


class Queue:
    """Deliver events in an order drawn from a seed; time passes when nothing else is left."""

    def __init__(self, machines: dict[NodeId, object], seed: int) -> None:
        self.machines, self.rng = machines, random.Random(seed)
        self.waiting: list[tuple[NodeId, object]] = [(m, TimerFired(START)) for m in machines]
        self.timers: list[tuple[NodeId, str]] = []
        self.decided: dict[NodeId, list] = {name: [] for name in machines}
        self.sent: list[tuple[NodeId, NodeId, object]] = []

    def carry_out(self, me: NodeId, effects: list) -> None:
        for effect in effects:
            match effect:
                case Send(to, message):
                    self.sent.append((me, to, message))
                    self.waiting.append((to, Received(me, message)))
                case Compute(job, kernel, arguments):
                    self.waiting.append((me, Computed(job, kernel(*arguments))))
                case SetTimer(name, _):
                    self.timers.append((me, name))
                case Decide(outcome):
                    self.decided[me].append(outcome)

    def run(self, *, twice: bool = False) -> None:
        while self.waiting or self.timers:
            if not self.waiting:
                to, name = self.timers.pop(0)
                self.waiting.append((to, TimerFired(name)))
            to, event = self.waiting.pop(self.rng.randrange(len(self.waiting)))
            self.carry_out(to, self.machines[to].handle(event))
            if twice and isinstance(event, Received):
                assert self.machines[to].handle(event) == []

    @property
    def outcome(self) -> ExchangeOutcome:
        return self.decided[COORDINATOR][-1]

    @property
    def named(self) -> list[Accusation]:
        return [found for found in self.decided[COORDINATOR] if isinstance(found, Accusation)]


def queue_of(day: Day, seed: int = 1, twists: dict | None = None, **chosen) -> Queue:
    settings = chosen.pop("settings", ExchangeSettings())
    coordinator, sites = exchange_machines(day, Limits.of(day.network), settings, **chosen)
    machines = {COORDINATOR: coordinator} | dict(sites)
    for name, twist in (twists or {}).items():
        machines[name] = Site(machines[name], twist)
    return Queue(machines, seed)


@pytest.fixture
def one_by_one(monkeypatch):
    """Let the array form solve each site by itself, as machines must."""
    monkeypatch.setattr(SiteSteps, "GROUP_SIZE", 1)


def assert_same(queue: Queue, expected: Coordination, day: Day, tolerance: float) -> None:
    found = queue.outcome
    assert found.status is expected.status
    assert len(found.history) == expected.iteration_count
    size = float(day.buy.max())
    ours = np.array([(e.primal, e.dual / size, e.cost / size) for e in found.history])
    theirs = np.array([(e.primal, e.dual / size, e.cost / size) for e in expected.history])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.target.price_p, expected.price_p, atol=tolerance * size)
    np.testing.assert_allclose(found.target.price_q, expected.price_q, atol=tolerance * size)
    demand_p, _ = day.demands(expected.setpoints)
    np.testing.assert_allclose(found.demand_p, demand_p, atol=tolerance)
    assert not queue.named
    for bus, site in enumerate(day.sites):
        (plan,) = queue.decided[NodeId(site.name)]
        assert isinstance(plan, SitePlan)
        assert plan.iteration == (expected.iteration_count if site.is_flexible else 0)
        np.testing.assert_allclose(plan.setpoints, expected.setpoints[bus], atol=tolerance)
        if expected.status is RunStatus.CONVERGED and site.is_flexible:
            np.testing.assert_allclose(plan.price_p, expected.price_p[bus], atol=tolerance * size)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_machines_give_the_iterates_and_the_plan_of_the_arrays(one_by_one, seed: int) -> None:
    """Another order of messages, or another rule to stop, would give another plan."""
    day = six_bus()
    expected = plan_exchange(day, Limits.of(day.network))
    queue = queue_of(day, seed)
    queue.run()
    assert expected.status is RunStatus.CONVERGED
    assert_same(queue, expected, day, 1e-9)
    assert queue.outcome.gap <= ExchangeSettings().gap_max


def test_machines_without_limits_send_no_reactive_power(one_by_one) -> None:
    """What nobody needs is not told."""
    day = six_bus(has_limits=False)
    expected = plan_exchange(day, Limits.of(day.network))
    queue = queue_of(day, 4)
    queue.run()
    assert_same(queue, expected, day, 1e-9)
    assert {m.demand_q for _, _, m in queue.sent if isinstance(m, Answer)} == {b""}
    assert {m.price_q for _, _, m in queue.sent if isinstance(m, Offer)} <= {b""}


def test_machines_start_from_the_last_day(one_by_one) -> None:
    """A warm start that forgot the prices would begin at the tariff again."""
    day = six_bus()
    limits = Limits.of(day.network)
    first = plan_exchange(day, limits)
    expected = plan_exchange(day, limits, start=first.warm)
    queue = queue_of(day, 5, start=first.warm)
    queue.run()
    assert_same(queue, expected, day, 1e-9)


def test_machines_change_their_penalties_as_the_arrays_do(one_by_one) -> None:
    """A site that missed a change would answer as if it were another problem."""
    day = six_bus()
    poor = ExchangeSettings(penalty=40.0, iteration_count_max=40)
    expected = plan_exchange(day, Limits.of(day.network), poor)
    queue = queue_of(day, 18, settings=poor)
    queue.run()
    assert_same(queue, expected, day, 1e-9)
    offered = {m.powers for _, _, m in queue.sent if isinstance(m, Offer)}
    assert len(offered) > 1
    np.testing.assert_array_equal(queue.outcome.warm.powers, expected.warm.powers)
    assert len(set(expected.warm.powers.tolist())) > 1


def test_machines_go_on_as_begun_where_the_last_day_does_not_fit(one_by_one) -> None:
    """Another network's prices, row by row, would be anybody's."""
    day = six_bus()
    warm = plan_exchange(day, Limits.of(day.network)).warm
    strange = replace(warm, members=tuple(f"another {name}" for name in warm.members))
    queue, cold = (
        queue_of(day, 19, start=strange, settings=SHORT),
        queue_of(day, 19, settings=SHORT),
    )
    queue.run()
    cold.run()
    np.testing.assert_array_equal(queue.outcome.demand_p, cold.outcome.demand_p)


def test_machines_end_at_the_iteration_limit(one_by_one) -> None:
    day = six_bus()
    expected = plan_exchange(day, Limits.of(day.network), SHORT)
    queue = queue_of(day, 6, settings=SHORT)
    queue.run()
    assert expected.status is RunStatus.ITERATION_LIMIT
    assert queue.outcome.gap == np.inf
    assert_same(queue, expected, day, 1e-9)


@pytest.mark.parametrize("has_limits", [True, False])
@pytest.mark.parametrize("is_warm", [True, False])
def test_messages_and_bytes_are_those_that_the_arrays_account_for(
    one_by_one, has_limits: bool, is_warm: bool
) -> None:
    """Figures of the benchmark would otherwise be made up."""
    day = six_bus(has_limits=has_limits)
    limits = Limits.of(day.network)
    start = plan_exchange(day, limits).warm if is_warm else None
    expected = plan_exchange(day, limits, start=start)
    queue = queue_of(day, 7, start=start)
    queue.run()
    assert len(queue.sent) == expected.message_count
    octets = sum(len(msgspec.msgpack.encode(message)) for _, _, message in queue.sent)
    assert octets == expected.byte_count


def test_machines_run_in_the_in_process_driver_over_the_wire_format(one_by_one) -> None:
    """Messages must survive encoding, and the run must end without a timer having to fire."""
    day = six_bus()
    coordinator, sites = exchange_machines(day, Limits.of(day.network), SHORT)
    machines = {COORDINATOR: coordinator} | sites
    results = run_machines(machines, codecs=dict.fromkeys(machines, Codec(Message)))
    expected = plan_exchange(day, Limits.of(day.network), SHORT)
    (outcome,) = next(r.outcomes for r in results if r.node == COORDINATOR)
    np.testing.assert_allclose(
        [entry.cost for entry in outcome.history],
        [entry.cost for entry in expected.history],
        rtol=1e-9,
    )
    assert all(len(result.outcomes) == 1 for result in results)


def test_a_site_hears_and_is_heard_by_the_coordinator_only() -> None:
    day = six_bus()
    queue = queue_of(day, settings=SHORT)
    queue.run()
    assert all(COORDINATOR in (sender, to) for sender, to, _ in queue.sent)


def test_repeated_messages_change_nothing(one_by_one) -> None:
    """A link that delivers twice must not move the iteration twice."""
    day = six_bus()
    once, again = queue_of(day, 8, settings=SHORT), queue_of(day, 8, settings=SHORT)
    once.run()
    again.run(twice=True)
    np.testing.assert_array_equal(once.outcome.demand_p, again.outcome.demand_p)


def answering(iteration: int, change) -> object:
    """Twist the answer of one iteration."""

    def twist(effect) -> list:
        is_answer = isinstance(effect, Send) and isinstance(effect.message, Answer)
        if is_answer and effect.message.iteration == iteration:
            return [Send(effect.to, change(effect.message))]
        return [effect]

    return twist


@pytest.mark.parametrize("silent_from", [1, 5])
def test_a_silent_site_is_named_and_the_others_go_on(silent_from: int) -> None:
    """One that refuses must not stop the rest, and the plan must count on what it said last."""

    def twist(effect) -> list:
        is_answer = isinstance(effect, Send) and isinstance(effect.message, Answer)
        return [] if is_answer and effect.message.iteration >= silent_from else [effect]

    day = six_bus()
    queue = queue_of(day, 9, {FLEXIBLE: twist})
    queue.run()
    assert queue.named == [Accusation(FLEXIBLE, SILENT, 0 if silent_from == 1 else 5)]
    outcome = queue.outcome
    assert outcome.named == tuple(queue.named)
    assert outcome.status is RunStatus.CONVERGED
    place = [site.name for site in day.sites].index(FLEXIBLE)
    (plan,) = queue.decided[FLEXIBLE]
    if silent_from == 1:
        register = Register.of(day)
        np.testing.assert_array_equal(outcome.demand_p[place], register.fallback_p[place])
        assert plan.iteration == -1
        assert plan.setpoints.size == 0
    else:
        # The site keeps to the answer that the plan counts on, though it computed another one.
        assert plan.iteration == silent_from - 1
        kept = day.sites[place].demand_p(plan.setpoints)
        np.testing.assert_array_equal(outcome.demand_p[place], kept)
    limits = Limits.of(day.network)
    state = (outcome.demand_p, outcome.demand_q)
    assert limits.excess(flows(limits.tree, *state)).max() <= 1e-6


def test_a_site_silent_about_its_regret_is_named() -> None:
    """Refusing the certificate must not keep the others from their plan."""

    def twist(effect) -> list:
        is_regret = isinstance(effect, Send) and isinstance(effect.message, Regret)
        return [] if is_regret else [effect]

    queue = queue_of(six_bus(), 10, {FLEXIBLE: twist})
    queue.run()
    assert [(a.site, a.kind) for a in queue.named] == [(FLEXIBLE, SILENT)]
    assert queue.outcome.status is RunStatus.CONVERGED


BAD = {
    "short": (lambda m: msgspec.structs.replace(m, demand_p=m.demand_p[:-8]), MALFORMED),
    "long": (lambda m: msgspec.structs.replace(m, demand_p=m.demand_p + bytes(8)), MALFORMED),
    "torn": (lambda m: msgspec.structs.replace(m, demand_p=m.demand_p[:-3]), MALFORMED),
    "no reactive": (lambda m: msgspec.structs.replace(m, demand_q=b""), MALFORMED),
    "nan": (
        lambda m: msgspec.structs.replace(m, demand_p=packed(np.full(24, np.nan))),
        MALFORMED,
    ),
    "infinite": (
        lambda m: msgspec.structs.replace(m, demand_q=packed(np.full(24, -np.inf))),
        MALFORMED,
    ),
    "cost nan": (lambda m: msgspec.structs.replace(m, cost=float("nan")), MALFORMED),
    "large": (lambda m: msgspec.structs.replace(m, demand_p=packed(np.full(24, 50.0))), TOO_LARGE),
    "large q": (
        lambda m: msgspec.structs.replace(m, demand_q=packed(np.full(24, -50.0))),
        TOO_LARGE,
    ),
    "cost large": (lambda m: msgspec.structs.replace(m, cost=-1e9), TOO_LARGE),
}


@pytest.mark.parametrize("iteration", [1, 4])
@pytest.mark.parametrize("lie", BAD)
def test_an_answer_that_cannot_be_is_refused_and_its_site_named(lie: str, iteration: int) -> None:
    """One bad array would otherwise poison the network step of all."""
    change, kind = BAD[lie]
    day = six_bus()
    queue = queue_of(day, 11, {FLEXIBLE: answering(iteration, change)}, settings=SHORT)
    queue.run()
    assert [(a.site, a.kind) for a in queue.named] == [(FLEXIBLE, kind)]
    assert isinstance(queue.named[0].evidence, Answer)
    assert np.isfinite(queue.outcome.demand_p).all()
    assert np.isfinite([entry.cost for entry in queue.outcome.history]).all()
    place = [site.name for site in day.sites].index(FLEXIBLE)
    assert np.abs(queue.outcome.demand_p[place]).max() <= Register.of(day).reach_p[place]
    # A site whose answer was refused is asked no more.
    offered = {m.iteration for _, to, m in queue.sent if to == FLEXIBLE and isinstance(m, Offer)}
    assert max(offered, default=1) <= iteration


def test_a_rigid_site_that_declares_nonsense_is_named_and_its_forecast_taken() -> None:
    day = six_bus()
    mill = NodeId(next(site.name for site in day.sites if not site.is_flexible))
    twists = {mill: answering(0, lambda m: msgspec.structs.replace(m, demand_p=b"?"))}
    queue = queue_of(day, 12, twists, settings=SHORT)
    queue.run()
    assert [(a.site, a.kind) for a in queue.named] == [(mill, MALFORMED)]
    honest = queue_of(day, 12, settings=SHORT)
    honest.run()
    np.testing.assert_allclose(queue.outcome.demand_p, honest.outcome.demand_p, atol=1e-9)


def test_an_old_answer_sent_again_is_not_taken_for_a_new_one() -> None:
    """A site that repeats its first answer for ever is silent, whatever it sends."""
    first: list[Answer] = []

    def twist(effect) -> list:
        if isinstance(effect, Send) and isinstance(effect.message, Answer):
            first.append(effect.message)
            return [Send(effect.to, first[0])]
        return [effect]

    queue = queue_of(six_bus(), 13, {FLEXIBLE: twist}, settings=SHORT)
    queue.run()
    assert queue.named == [Accusation(FLEXIBLE, SILENT, 2)]


@pytest.mark.parametrize("amount", [float("nan"), -1.0, float("-inf")])
def test_a_regret_that_cannot_be_is_refused_and_its_site_named(amount: float) -> None:
    """A negative regret would let a poor plan pass for an optimal one."""

    def twist(effect) -> list:
        if isinstance(effect, Send) and isinstance(effect.message, Regret):
            return [Send(effect.to, Regret(effect.message.iteration, amount))]
        return [effect]

    queue = queue_of(six_bus(), 14, {FLEXIBLE: twist})
    queue.run()
    assert [(a.site, a.kind) for a in queue.named] == [(FLEXIBLE, MALFORMED)]
    assert queue.outcome.gap >= 0.0


def test_foreign_late_and_meaningless_messages_are_ignored() -> None:
    """Nobody but a member, about nothing but the present iteration, is heard."""
    day = six_bus()
    count = day.interval_count
    part, powers = packed(np.zeros(count)), bytes(count)
    stranger, mill = NodeId("stranger"), NodeId("mill")
    queue = queue_of(day, 15, settings=SHORT)
    coordinator, site = queue.machines[COORDINATOR], queue.machines[FLEXIBLE]
    site.handle(TimerFired(START))
    coordinator.handle(TimerFired(START))
    to_coordinator = [
        Received(stranger, Answer(1, part, part, 0.0)),
        Received(FLEXIBLE, Answer(0, part, part, 0.0)),
        Received(FLEXIBLE, Answer(7, part, part, 0.0)),
        Received(FLEXIBLE, Answer(-1, part, part, 0.0)),
        Received(RIGID, Answer(1, part, part, 0.0)),
        Received(FLEXIBLE, Regret(1, 0.0)),
        Received(stranger, Regret(0, 0.0)),
        Received(FLEXIBLE, Offer(1, part, part, part, part, powers)),
        Received(FLEXIBLE, Close(1, "converged")),
        Received(FLEXIBLE, "not a message of ours"),
        Computed(("network", 0), "nonsense"),
        Computed(("network", 5), None),
        TimerFired("answers 9"),
        TimerFired("regrets 0"),
        TimerFired("nonsense"),
    ]
    to_site = [
        Received(stranger, Offer(2, part, part, part, part, powers)),
        Received(mill, Close(1, "converged")),
        Received(COORDINATOR, Offer(1, part, part, part, part, powers)),
        Received(COORDINATOR, Offer(2, part[:-8], part, part, part, powers)),
        Received(COORDINATOR, Offer(2, part, b"", part, part, powers)),
        Received(COORDINATOR, Offer(2, packed(np.full(count, np.nan)), part, part, part, powers)),
        Received(COORDINATOR, Offer(2, part, part, part, part, powers[1:])),
        Received(COORDINATOR, Offer(2, part, part, part, part, 1.0)),
        Received(COORDINATOR, Offer(2, part, part, part, part, b"\x03" + powers[1:])),
        Received(COORDINATOR, Check(1, part, part)),
        Received(COORDINATOR, Answer(1, part, part, 0.0)),
        Received(COORDINATOR, None),
        Computed(("answer", 9), None),
        Computed(("regret", 1), None),
        TimerFired("nonsense"),
    ]
    for event in to_coordinator:
        assert coordinator.handle(event) == [], event
    for event in to_site:
        assert site.handle(event) == [], event
    again = queue_of(day, 15, settings=SHORT)
    honest = queue_of(day, 15, settings=SHORT)
    for event in to_coordinator:
        again.machines[COORDINATOR].handle(TimerFired(START))
        assert again.machines[COORDINATOR].handle(event) == []
    again.waiting = [item for item in again.waiting if item[0] != COORDINATOR]
    again.run()
    honest.run()
    np.testing.assert_allclose(again.outcome.demand_p, honest.outcome.demand_p, atol=1e-9)


def test_all_sites_silent_still_ends_with_their_names() -> None:
    """The coordinator must never wait for ever."""
    day = six_bus()
    twists = {NodeId(site.name): (lambda _: []) for site in day.sites}
    queue = queue_of(day, 16, twists, settings=SHORT)
    queue.run()
    assert {accusation.site for accusation in queue.named} == set(twists)
    np.testing.assert_array_equal(queue.outcome.demand_p, Register.of(day).fallback_p)


def test_an_honest_site_is_never_near_the_limits_of_the_register() -> None:
    """A register drawn too tight would name honest sites."""
    day = six_bus()
    register = Register.of(day)
    rng = np.random.default_rng(17)
    for bus, site in enumerate(day.sites):
        for _ in range(20):
            x = rng.choice([site.lower, site.upper, site.lower + (site.upper - site.lower) / 2])
            assert np.abs(site.demand_p(x)).max(initial=0.0) <= register.reach_p[bus]
            assert np.abs(site.demand_q(x)).max(initial=0.0) <= register.reach_q[bus]
            assert abs(site.cost(x)) <= register.cost_max[bus]
