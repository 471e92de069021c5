"""Sealed days in any weather, with losses, a corrupt party and a lying site. A script for many.

    python -m tests.roles.sealed.sealed_fuzz --seeds 1000
    python -m tests.roles.sealed.sealed_fuzz --first 4711 --seeds 1    replays one, and tells of it

Messages take random times and come twice or out of order. Then

1. every honest machine ends, and says how;
2. a day on which all are honest ends accepted, with nobody left out and the cost of ``central``,
   also if a process was killed and started again;
3. whoever is named by more than ``degree`` parties, or left out, is the liar;
4. a plan that is accepted passes a check from the true data.
"""

import argparse
import heapq
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from veilgrid.admm.reference import central
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits, flows
from veilgrid.machine import Event, NodeId, Received, TimerFired
from veilgrid.mpc.field import PRIME
from veilgrid.mpc.message import Said, Sealed
from veilgrid.roles.sealed.keys import PAYER_NODE, SITES
from veilgrid.roles.sealed.message import DayEnded, Stopped
from veilgrid.roles.sealed.sites_kept import SiteOutcome
from veilgrid.roles.sealed.stopping import signed

from .sealed_days import Change, LiarGroup, small
from .sealed_world import World

HOURS_MAX = 12
"""Simulated; who has not ended by then waits for ever."""

