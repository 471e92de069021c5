"""A sealed day whose machines keep journals, so that one can be killed and built anew."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
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
from veilgrid.roles.sealed.keys import PAYER_NODE, SITES
from veilgrid.roles.sealed.message import Wished
from veilgrid.roles.sealed.party import SealedParty
from veilgrid.roles.sealed.payer import Payer
from veilgrid.roles.sealed.sites import SiteGroup
from veilgrid.secret import SeededRandomness

from .sealed_days import cast_for, small

DAY = small(2).day()
LIMITS = Limits.of(DAY.network)
VICTIM = NodeId("party-2")


@dataclass
class World:
    """A day whose machines keep journals, so that one can be killed and built anew."""

    seed: int
    day: Day = DAY
    limits: Limits = LIMITS
    queue: "deque[tuple[NodeId, Event]]" = field(default_factory=deque)
    timers: dict[tuple[NodeId, str], int] = field(default_factory=dict)
    journals: dict[NodeId, list[Any]] = field(default_factory=dict)
    outcomes: dict[NodeId, list[Any]] = field(default_factory=dict)
    said: dict[tuple[NodeId, bytes, int], set[bytes]] = field(default_factory=dict)
    now_ns: int = 0
    handled: int = 0

    def __post_init__(self) -> None:
        self.cast = cast_for(self.day, self.limits, seed=self.seed)
        self.machines = dict(self.cast.machines)
        for name in self.machines:
            self.post(name, TimerFired(START))

    def step(self) -> bool:
        if not self.queue:
            if not self.timers:
                return False
            self.now_ns = min(self.timers.values())
            due = [key for key, at_ns in self.timers.items() if at_ns == self.now_ns]
            for key in due:
                del self.timers[key]
            self.queue.extend((name, TimerFired(timer)) for name, timer in due)
        name, event = self.queue.popleft()
        if name not in self.machines:
            return True
        self.handled += 1
        self.carry_out(name, self.machines[name].handle(event))
        return True

    def carry_out(self, name: NodeId, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(to, message):
                    self._note(name, message)
                    self.post(to, Received(name, message))
                case SetTimer(timer, delay_ns):
                    self.set_timer(name, timer, delay_ns)
                case Compute(job, kernel, arguments):
                    self.post(name, Computed(job, kernel(*arguments)))
                case Persist(record):
                    assert not isinstance(record, Wished) or name == SITES
                    self.journals.setdefault(name, []).append(record)
                case Decide(outcome):
                    self.outcomes.setdefault(name, []).append(outcome)

    def post(self, to: NodeId, event: Event) -> None:
        self.queue.append((to, event))

    def set_timer(self, name: NodeId, timer: str, delay_ns: int) -> None:
        self.timers[name, timer] = self.now_ns + delay_ns

    def _note(self, name: NodeId, message: Any) -> None:
        """Remember what was said to all in each round: nobody may say two things."""
        if type(message).__name__ == "Said":
            key = (name, message.session, message.round)
            self.said.setdefault(key, set()).add(message.shared)

    def kill(self, name: NodeId) -> Any:
        victim = self.machines.pop(name)
        self.timers = {key: at for key, at in self.timers.items() if key[0] != name}
        return victim

    def restart_sites(self, victim: SiteGroup) -> None:
        fresh = cast_for(self.day, self.limits, seed=self.seed).group
        self.machines[SITES] = SiteGroup(
            SITES,
            fresh.agreement,
            fresh.course,
            victim._sites,
            victim._alone,
            keys=victim._keys,
            randomness=SeededRandomness(98),
            executor=victim._executor,
            records=self.journals.get(SITES, []),
        )
        self.post(SITES, TimerFired(START))

    def restart_payer(self, victim: Payer) -> None:
        self.machines[PAYER_NODE] = Payer(
            PAYER_NODE,
            cast_for(self.day, self.limits, seed=self.seed).group.agreement,
            victim._unit,
            signer=victim._signer,
            randomness=SeededRandomness(97),
            records=self.journals.get(PAYER_NODE, []),
        )
        self.post(PAYER_NODE, TimerFired(START))

    def restart(self, victim: SealedParty | Payer) -> None:
        if isinstance(victim, Payer):
            self.restart_payer(victim)
            return
        again = SealedParty(
            victim.me,
            cast_for(self.day, self.limits, seed=self.seed).machines[victim.me].agreement,  # type: ignore[attr-defined]
            cast_for(self.day, self.limits, seed=self.seed).machines[victim.me].course,  # type: ignore[attr-defined]
            victim._shapes,
            victim._limits,
            box_key=victim._box_key,
            signer=victim._signer,
            verify_keys=victim._keys,
            randomness=SeededRandomness(99),
            records=self.journals.get(victim.me, []),
        )
        self.machines[victim.me] = again
        self.post(victim.me, TimerFired(START))

    def run(self, *, until: int = 1 << 40) -> None:
        while self.handled < until and not self.outcomes.get(SITES) and self.step():
            pass
