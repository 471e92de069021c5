"""The replicated state of days as values, and the ways in which it changes [ledger 9.2]."""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from veilgrid.ledger.admission import Admission
from veilgrid.ledger.operation import ProposeIteration, ProposeSettlement

SCORE_MAX: Final = 1 << 20
"""Reliability of a worker who never failed; everybody begins with half of it."""

replace = msgspec.structs.replace


class Performance(msgspec.Struct, frozen=True, array_like=True):
    """What is known of a worker: reliability up to ``SCORE_MAX``, and its usual time."""

    score: int = SCORE_MAX // 2
    elapsed_ms: int = 100

    @property
    def weight(self) -> int:
        """Its share of the draw: reliable and quick workers are drawn more often, none never."""
        return 1 + self.score // (10 + min(self.elapsed_ms, 100_000))

    def accepted(self, elapsed_ms: int) -> "Performance":
        """Return the performance after an accepted solution."""
        score = self.score + (SCORE_MAX - self.score) // 8
        return Performance(score, (7 * self.elapsed_ms + elapsed_ms) // 8)

    def late(self) -> "Performance":
        """Return the performance after a missing solution."""
        return Performance(self.score // 2, self.elapsed_ms)

    def wrong(self) -> "Performance":
        """Return the performance after a refused solution."""
        return Performance(0, self.elapsed_ms)


class Task(msgspec.Struct, frozen=True):
    """A site's problem of this iteration and what became of it."""

    problem: bytes
    workers: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    attempt: int = 0
    solutions: dict[str, bytes] = {}
    accepted: tuple[str, ...] = ()


class Day(msgspec.Struct, frozen=True):
    """A day under way; ``tasks`` are those of ``iteration``."""

    sites: tuple[str, ...]
    redundancy: int
    is_bidding: bool = True
    bids: dict[str, bytes] = {}
    excluded: dict[str, str] = {}
    seals: dict[str, bytes] = {}
    reveals: dict[str, bytes] = {}
    missing: tuple[str, ...] = ()
    beacon: bytes = b""
    iteration: int = 1
    tasks: dict[str, Task] = {}
    banned: tuple[str, ...] = ()
    proposal: ProposeIteration | ProposeSettlement | None = None
    last: ProposeIteration | None = None
    settlement: ProposeSettlement | None = None
    votes: dict[str, dict[str, bytes]] = {}
    rigid: tuple[str, ...] = ()
    admissions: dict[str, Admission] = {}

    @property
    def present(self) -> tuple[str, ...]:
        """Sites that take part."""
        return tuple(site for site in self.sites if site not in self.excluded)


class State(msgspec.Struct, frozen=True):
    """Everything that ``apply`` may depend on."""

    days: dict[str, Day] = {}
    closed: dict[str, bytes] = {}
    performance: dict[str, Performance] = {}
    convicted: dict[str, str] = {}


class Roles(msgspec.Struct, frozen=True):
    """Who may do what: names among clients and replicas of the configuration."""

    operator: str
    validators: tuple[str, ...]
    workers: tuple[str, ...] = ()
    is_attested: bool = False

    @property
    def quorum(self) -> int:
        """How many validators decide: 2f + 1 of 3f + 1."""
        return 2 * ((len(self.validators) - 1) // 3) + 1


def with_day(state: State, name: str, day: Day) -> State:
    """Put a day into the state."""
    return replace(state, days={**state.days, name: day})


def with_task(state: State, name: str, day: Day, site: str, task: Task) -> State:
    """Put a task of a day into the state."""
    return with_day(state, name, replace(day, tasks={**day.tasks, site: task}))


def performed(state: State, worker: str, change: Callable[[Performance], Performance]) -> State:
    """Change what is known of a worker."""
    held = state.performance[worker]
    return replace(state, performance={**state.performance, worker: change(held)})


def cast(day: Day, key: str, validator: str, ballot: bytes) -> tuple[Day, Mapping[str, bytes]]:
    """Count a ballot; the first one of a validator stands."""
    votes = {**day.votes.get(key, {})}
    votes.setdefault(validator, ballot)
    return replace(day, votes={**day.votes, key: votes}), votes


def forget(day: Day, key: str) -> Day:
    """Drop the ballots on a question."""
    return replace(day, votes={name: votes for name, votes in day.votes.items() if name != key})


def excluded(day: Day, who: str, why: str) -> Day:
    """Take a site out; what was computed with it is computed again."""
    tasks = {site: task for site, task in day.tasks.items() if site != who}
    excluded = {**day.excluded, who: why}
    return replace(day, excluded=excluded, tasks=tasks, proposal=None, votes={})