KINDS = ("weather", "restart", "party", "site", "both")
PLAIN, TIGHT = small(1), small(2, rating=0.55, low=0.97)
DAYS = {name: (one.day(), Limits.of(one.network)) for name, one in (("p", PLAIN), ("t", TIGHT))}
EDGES = (0, 1, -1, 2**30, 2**36, -(2**38), 2**46, 2**62, -(2**77), 2**79, 2**100, PRIME // 2)
NOISE = (b"", b"\xc1", msgspec.msgpack.encode({}), msgspec.msgpack.encode({"missing": [[1, "x"]]}))


def bent(value: Any, rng: random.Random) -> Any:
    """Return something else of the same type, all the way down."""
    match value:
        case bool():
            return not value
        case int():
            return rng.choice([-1, 0, 1, value + 1, value - 1, 2**63 - 1, -(2**63), 10**6])
        case bytes():
            longer = [value[:-1], value + b"\0", bytes(len(value)), rng.randbytes(len(value))]
            return rng.choice([*NOISE, *longer])
        case str():
            return rng.choice(["", "party-1", "party-3", "000001 bid", "-1 bid", value + " "])
        case list() | tuple():
            inner = [bent(one, rng) if rng.random() < 2 / len(value) else one for one in value]
            return type(value)(rng.choice([[], [*value, *value], value[:-1], inner]))
        case dict():
            chosen = rng.choice(list(value)) if value else None
            return {key: bent(one, rng) if key == chosen else one for key, one in value.items()}
        case msgspec.Struct():
            name = rng.choice(value.__struct_fields__)
            return msgspec.structs.replace(value, **{name: bent(getattr(value, name), rng)})
    return value


@dataclass
class Corrupt:
    """What a corrupt party makes of what it says."""

    rng: random.Random
    mode: str = ""
    share: float = 0.0
    said: list[Any] = field(default_factory=list)
    victim: str = ""

    def __post_init__(self) -> None:
        self.mode = self.rng.choice(["bend", "bend", "repeat", "mix", "withhold", "delay"])
        self.share = self.rng.choice([0.001, 0.01, 0.1, 1.0])

    def make(self, message: Any, to: NodeId) -> tuple[Any, int]:
        """Return what is sent, if anything, and how much later."""
        if self.mode == "starve" and to == self.victim and isinstance(message, Said | Sealed):
            is_hit = self.rng.random() < 3.0 * self.share
            return (None if self.rng.random() < 0.5 else message), 20 * 10**9 if is_hit else 0
        self.said.append(message)
        if self.rng.random() >= self.share:
            return message, 0
        match self.mode:
            case "bend":
                other = bent(message, self.rng)
                try:  # What no driver would decode does not arrive.
                    octets = msgspec.msgpack.encode(other)
                    return msgspec.msgpack.decode(octets, type=type(message)), 0
                except (msgspec.MsgspecError, OverflowError):
                    return message, 0
            case "repeat":
                like = [one for one in self.said[-2000:] if type(one) is type(message)]
                return self.rng.choice(like), 0
            case "mix":
                return self.rng.choice(self.said[-2000:]), 0
            case "withhold":
                return None, 0
            case "linger":  # About as long as others wait.
                return message, self.rng.randrange(10, 60) * 10**9
            case "slander":
                return message, 0
            case _:
                return message, round(self.rng.expovariate(1.0 / 30e9))


def lie_of(rng: random.Random, kinds: list[str]) -> Change:
    """Return a site that sends other numbers in some tasks now and then, or nothing."""
    share, width = rng.choice([0.05, 0.3, 1.0]), rng.choice([1, 3, 1000])

    def lie(kind: str, _iteration: int, own: list[int]) -> list[int] | None:
        if kind not in kinds or rng.random() >= share:
            return own
        if rng.random() < 0.1:
            return None
        out = list(own)
        for place in rng.sample(range(len(own)), min(width, len(own))):
            near = out[place] + rng.choice([1, -1]) * 2 ** rng.randrange(60)
            out[place] = rng.choice([*EDGES, near, -out[place]])
        return out

    return lie


@dataclass
class Storm(World):
    """A day with delays, and what its seed has drawn against it."""

    heap: list[tuple[int, int, NodeId, Event, int]] = field(default_factory=list)
    count: int = 0
    corrupt: NodeId | None = None
    liar: int | None = None
    kill_at: int | None = None
    mode: str = ""
    is_disputed: bool = False

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.kind = "party" if self.mode else self.rng.choice(KINDS)
        name = self.rng.choice(["p", "p", "p", "t"])
        self.day, self.limits = DAYS[name]
        self.mean_ns = self.rng.choice([1e5, 1e7, 1e8])
        self.life: Counter[NodeId] = Counter()
        self.due: dict[tuple[NodeId, str], int] = {}
        self.victim = self.rng.choice([NodeId("party-1"), NodeId("party-2"), SITES])
        self.fallen: Any = None
        if self.kind in ("party", "both"):
            self.corrupt = NodeId(f"party-{self.rng.randint(1, 3)}")
        if self.kind in ("site", "both"):
            self.liar = self.rng.randint(1, 4)
        if self.kind == "restart":
            self.kill_at = self.rng.randrange(4000)
        self.party = Corrupt(self.rng)
        if self.mode:
            self.party.mode, self.party.share = self.mode, self.rng.choice([0.003, 0.03, 0.3])
            self.party.victim = NodeId(f"party-{self.rng.randint(1, 3)}")
        super().__post_init__()
        self.lies_in: list[str] = []
        if self.liar is not None:
            kinds = ["bids", "wish", "answer", "regret", "certificate", "challenge"]
            self.lies_in = self.rng.sample(kinds, 2)
            self.cast.group.__class__ = LiarGroup
            self.cast.group.lies = {self.liar: lie_of(self.rng, self.lies_in)}  # type: ignore[attr-defined]

    @property
    def story(self) -> str:
        """What the seed has drawn, in short."""
        told = {"party": self.corrupt, "site": self.liar, "killed": self.kill_at}
        more = {name: one for name, one in told.items() if one is not None}
        mode = f" {self.party.mode} {self.party.share}" if self.corrupt else ""
        return f"{self.kind} {more}{mode}, {self.day.interval_count} intervals"

    def post(self, to: NodeId, event: Event) -> None:
        if not isinstance(event, Received):
            self._later(to, event, 0)
            return
        sender, message, more_ns = event.sender, event.message, 0
        if PAYER_NODE in (sender, to):
            self._later(to, event, 1000)  # Nothing drawn: seeds are older than the payer.
            return
        if sender == self.corrupt:
            message, more_ns = self.party.make(message, to)
            if self.mode == "slander" and isinstance(message, Said):
                self._slander(sender)
            if message is None:
                return
        for _ in range(1 + (self.rng.random() < 0.01)):
            delay_ns = self.rng.expovariate(1.0 / self.mean_ns)
            if self.rng.random() < 0.01:
                delay_ns += self.rng.uniform(0.0, 1e9)
            self._later(to, Received(sender, message), round(delay_ns) + more_ns)

    def _slander(self, name: NodeId) -> None:
        """Say that somebody is silent, to some; then go on as if nothing were."""
        if self.rng.random() >= self.party.share / 30.0:
            return
        liar, rng = self.cast.machines[name], self.rng
        parties = [str(one) for one in liar.agreement.parties]  # type: ignore[attr-defined]
        culprits = [one for one in parties if one != name and rng.random() < 0.6]
        word = Stopped(
            liar.agreement.day,  # type: ignore[attr-defined]
            max(0, liar.course.task.number + rng.choice([0, 0, 0, -1, 1])),  # type: ignore[attr-defined]
            "silence in a round",
            culprits,
            liar.agreement.attempt,  # type: ignore[attr-defined]
            rng.random() < 0.7,
            is_silence=rng.random() < 0.7,
        )
        for party in parties:
            if party != name and rng.random() < 0.7:
                told = Received(name, signed(word, liar._signer))  # type: ignore[attr-defined]
                self._later(NodeId(party), told, round(rng.expovariate(1.0 / self.mean_ns)))

    def set_timer(self, name: NodeId, timer: str, delay_ns: int) -> None:
        self.due[name, timer] = self.count
        self._later(name, TimerFired(timer), delay_ns)

    def _later(self, to: NodeId, event: Event, delay_ns: int) -> None:
        at_ns = self.now_ns + delay_ns
        heapq.heappush(self.heap, (at_ns, self.count, to, event, self.life[to]))
        self.count += 1

    def step(self) -> bool:
        if not self.heap or self.now_ns > HOURS_MAX * 3600 * 10**9:
            return False
        self.now_ns, number, to, event, life = heapq.heappop(self.heap)
        if event == TimerFired("back"):
            (self.restart_sites if self.victim == SITES else self.restart)(self.fallen)
            return True
        is_own = not isinstance(event, Received)
        if to not in self.machines or (is_own and life != self.life[to]):
            return True
        if isinstance(event, TimerFired) and self.due.get((to, event.name), number) != number:
            return True
        self.handled += PAYER_NODE not in (to, getattr(event, "sender", ""))
        self.carry_out(to, self.machines[to].handle(event))
        if self.kill_at is not None and self.handled >= self.kill_at:
            self.kill_at, self.fallen = None, self.kill(self.victim)
            self.life[self.victim] += 1
            self._later(SITES, TimerFired("back"), self.rng.randrange(8 * 10**9))
        return True

    def run(self, *, until: int = 1 << 40) -> None:
        """Go on until every machine has ended, or nothing happens any more."""
        with self.cast.pool:
            while self.handled < until and not self._have_ended() and self.step():
                pass

    def _have_ended(self) -> bool:
        names = [name for name in self.cast.machines if name != self.corrupt]
        return all(self.outcomes.get(name) for name in names)

    # -- what has to hold -----------------------------------------------------------------------

    def faults(self) -> list[str]:
        """Return what should not have happened."""
        honest = [name for name in self.cast.machines if name != self.corrupt]
        waiting = [str(name) for name in honest if not self.outcomes.get(name)]
        found = [f"{' and '.join(waiting)} never ended"] if waiting else []
        named = Counter[str]()
        for name in honest:
            for stopped in self.outcomes.get(name, []):
                if isinstance(stopped, Stopped):
                    named.update({*stopped.culprits} if name != SITES else {})
        degree = self.cast.group.agreement.degree
        blamed = {name for name, count in named.items() if count > degree}
        found += [f"{name} was named" for name in blamed - {self.corrupt}]
        for outcome in self.outcomes.get(SITES, []):
            found += self._wrong(outcome)
        return found

    def _wrong(self, outcome: Any) -> list[str]:
        if isinstance(outcome, Stopped):
            wrong = {*outcome.culprits} - {self.corrupt}
            is_told = bool(outcome.culprits) or str(self.corrupt) in outcome.reason
            self.is_disputed = not outcome.culprits
            if self.corrupt is None or wrong or not is_told:
                return [f"the day stopped: {outcome.reason}, {outcome.culprits}"]
            return []
        out, public = [], outcome.public
        left = {int(bus) for bus in public["excluded"]}
        if left - {self.liar}:
            out.append(f"left out: {public['excluded']}")
        if public["certificate"]:
            out += self._unsound(outcome, left)
        if self.corrupt is None and self.liar is None and public["status"] != "converged":
            out.append(f"ended as {public['status']}")
        return out

    def _unsound(self, outcome: SiteOutcome, left: set[int]) -> list[str]:
        """Check an accepted plan from the true data of who kept to it."""
        out, day, certificate = [], self.day, outcome.public["certificate"]
        plan = list(day.uncontrolled)
        for bus, octets in outcome.setpoints.items():
            plan[bus] = np.frombuffer(octets, "<f8")
        for bus, (site, x) in enumerate(zip(day.sites, plan, strict=True)):
            rows = site.matrix @ x
            worst = max(
                np.max(site.lower - x, initial=0.0),
                np.max(x - site.upper, initial=0.0),
                np.max(site.row_lower - rows, initial=0.0),
                np.max(rows - site.row_upper, initial=0.0),
            )
            if worst > 1e-6 and bus != self.liar and bus not in left:
                out.append(f"site {bus} breaks a limit of its own by {worst}")
        if "bids" in self.lies_in:
            return out  # What it committed to is not its true data.
        sites = list(zip(day.sites, plan, strict=True))
        demand_p = np.array([site.demand_p(x) for site, x in sites])
        demand_q = np.array([site.demand_q(x) for site, x in sites])
        if not self.limits.are_absent:
            excess = self.limits.excess(flows(self.limits.tree, demand_p, demand_q)).max()
            if excess > 1e-6:
                out.append(f"a row is exceeded by {excess}")
        cost = day.cost(plan)
        if abs(certificate["cost"] - cost) > 1e-5 * max(abs(cost), 1.0):
            out.append(f"certified cost {certificate['cost']}, true {cost}")
        if self.liar is None and outcome.public["status"] == "converged":
            best = optimum(day, self.limits)
            if abs(cost - best) > 1e-4 * abs(best):
                out.append(f"cost {cost}, optimum {best}")
        paid = sum(outcome.payments.values())
        owed = certificate["exchange_cost"] + certificate["rent"]
        if abs(paid - owed) > 2.0 * abs(certificate["gap"]) + 1e-6 * max(abs(owed), 1.0):
            out.append(f"sites pay {paid}, the exchange and rows take {owed}")
        return out


_OPTIMA: dict[int, float] = {}


def optimum(day: Day, limits: Limits) -> float:
    """Return the least cost of a day."""
    if id(day) not in _OPTIMA:
        _OPTIMA[id(day)] = day.cost(central(day, limits).setpoints)
    return _OPTIMA[id(day)]


DISPUTED = Counter[bool]()
"""How many days stopped without a name, because two parties accuse each other."""


def trial(seed: int, tell: Callable[[str], None] = lambda _: None, mode: str = "") -> list[str]:
    """Run one day; return what should not have happened."""
    storm = Storm(seed, mode=mode)
    storm.run()
    ends = {
        str(name): [
            (one.reason, one.culprits) if isinstance(one, Stopped) else one.public["status"]
            for one in outcomes
            if isinstance(one, Stopped | DayEnded | SiteOutcome)
        ]
        for name, outcomes in storm.outcomes.items()
    }
    tell(f"seed {seed}: {storm.story}: {storm.handled} events, {storm.now_ns / 1e9:.0f} s, {ends}")
    faults = storm.faults()
    DISPUTED.update([storm.is_disputed])
    return faults


def main() -> int:
    """Try seeds; say which break what."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--seeds", type=int, default=200)
    options.add_argument("--first", type=int, default=0)
    options.add_argument("--mode", choices=["linger", "starve", "slander"], default="")
    chosen = options.parse_args()
    is_one, broken = chosen.seeds == 1, 0
    for seed in range(chosen.first, chosen.first + chosen.seeds):
        faults = trial(seed, print if is_one else lambda _: None, chosen.mode)
        broken += bool(faults)
        for fault in faults:
            print(f"seed {seed}: {fault}", flush=True)
        if seed % 20 == 19:
            print(f"{seed + 1 - chosen.first} days, {broken} with a fault", flush=True)
    disputed = DISPUTED[True]
    print(f"{chosen.seeds} sealed days, {broken} with a fault, {disputed} ended in a dispute")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
