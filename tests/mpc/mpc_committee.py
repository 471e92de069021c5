"""Run parties in one process, in order or with somebody who deviates."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from nacl.signing import SigningKey

from veilgrid.machine import Decide, Effect, Machine, NodeId, Received, Send, SetTimer, TimerFired
from veilgrid.mpc.party import Party, Program
from veilgrid.secret import SeededRandomness
from veilgrid.signature import canonical


class TestSigner:
    """Signs as veilgrid.signature does."""

    __test__ = False

    def __init__(self, number: int) -> None:
        self._key = SigningKey(bytes([number]) * 32)
        self.verify_key = bytes(self._key.verify_key)

    def sign(self, domain: str, payload: bytes) -> bytes:
        return self._key.sign(canonical(domain, payload)).signature


def names_of(n: int) -> tuple[NodeId, ...]:
    return tuple(NodeId(f"p{number}") for number in range(1, n + 1))


def parties_of(
    n: int, degree: int, program: Program | Callable[[int], Program], seed: int = 1, **more: Any
) -> dict[NodeId, Party]:
    names = names_of(n)
    signers = {name: TestSigner(number) for number, name in enumerate(names, 1)}
    keys = {name: signer.verify_key for name, signer in signers.items()}
    each = getattr(program, "per_party", False)
    return {
        name: Party(
            name,
            names,
            degree,
            program(number) if each else program,  # type: ignore[call-arg, arg-type]
            signer=signers[name],
            verify_keys=keys,
            randomness=SeededRandomness(seed * 100 + number),
            **more,
        )
        for number, name in enumerate(names, 1)
    }


def run(machines: dict[NodeId, Machine], *, timer_max: int = 50) -> dict[NodeId, Any]:
    """Deliver in order until nothing is left; then let the oldest timer fire."""
    queue: deque[tuple[NodeId, Any]] = deque((name, TimerFired("start")) for name in machines)
    timers: dict[tuple[NodeId, str], int] = {}
    decided: dict[NodeId, Any] = {}
    fired = 0
    while True:
        while queue:
            name, event = queue.popleft()
            _carry_out(name, machines[name].handle(event), queue, timers, decided)
        if all(name in decided for name in machines) or not timers or fired >= timer_max:
            return decided
        for name, timer in list(timers):
            del timers[name, timer]
            queue.append((name, TimerFired(timer)))
        fired += 1


def _carry_out(
    name: NodeId,
    effects: Iterable[Effect],
    queue: deque[tuple[NodeId, Any]],
    timers: dict[tuple[NodeId, str], int],
    decided: dict[NodeId, Any],
) -> None:
    for effect in effects:
        match effect:
            case Send(to, message):
                queue.append((to, Received(name, message)))
            case SetTimer(timer, delay_ns):
                timers[name, timer] = delay_ns
            case Decide(outcome):
                decided[name] = outcome
