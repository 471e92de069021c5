"""The simulator itself: one seed, one run; faults happen and are found."""

import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from node_machines import (
    MESSAGES,
    Add,
    Added,
    Agreement,
    Answerer,
    Asker,
    Client,
    Counter,
    Ping,
    Vote,
)

from veilgrid.errors import InvariantError
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
    SetTimer,
    TimerFired,
)
from veilgrid.sim import (
    CALM,
    Checker,
    Durability,
    NoSecretOnWire,
    Violation,
    Weather,
    World,
    canary_forms,
    replay_command,
    sweep,
)
from veilgrid.sim import Agreement as Agree

NAMES = [NodeId(f"p{index}") for index in range(4)]
COUNTER, CLIENT = NodeId("counter"), NodeId("client")
COUNT, TOTAL = 8, 36
A, B = NodeId("a"), NodeId("b")


def agreeing(seed: int, weather: Weather = CALM, rounds: int = 20, **more: Any) -> World:
    builds = {name: lambda _, name=name: Agreement(name, NAMES, rounds) for name in NAMES}
    return World(builds, seed, weather, messages=MESSAGES, **more)


def counting(seed: int, weather: Weather = CALM, **more: Any) -> World:
    builds = {COUNTER: Counter, CLIENT: lambda _: Client(COUNTER, COUNT)}
    return World(builds, seed, weather, messages=MESSAGES, **more)


def is_answered(world: World) -> bool:
    return bool(world.decided(CLIENT))


class Honest(Checker):
    """The counter answers only what it has on disk, and the client gets the right total."""

    def __init__(self) -> None:
        self._durable: set[int] = set()

    def persisted(self, _node: NodeId, record: Any) -> None:
        self._durable.add(record.number)

    def sent(self, sender: NodeId, _to: NodeId, message: Any, _frame: bytes) -> None:
        if isinstance(message, Added) and message.number not in self._durable:
            raise Violation(f"{sender} answered {message.number} before it was durable")

    def decided(self, node: NodeId, outcome: Any) -> None:
        if node == CLIENT and outcome != TOTAL:
            raise Violation(f"the client got {outcome}, expected {TOTAL}")


def any_weather(seed: int) -> World:
    """Safety in any weather; then calm, and the client is answered within a step budget."""
    world = counting(seed, Weather.draw(random.Random(seed)), checkers=[Honest()])
    world.run(300, until=is_answered)
    world.heal()
    if not world.run(2_000, until=is_answered):
        raise Violation("the client is answered once the weather is calm")
    return world


def test_a_durable_counter_is_right_in_any_weather_and_answers_when_it_is_calm() -> None:
    report = sweep(any_weather, range(300))
    assert report.seed_count == 300
    assert report.crash_count > 50, "the weather was rough"


@pytest.mark.parametrize("weather", [CALM, Weather.draw(random.Random(3))])
def test_the_same_seed_takes_the_same_steps(weather: Weather) -> None:
    def run(seed: int) -> tuple[str, int, int]:
        world = agreeing(seed, weather)
        world.run(2_000)
        return world.digest, world.step_count, world.now_ns

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_the_same_seed_takes_the_same_steps_in_another_process() -> None:
    """Hash randomisation, memory addresses and the order of sets must not leak in."""
    command = [*replay_command(any_weather, 11).split()[1:]]
    root = Path(__file__).parents[2]
    path = os.path.relpath(Path(__file__).parent, root)
    command[-1] = path
    reports = []
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=root,
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": f"src{os.pathsep}tests/node",
            },
            capture_output=True,
            text=True,
            check=True,
        )
        reports.append(json.loads(done.stdout))
    assert reports[0] == reports[1]
    assert reports[0]["digest"] == any_weather(11).digest
    assert reports[0]["outcome"] == "held"


def test_every_crash_point_leaves_the_counter_right() -> None:
    """Crash before and after each record, one at a time: no place is left to chance."""
    calm = counting(0)
    assert calm.run(1000, until=is_answered)
    points = 2 * calm.persist_count(COUNTER)
    assert points == 2 * COUNT
    for point in range(points):
        world = counting(0, checkers=[Honest()], crash_points={COUNTER: {point}})
        assert world.run(2000, until=is_answered), f"crash point {point}"
        assert world.crash_count == 1
        assert world.decided(CLIENT) == [TOTAL]


class Forgetful(Counter):
    """Answers before it has persisted."""

    def handle(self, event: Event) -> list[Effect]:
        return sorted(super().handle(event), key=lambda effect: isinstance(effect, Persist))


class Careless(Counter):
    """Does not know what it has counted already."""

    def handle(self, event: Event) -> list[Effect]:
        self._seen.clear()
        return super().handle(event)


def careless(seed: int, kind: type[Counter]) -> World:
    builds = {COUNTER: kind, CLIENT: lambda _: Client(COUNTER, COUNT)}
    weather = Weather(repeat_probability=0.2, loss_probability=0.1, crash_probability=0.1)
    world = World(builds, seed, weather, messages=MESSAGES, checkers=[Honest()])
    world.run(2_000, until=is_answered)
    return world


