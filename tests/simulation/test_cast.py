"""The cast: each adversary does its wrong, the honest stay right, and broken code is found."""

import random
from collections import Counter as Tally
from collections.abc import Callable
from typing import Any

import pytest
from broadcast import MESSAGES, Broadcast, Echo, Initial, Ready
from hypothesis import given
from hypothesis import strategies as st
from node_machines import Added, Ping, Pong, Vote

from veilgrid.machine import (
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
from veilgrid.node.local import run_machines
from veilgrid.node.wire import Codec
from veilgrid.sim import (
    Agreement,
    Replaying,
    Rushing,
    Silent,
    Tampering,
    Twins,
    TwoFaced,
    Violation,
    Weather,
    World,
    sweep,
    tampered,
)

NODES = [NodeId(f"n{index}") for index in range(4)]
LIAR, HONEST = NODES[0], NODES[1:]
VALUE, OTHER = 7, 8


def honest(node: NodeId, quorum: int = 3, value: int = VALUE) -> Broadcast:
    return Broadcast(node, NODES, value if node == LIAR else None, quorum)


def twins(rng: random.Random, quorum: int) -> Machine:
    copies = (honest(LIAR, quorum), honest(LIAR, quorum, OTHER))
    cut = rng.randrange(1, 3)
    order = rng.sample(HONEST, 3)
    both = {LIAR} if rng.random() < 0.5 else set()
    return Twins(copies, ({*order[:cut], *both}, {*order[cut:], *both}))


def two_faced(rng: random.Random, quorum: int) -> Machine:
    fooled = rng.sample(HONEST, rng.randrange(1, 3))
    return TwoFaced(honest(LIAR, quorum), rng, fooled, mutate=lambda _, told: type(told)(OTHER))


CAST: dict[str, Callable[[random.Random, int], Machine]] = {
    "honest": lambda _, quorum: honest(LIAR, quorum),
    "silent": lambda rng, quorum: Silent(honest(LIAR, quorum), rng.randrange(6)),
    "replaying": lambda rng, quorum: Replaying(honest(LIAR, quorum), rng, NODES, 0.5),
    "tampering": lambda rng, quorum: Tampering(honest(LIAR, quorum), rng, (Echo, Ready), 0.5),
    "rushing": lambda _, quorum: Rushing(honest(LIAR, quorum), HONEST, 10**6),
    "two-faced": two_faced,
    "twins": twins,
}


def world_with(adversary: str, seed: int, quorum: int = 3) -> World:
    """Safety in any weather, then liveness for the honest: all deliver or none does."""
    rng = random.Random(seed)
    builds: dict[NodeId, Any] = {node: lambda _, node=node: honest(node, quorum) for node in HONEST}
    builds[LIAR] = lambda _: CAST[adversary](rng, quorum)
    agree = Agreement(lambda _: 0, lambda value: value, HONEST)
    weather = Weather(delay_max_ns=10**7, repeat_probability=0.2, reorder_probability=0.3)
    world = World(builds, seed, weather, messages=MESSAGES, checkers=[agree])
    if not world.run(3_000):
        raise Violation("a broadcast among four ends within 3000 steps")
    if len({len(world.decided(node)) for node in HONEST}) != 1:
        raise Violation("all honest nodes deliver, or none")
    if adversary in ("honest", "replaying") and not world.decided(HONEST[0]):
        raise Violation("what an honest sender says is delivered")
    return world


def with_honest_sender(seed: int) -> World:
    return world_with("honest", seed)


def with_silent_sender(seed: int) -> World:
    return world_with("silent", seed)


def with_replaying_sender(seed: int) -> World:
    return world_with("replaying", seed)


def with_tampering_sender(seed: int) -> World:
    return world_with("tampering", seed)


def with_rushing_sender(seed: int) -> World:
    return world_with("rushing", seed)


def with_two_faced_sender(seed: int) -> World:
    return world_with("two-faced", seed)


def with_twins_sender(seed: int) -> World:
    return world_with("twins", seed)


SIMULATIONS = [
    with_honest_sender,
    with_silent_sender,
    with_replaying_sender,
    with_tampering_sender,
    with_rushing_sender,
    with_two_faced_sender,
    with_twins_sender,
]


@pytest.mark.parametrize("simulation", SIMULATIONS)
def test_honest_nodes_agree_whatever_one_of_four_does(simulation: Callable[[int], World]) -> None:
    assert sweep(simulation, range(150)).seed_count == 150


def test_a_quorum_that_is_too_small_survives_honest_weather_and_falls_to_the_liars() -> None:
    """Why the cast is not optional: without a liar this mutation is never seen."""
    found = Tally[str]()
    for adversary in CAST:
        for seed in range(100):
            try:
                world_with(adversary, seed, quorum=2)
            except Violation:
                found[adversary] += 1
    assert found["honest"] == 0
    assert found["two-faced"] > 5
    assert found["twins"] > 5


@pytest.mark.parametrize("adversary", CAST)
def test_the_cast_runs_in_the_node_driver_as_well(adversary: str) -> None:
    machines: dict[NodeId, Machine] = {node: honest(node) for node in HONEST}
    machines[LIAR] = CAST[adversary](random.Random(5), 3)
    codecs = dict.fromkeys(NODES, Codec(MESSAGES))
    results = run_machines(machines, codecs=codecs, step_max=10_000)
    outcomes = [result.outcomes for result in results if result.node != LIAR]
    assert outcomes[0] == outcomes[1] == outcomes[2]


class Chatty:
    """Answer everything with every kind of effect."""

    def handle(self, _event: Event) -> list[Effect]:
        return [
            Send(HONEST[0], Initial(1)),
            Send(HONEST[1], Initial(1)),
            Send(HONEST[2], Echo(2)),
            Persist(Initial(3)),
            SetTimer("t", 5),
            Compute("job", abs, (-1,)),
            Decide(4),
        ]


def rest(effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if not isinstance(effect, Send)]


def test_liars_lie_in_messages_only() -> None:
    start, true = TimerFired("start"), Chatty().handle(TimerFired("start"))
    for liar in (
        Silent(Chatty()),
        Tampering(Chatty(), random.Random(1)),
        TwoFaced(Chatty(), random.Random(1), HONEST),
        Replaying(Chatty(), random.Random(1), NODES, 1.0),
    ):
        assert rest(liar.handle(start)) == rest(true)


def test_a_silent_node_behaves_first() -> None:
    silent = Silent(Chatty(), honest_steps=2)
    counts = [sum(isinstance(e, Send) for e in silent.handle(TimerFired("t"))) for _ in range(4)]
    assert counts == [3, 3, 0, 0]


def test_tampering_changes_the_given_types_only() -> None:
    tampering = Tampering(Chatty(), random.Random(1), kinds=(Echo,))
    sent = [e.message for e in tampering.handle(TimerFired("t")) if isinstance(e, Send)]
    assert sent[:2] == [Initial(1), Initial(1)]
    assert isinstance(sent[2], Echo)
    assert sent[2] != Echo(2)
    assert tampering.lie_count == 1


def test_a_two_faced_node_tells_all_it_fools_the_same() -> None:
    class Broadcaster(Chatty):
        def handle(self, _event: Event) -> list[Effect]:
            message = Initial(1)
            return [Send(node, message) for node in NODES]

    liar = TwoFaced(Broadcaster(), random.Random(1), HONEST[:2])
    told = [effect.message for effect in liar.handle(TimerFired("t"))]
    assert told[0] == told[3] == Initial(1)
    assert told[1] == told[2] != Initial(1)


def test_a_replaying_node_repeats_what_it_sent_and_what_it_heard() -> None:
    liar = Replaying(Silent(Chatty()), random.Random(1), NODES, 1.0)
    [*_, replay] = liar.handle(Received(HONEST[0], Ready(5)))
    assert isinstance(replay, Send)
    assert replay.message == Ready(5)


def test_a_rushing_node_speaks_last_or_when_its_patience_ends() -> None:
    class Once(Chatty):
        def handle(self, event: Event) -> list[Effect]:
            return [Send(HONEST[0], Initial(1))] if event == TimerFired("start") else []

    for is_patient in (True, False):
        liar = Rushing(Once(), HONEST, 100)
        assert liar.handle(TimerFired("start")) == [SetTimer("rushing", 100)]
        assert liar.handle(Received(HONEST[0], Echo(1))) == []
        assert liar.handle(Received(HONEST[1], Echo(1))) == []
        last = Received(HONEST[2], Echo(1)) if is_patient else TimerFired("rushing")
        assert liar.handle(last) == [Send(HONEST[0], Initial(1))]


def test_twins_keep_their_timers_jobs_and_peers_apart() -> None:
    class Copy:
        def __init__(self) -> None:
            self.seen: list[Event] = []

        def handle(self, event: Event) -> list[Effect]:
            self.seen.append(event)
            return Chatty().handle(event)

    one, other = Copy(), Copy()
    pair = Twins((one, other), ({HONEST[0]}, {HONEST[1], HONEST[2]}))
    effects = pair.handle(TimerFired("start"))
    assert [e.to for e in effects if isinstance(e, Send)] == HONEST
    assert [e.name for e in effects if isinstance(e, SetTimer)] == ["0:t", "1:t"]
    assert [e.job for e in effects if isinstance(e, Compute)] == [(0, "job"), (1, "job")]
    assert sum(isinstance(e, Persist) for e in effects) == 1
    for event in (TimerFired("1:t"), Computed((1, "job"), 1), Received(HONEST[1], Echo(1))):
        pair.handle(event)
    assert one.seen == [TimerFired("start")]
    assert other.seen == [
        TimerFired("start"),
        TimerFired("t"),
        Computed("job", 1),
        Received(HONEST[1], Echo(1)),
    ]


messages = st.one_of(
    st.builds(Vote, st.integers(0, 2**63 - 1), st.integers(-(2**63), 2**63 - 1)),
    st.builds(Ping, st.integers(0, 2**63 - 1), st.binary(max_size=20)),
    st.builds(Pong, st.just(1), st.binary(min_size=1, max_size=20).map(memoryview)),
    st.builds(Added, st.just(2**64 - 1), st.just(-(2**63))),
)


@given(message=messages, seed=st.integers(0, 2**32))
def test_a_tampered_message_differs_in_one_field_and_keeps_its_type(
    message: Any, seed: int
) -> None:
    lie = tampered(random.Random(seed), message)
    assert type(lie) is type(message)
    fields = message.__struct_fields__
    assert sum(getattr(lie, name) != getattr(message, name) for name in fields) == 1
    world = World({}, 0, messages=Vote | Ping | Pong | Added)
    world.post(NODES[0], Received(NODES[1], lie))


@pytest.mark.parametrize(
    "value", [True, 1.5, "text", [1, 2], (1, 2), {"a": 1}, [[1, [2]]], {"a": {"b": b"c"}}]
)
def test_values_of_every_kind_can_be_tampered_with(value: Any) -> None:
    for seed in range(20):
        assert tampered(random.Random(seed), value) != value
    assert tampered(random.Random(1), None) is None
