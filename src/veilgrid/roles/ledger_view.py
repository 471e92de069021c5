"""Following the ledger of a day: records that f + 1 validators agree on, folded into a view."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from veilgrid.ledger.operation import (
    Absent,
    Admit,
    Announce,
    Approve,
    Assigned,
    Bid,
    CloseBids,
    CloseDay,
    Done,
    Fixed,
    Late,
    OpenDay,
    ProposeIteration,
    ProposeSettlement,
    Refused,
    Result,
    RevealBeacon,
    SealBeacon,
    Settled,
    Solve,
    Verdict,
    decode_operation,
    decode_result,
    subject_of,
)
from veilgrid.ledger.service import Record
from veilgrid.roles.ledger_message import Bulletin

AHEAD_MAX: Final = 20_000
"""Records held beyond the first one that is not agreed on yet."""
PART_MAX: Final = 512
"""Records in one bulletin."""

_record = msgspec.msgpack.Decoder(Record).decode


class Follower:
    """Believe a record when f + 1 validators say it stands at its position."""

    def __init__(self, validators: Iterable[str]) -> None:
        self._validators = frozenset(validators)
        self._needed = (len(self._validators) - 1) // 3 + 1
        self.position = 0
        self._said: dict[int, dict[str, bytes]] = {}

    def take(self, sender: str, bulletin: Bulletin) -> list[Record]:
        """Count one bulletin; return the records that are believed now, in order."""
        if sender not in self._validators or len(bulletin.records) > PART_MAX:
            return []
        for position, octets in enumerate(bulletin.records, bulletin.first):
            if self.position <= position < self.position + AHEAD_MAX:
                self._said.setdefault(position, {})[sender] = octets
        found: list[Record] = []
        while (agreed := self._agreed(self.position)) is not None:
            del self._said[self.position]
            self.position += 1
            try:
                found.append(_record(agreed))
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
        return found

    def _agreed(self, position: int) -> bytes | None:
        said = list(self._said.get(position, {}).values())
        for octets in said:
            if said.count(octets) >= self._needed:
                return octets
        return None


def bulletins(records: Sequence[bytes], first: int, parts_max: int = 8) -> list[Bulletin]:
    """Cut records from a position on into bulletins."""
    stop = min(len(records), first + parts_max * PART_MAX)
    return [
        Bulletin(start, tuple(records[start : min(start + PART_MAX, stop)]))
        for start in range(first, stop, PART_MAX)
    ]


@dataclass(slots=True)
class TaskView:
    """A task of the present step as the ledger has it."""

    problem: bytes
    workers: tuple[str, ...]
    solutions: dict[str, bytes] = field(default_factory=dict)
    accepted: str = ""
    attempt: int = 1

    @property
    def solution(self) -> bytes:
        """Digest of the accepted solution; empty before."""
        return self.solutions.get(self.accepted, b"")


@dataclass(slots=True)
class DayView:
    """A day as its records tell it; everybody who follows sees the same.

    Attributes
    ----------
    iteration
        Present step, 1-based.
    dropped
        Workers replaced, with why, in order.
    admitted, refused
        Who has accepted evidence of attestation, and whose is refused, with why.
    past
        Tasks of the last steps, by step.
    """

    day: str
    is_open: bool = False
    is_bidding: bool = True
    is_closed: bool = False
    sites: tuple[str, ...] = ()
    bids: dict[str, bytes] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)
    seals: set[str] = field(default_factory=set)
    reveals: set[str] = field(default_factory=set)
    given_up: set[str] = field(default_factory=set)
    beacon: bytes = b""
    iteration: int = 1
    tasks: dict[str, TaskView] = field(default_factory=dict)
    proposal: ProposeIteration | ProposeSettlement | None = None
    last: ProposeIteration | None = None
    settlement: ProposeSettlement | None = None
    refusals: int = 0
    dropped: list[tuple[str, str]] = field(default_factory=list)
    past: dict[int, dict[str, TaskView]] = field(default_factory=dict)
    admitted: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def present(self) -> tuple[str, ...]:
        """Sites that are not excluded."""
        return tuple(site for site in self.sites if site not in self.excluded)

    def solution(self, step: int, site: str) -> bytes:
        """Digest of the accepted solution of a recent step; empty where there is none."""
        tasks = self.tasks if step == self.iteration else self.past.get(step, {})
        return tasks[site].solution if site in tasks else b""

    def fold(self, record: Record) -> None:
        """Take one record into account; refused operations change nothing."""
        operation = decode_operation(record.operation)
        if operation is None or getattr(operation, "day", None) != self.day:
            return
        result = decode_result(record.result)
        if isinstance(result, Refused):
            return
        match operation:
            case OpenDay(sites=sites):
                self.is_open, self.sites = True, sites
            case Bid(digest=digest):
                self.bids[record.client] = digest
            case CloseBids():
                self.is_bidding = False
                silent = [site for site in self.present if site not in self.bids]
                self.excluded |= dict.fromkeys(silent, "no bid")
            case SealBeacon():
                self.seals.add(record.client)
            case RevealBeacon():
                self.reveals.add(record.client)
                self._fixed(result)
            case CloseDay():
                self.is_closed = True
            case _:
                self._fold_step(record.client, operation, result)

    def _fixed(self, result: Result) -> None:
        if isinstance(result, Fixed):
            self.beacon = result.beacon

    def _fold_step(self, client: str, operation: object, result: Result) -> None:
        match operation, result:
            case Announce(digest=digest), Assigned(workers=workers):
                self.tasks[client] = TaskView(digest, workers)
            case Solve(site=site, solution=solution), Done():
                self.tasks[site].solutions[client] = solution
            case ((Verdict(site=site) | Late(site=site)), Settled("solution", worker)):
                self.tasks[site].accepted = worker
            case ((Verdict(site=site) | Late(site=site)), Settled(why, worker, _, workers)):
                task = self.tasks[site]
                task.workers = workers
                task.attempt += 1
                task.solutions.pop(worker, None)
                self.dropped.append((worker, why))
            case Absent(who=who), Settled("site"):
                self._exclude(who, "absent")
            case Admit(who=who), Settled("admission", _, True):
                self.admitted.add(who)
            case Admit(who=who, reason=reason), Settled("admission"):
                self.admitted.discard(who)
                self.refused[who] = reason
                if who in self.sites:
                    self.bids.pop(who, None)
                    self._exclude(who, "evidence refused")
            case Absent(who=who), (Settled() | Fixed()):
                self.given_up.add(who)
                self._fixed(result)
            case (ProposeIteration() | ProposeSettlement()) as proposal, Done():
                self.proposal = proposal
            case Approve(), Settled():
                self._approved(result)

    def _exclude(self, site: str, why: str) -> None:
        self.excluded[site] = why
        self.tasks.pop(site, None)
        self.proposal = None

    def _approved(self, result: Settled) -> None:
        proposal, self.proposal = self.proposal, None
        if proposal is None or subject_of(proposal).hex() != result.subject:
            return
        if not result.is_accepted:
            self.refusals += 1
        elif isinstance(proposal, ProposeIteration):
            self.past = {s: t for s, t in self.past.items() if s >= self.iteration - 1}
            self.past[self.iteration] = self.tasks
            self.iteration += 1
            self.tasks = {}
            self.last = proposal if proposal.is_last else None
        else:
            self.settlement = proposal