def forgetful_counter(seed: int) -> World:
    return careless(seed, Forgetful)


def careless_counter(seed: int) -> World:
    return careless(seed, Careless)


@pytest.mark.parametrize("simulation", [forgetful_counter, careless_counter])
def test_a_broken_counter_is_found_and_the_report_says_how_to_replay(simulation: Any) -> None:
    """A simulator that never finds anything proves nothing."""
    with pytest.raises(Violation) as found:
        sweep(simulation, range(50))
    text = str(found.value)
    assert "seed=" in text
    assert "commit=" in text
    assert f"python -m veilgrid.sim test_world:{simulation.__name__} --seed " in text


def test_the_replay_of_a_failing_seed_fails_and_says_so() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "veilgrid.sim", "test_world:forgetful_counter"),
            *("--seed", "1", "--import-path", "tests/simulation", "--import-path", "tests/node"),
        ],
        cwd=root,
        env={**os.environ, "PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["outcome"] == "violated"


class Talker:
    """Say numbers to the other one, note what is heard and when a timer fires."""

    def __init__(self, to: NodeId, count: int) -> None:
        self._to, self._count = to, count
        self.heard: list[int] = []
        self.fired: list[str] = []

    def handle(self, event: Event) -> list[Effect]:
        match event:
            case TimerFired("start"):
                return [Send(self._to, Vote(number, 0)) for number in range(self._count)]
            case TimerFired(name):
                self.fired.append(name)
            case Received(_, Vote(number)):
                self.heard.append(number)
        return []


def heard(weather: Weather, seed: int = 5, count: int = 400) -> list[int]:
    builds = {A: lambda _: Talker(B, count), B: lambda _: Talker(A, 0)}
    world = World(builds, seed, weather, messages=MESSAGES)
    assert world.run(100_000)
    return world.machine(B).heard


def test_each_kind_of_weather_does_what_it_says() -> None:
    slow = dataclasses.replace(CALM, delay_min_ns=1000, delay_max_ns=1000)
    everything = list(range(400))
    assert heard(slow) == everything
    lossy = heard(dataclasses.replace(slow, loss_probability=0.3))
    assert 200 < len(lossy) < 360
    assert lossy == sorted(lossy)
    repeated = heard(dataclasses.replace(slow, repeat_probability=0.3))
    assert 440 < len(repeated) < 600
    assert sorted(set(repeated)) == everything
    mixed = heard(dataclasses.replace(slow, reorder_probability=0.3))
    assert mixed != everything
    assert sorted(mixed) == everything


def test_a_partition_separates_its_sides_and_nothing_else() -> None:
    builds = {name: lambda _, name=name: Agreement(name, NAMES, 1) for name in NAMES}
    world = World(builds, 1, messages=MESSAGES)
    world.partition(NAMES[:2], NAMES[2:])
    assert world.run(10_000)
    assert not any(world.decided(name) for name in NAMES)
    world.partition()
    for name in NAMES:
        world.crash(name)
        world.restart(name)
    assert world.run(10_000)
    assert all(world.decided(name) for name in NAMES)


def test_partitions_of_the_weather_come_and_go() -> None:
    weather = Weather(partition_probability=0.5)
    blocked = 0
    for seed in range(20):
        world = counting(seed, weather)
        assert world.run(20_000, until=is_answered)
        blocked += world.now_ns > 10**9
    assert 0 < blocked < 20


def test_only_the_core_hears_each_other_after_healing() -> None:
    world = agreeing(1, rounds=3)
    world.crash(NAMES[3])
    world.heal(core=NAMES[:3])
    assert world.run(10_000)
    assert world.machine(NAMES[3]) is None
    asking = World({A: lambda _: Asker(B, 3, 10), B: lambda _: Answerer()}, 1, messages=MESSAGES)
    asking.heal(core=[A])
    assert asking.run(1000)
    assert asking.decided(A) == []


def test_timers_of_a_former_life_and_replaced_timers_do_not_fire() -> None:
    class Sleeper(Talker):
        def handle(self, event: Event) -> list[Effect]:
            super().handle(event)
            if event == TimerFired(START):
                return [SetTimer("a", 1000), SetTimer("b", 2000), SetTimer("a", 3000)]
            return []

    world = World({A: lambda _: Sleeper(B, 0)}, 1)
    world.run(1)
    world.crash(A, down_ns=500)
    assert world.run(100)
    assert world.now_ns == 3500
    assert world.machine(A).fired == ["b", "a"]


def test_what_a_former_life_computed_does_not_come_back() -> None:
    class Thinker(Talker):
        def handle(self, event: Event) -> list[Effect]:
            match event:
                case TimerFired("start"):
                    return [Compute("job", abs, (-1,))]
                case Computed():
                    return [Decide(1)]
            return []

    world = World({A: lambda _: Thinker(B, 0)}, 1)
    world.run(1)
    world.crash(A)
    world.restart(A)
    assert world.run(100)
    assert world.decided(A) == [1]


def test_the_digest_covers_what_was_said_and_not_only_that_it_was() -> None:
    class Sayer(Talker):
        def handle(self, event: Event) -> list[Effect]:
            return [Send(B, Vote(1, self._count))] if event == TimerFired(START) else []

    def digest(value: int) -> str:
        world = World({A: lambda _: Sayer(B, value), B: lambda _: Talker(A, 0)}, 1)
        world.run(100)
        return world.digest

    assert digest(1) == digest(1) != digest(2)


def test_skewed_clocks_run_at_their_own_rate() -> None:
    class Clock(Talker):
        def handle(self, event: Event) -> list[Effect]:
            return [SetTimer("tick", 10**9)] if event == TimerFired(START) else [Decide(1)]

    times = set()
    for seed in range(10):
        world = World({A: lambda _: Clock(B, 0)}, seed, Weather(clock_skew=0.2))
        world.run(10)
        assert 0.8e9 <= world.now_ns <= 1.2e9
        times.add(world.now_ns)
    assert len(times) == 10


def test_no_more_nodes_are_down_than_the_weather_allows() -> None:
    weather = Weather(step_crash_probability=0.2, crashed_max=2)
    world, most = agreeing(1, weather, rounds=10**6), 0
    for _ in range(2000):
        world.run(1)
        most = max(most, sum(world.machine(name) is None for name in NAMES))
    assert most == 2
    assert world.crash_count > 3


def test_a_receiver_gets_its_own_copy_of_a_message() -> None:
    """On a real wire nobody can change what somebody else holds."""
    payload = bytearray(b"before")
    got: list[Any] = []

    class Sender(Talker):
        def handle(self, event: Event) -> list[Effect]:
            return [Send(B, Ping(1, payload))] if event == TimerFired(START) else []

    class Receiver(Talker):
        def handle(self, event: Event) -> list[Effect]:
            if isinstance(event, Received):
                got.append(event.message)
            return []

    world = World({A: lambda _: Sender(B, 0), B: lambda _: Receiver(A, 0)}, 1, messages=MESSAGES)
    world.run(100)
    payload[:] = b"after!"
    assert bytes(got[0].payload) == b"before"


def test_canaries_are_found_in_every_form_and_not_by_chance() -> None:
    for value in (
        1234567890123,
        -77777777777,
        2**100 + 12345,
        3.14159265,
        "meter-4711",
        b"\x01" * 9,
    ):
        for form in canary_forms(value):
            checker = NoSecretOnWire({"planted": value})
            checker.sent(A, B, Vote(1, 1), b"harmless " * 20)
            with pytest.raises(Violation, match="canary planted left a for b in a Vote"):
                checker.sent(A, B, Vote(1, 1), b"prefix" + form + b"suffix")
    for short in ("abc", b"abc", 7, -70_000):
        with pytest.raises(InvariantError, match="told from chance"):
            canary_forms(short)


def test_a_canary_in_a_message_is_found_by_the_world_and_not_printed() -> None:
    canary = 987654321987
    world = agreeing(1, checkers=[NoSecretOnWire({"reading": canary})])
    world.post(NAMES[0], Received(NAMES[1], Vote(0, 1)))
    world.run(100)

    class Leaker(Talker):
        def handle(self, _event: Event) -> list[Effect]:
            return [Send(B, Vote(1, canary))]

    checkers = [NoSecretOnWire({"reading": canary})]
    leaking = World({A: lambda _: Leaker(B, 0)}, 1, checkers=checkers)
    with pytest.raises(Violation) as found:
        leaking.run(10)
    assert "reading" in str(found.value)
    assert str(canary) not in str(found.value)


def test_disagreement_and_lost_promises_are_violations() -> None:
    agree = Agree(key=lambda outcome: outcome[0], value=lambda outcome: outcome[1], honest=[A, B])
    agree.decided(A, (1, "x"))
    agree.decided(NodeId("liar"), (1, "y"))
    agree.decided(B, (2, "y"))
    with pytest.raises(Violation, match="a and b decided differently about 1"):
        agree.decided(B, (1, "y"))
    durable = Durability(promise=lambda outcome: outcome, evidence=lambda record: record.number)
    durable.decided(A, 1)
    durable.restarted(A, (Add(1, 5),))
    with pytest.raises(Violation, match="a lost 1 promised"):
        durable.restarted(A, ())


def test_a_bug_in_a_machine_is_reported_with_its_seed() -> None:
    def buggy(seed: int) -> World:
        class Bug:
            def handle(self, _event: Event) -> list[Effect]:
                raise InvariantError("violated: machines work")

        world = World({A: lambda _: Bug()}, seed)
        world.run(10)
        return world

    with pytest.raises(Violation, match=r"machines work\n  seed=3 "):
        sweep(buggy, [3])


def test_the_simulator_takes_fifty_thousand_steps_a_second() -> None:
    """Nights are short: steps not simulated are faults not found. Best of five tries."""

    def rate() -> float:
        world = agreeing(1, rounds=500)
        began = time.process_time()
        world.run(10**6)
        return world.step_count / (time.process_time() - began)

    assert max(rate() for _ in range(5)) > 50_000
