"""Simulations of the ledger by seed: any weather, one liar; then calm, and everybody is served.

Replay one with the command that a failing sweep prints, for example

    python -m veilgrid.sim ledger_runs:with_twins --seed 7 --import-path tests/ledger
"""

import random
from collections.abc import Callable
from typing import Any

from ledger_cast import CAST
from ledger_cast import honest as honest_replica
from ledger_world import (
    CLIENTS,
    REPLICAS,
    answered,
    checkers,
    execution,
    ledger_builds,
)

from veilgrid.ledger.message import MESSAGES
from veilgrid.ledger.replica import Replica
from veilgrid.machine import NodeId
from veilgrid.sim import Violation, Weather, World

SAFETY_STEPS = 3_000
LIVENESS_STEPS = 20_000


def ledger_world(
    adversary: str,
    seed: int,
    *,
    replica: Callable[..., Replica] = Replica,
    requests: int = 6,
    weather: Weather | None = None,
) -> World:
    """Safety in any weather beside one liar, then liveness for everybody honest."""
    rng = random.Random(seed)
    weather = weather or Weather.draw(rng)
    liars: dict[Any, Any] = {}
    honest = list(REPLICAS)
    if adversary != "honest":
        liar = REPLICAS[rng.choice([0, 0, 0, 1, 2, 3])]
        liars[liar] = lambda records: CAST[adversary](rng, liar, records)
        honest.remove(liar)
    builds = ledger_builds(requests, replica=replica, liars=liars)
    world = World(builds, seed, weather, messages=MESSAGES, checkers=checkers(honest))

    def is_served(world: World) -> bool:
        return answered(world, requests)

    world.run(SAFETY_STEPS, is_served)
    world.heal()
    start = world.step_count

    def is_settled(world: World) -> bool:
        return is_served(world) and len({execution(world, node) for node in honest}) == 1

    if not world.run(LIVENESS_STEPS, is_settled):
        steps = world.step_count - start
        stands = {node: execution(world, node) for node in honest}
        raise Violation(f"not everybody was served {steps} steps after the storm: {stands}")
    for client in CLIENTS:
        numbers = [o.number for o in world.decided(client)]
        if sorted(set(numbers)) != list(range(1, requests + 1)):
            raise Violation(f"{client} has answers {numbers}")
    for node in honest:
        _check_journal(world, node)
    return world


def _check_journal(world: World, node: NodeId) -> None:
    """Build the replica once more from its records: it must stand where it stands."""
    live: Any = world.machine(node)
    if live is None:
        return
    again = honest_replica(node, world.records(node))
    one, other = live.service, again.service
    if other.summary(other.moment()) != one.summary(one.moment()):
        raise Violation(f"the journal of {node} does not lead to its state")
    if (again.window.low, again.views.view) != (live.window.low, live.views.view):
        raise Violation(f"the journal of {node} does not lead to its watermark and view")


def with_all_honest(seed: int) -> World:
    return ledger_world("honest", seed)


def with_silent(seed: int) -> World:
    return ledger_world("silent", seed)


def with_tampering(seed: int) -> World:
    return ledger_world("tampering", seed)


def with_unsigned(seed: int) -> World:
    return ledger_world("unsigned", seed)


def with_two_faced(seed: int) -> World:
    return ledger_world("two-faced", seed)


def with_twins(seed: int) -> World:
    return ledger_world("twins", seed)


def with_stale(seed: int) -> World:
    return ledger_world("stale", seed)


def with_forging(seed: int) -> World:
    return ledger_world("forging", seed)


def with_covering_up(seed: int) -> World:
    return ledger_world("covering-up", seed)


def with_lying_checkpoint(seed: int) -> World:
    return ledger_world("lying-checkpoint", seed, requests=20)


def with_amnesic(seed: int) -> World:
    return ledger_world("amnesic", seed)


def with_repeating(seed: int) -> World:
    return ledger_world("repeating", seed)


def with_replaying(seed: int) -> World:
    return ledger_world("replaying", seed)


SIMULATIONS = [
    with_all_honest,
    with_silent,
    with_tampering,
    with_unsigned,
    with_two_faced,
    with_twins,
    with_stale,
    with_forging,
    with_covering_up,
    with_lying_checkpoint,
    with_amnesic,
    with_repeating,
    with_replaying,
]
