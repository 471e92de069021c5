"""The replicated state of coordination days: integers only, every refusal a result [ledger 9].

``apply`` is a pure function of state, context and operation. Validators compute outside and submit
what they found; here it is only counted, to 2f + 1 of the validators.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from veilgrid.ledger.admission import REASON_LENGTH_MAX, Admission, counted
from veilgrid.ledger.message import Notary, digest_of, encode
from veilgrid.ledger.operation import (
    MONEY_MAX,
    NAME_LENGTH_MAX,
    REVEAL_LENGTH,
    SITE_COUNT_MAX,
    Absent,
    Admit,
    Announce,
    Approve,
    Assigned,
    Bid,
    CloseBids,
    CloseDay,
    Counted,
    Done,
    Evidence,
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
    is_digest,
    seal_of,
    subject_of,
)
from veilgrid.ledger.service import Context
from veilgrid.ledger.state import (
    Day,
    Performance,
    Roles,
    State,
    Task,
    cast,
    excluded,
    forget,
    performed,
    with_day,
    with_task,
)

_DAYS_MAX: Final = 8
_ROUNDS_MAX: Final = 4
"""So many times as there are workers a task is drawn for while all of them are late."""
_ELAPSED_MAX_MS: Final = 1 << 31

replace = msgspec.structs.replace


_encode_state = msgspec.msgpack.Encoder(order="deterministic").encode
_decode_state = msgspec.msgpack.Decoder(State).decode
_DONE: Final = Done()
Step = tuple[State, Result]


def refused(state: State, reason: str) -> Step:
    """Return that nothing changed, and why."""
    return state, Refused(reason)


@dataclass(frozen=True, slots=True)
class Coordination:
    """The application of the ledger.

    Attributes
    ----------
    roles
        The same on every replica.
    notary, keys
        Check evidence against the keys of the replicas.
    """

    roles: Roles
    notary: Notary
    keys: Mapping[str, bytes] = field(default_factory=dict)

    def genesis(self) -> State:
        """Return the state before anything happened."""
        return State(performance={worker: Performance() for worker in self.roles.workers})

    def encode(self, state: State) -> bytes:
        """Return the canonical octets of a state."""
        return _encode_state(state)

    def decode(self, octets: bytes) -> State:
        """Return the state that these octets encode."""
        return _decode_state(octets)

    def apply(self, state: State, context: Context, operation: bytes) -> tuple[State, bytes]:
        """Return the next state and the encoded result; no error, no fractions [ledger 9.1]."""
        decoded = decode_operation(operation)
        if decoded is None:
            return state, encode(Refused("not an operation"))
        following, result = _STEPS[type(decoded)](self, state, context, decoded)
        return following, encode(result)

    # -- days and bids ---------------------------------------------------------------------------

    def _open(self, state: State, context: Context, operation: OpenDay) -> Step:
        sites = operation.sites
        names = [operation.day, *sites]
        if context.client != self.roles.operator:
            return refused(state, "only the operator opens a day")
        if operation.day in state.days or operation.day in state.closed:
            return refused(state, "this day was opened before")
        if len(state.days) >= _DAYS_MAX:
            return refused(state, "too many days are open")
        if not 0 < len(set(sites)) == len(sites) <= SITE_COUNT_MAX:
            return refused(state, "sites must be named once each")
        if not all(0 < len(name) <= NAME_LENGTH_MAX for name in names):
            return refused(state, "a name is empty or too long")
        if not 0 <= operation.redundancy <= len(self.roles.workers):
            return refused(state, "more redundancy than workers")
        if not set(operation.rigid) <= set(sites):
            return refused(state, "a site without choice is no site of the day")
        day = Day(tuple(sorted(sites)), operation.redundancy, rigid=tuple(sorted(operation.rigid)))
        return replace(state, days={**state.days, operation.day: day}), _DONE

    def _bid(self, state: State, context: Context, operation: Bid) -> Step:
        day = state.days.get(operation.day)
        if day is None or context.client not in day.sites:
            return refused(state, "not a site of an open day")
        if not day.is_bidding:
            return refused(state, "bidding is over")
        if context.client in day.bids:
            return refused(state, "a bid is binding")
        if self.roles.is_attested and not self._is_admitted(day, context.client):
            return refused(state, "no accepted evidence of attestation")
        if not is_digest(operation.digest):
            return refused(state, "not a digest")
        bids = {**day.bids, context.client: operation.digest}
        return with_day(state, operation.day, replace(day, bids=bids)), _DONE

    def _close_bids(self, state: State, context: Context, operation: CloseBids) -> Step:
        day = state.days.get(operation.day)
        if context.client != self.roles.operator or day is None or not day.is_bidding:
            return refused(state, "only the operator ends bidding, once")
        if not day.bids:
            return refused(state, "nobody has bid")
        late = {site: "no bid" for site in day.present if site not in day.bids}
        day = replace(day, is_bidding=False, excluded={**day.excluded, **late})
        return with_day(state, operation.day, day), _DONE

    # -- admission [ledger 9.5] ------------------------------------------------------------------

    def _is_admitted(self, day: Day, who: str) -> bool:
        held = day.admissions.get(who)
        return held is not None and held.verdict is True

    def _barred(self, day: Day) -> set[str]:
        """Return the workers that are not drawn: banned, or without accepted evidence."""
        if not self.roles.is_attested:
            return set(day.banned)
        workers = self.roles.workers
        return {*day.banned, *(one for one in workers if not self._is_admitted(day, one))}

    def _admit(self, state: State, context: Context, operation: Admit) -> Step:
        day, who = state.days.get(operation.day), operation.who
        if day is None or not self._may_vote(state, context.client):
            return refused(state, "not a validator of an open day")
        if not self.roles.is_attested:
            return refused(state, "this ledger asks for no evidence")
        if who == context.client or who not in (
            *day.present,
            *self.roles.workers,
            *self.roles.validators,
        ):
            return refused(state, "nobody whose evidence is asked for")
        is_named = is_digest(operation.evidence) or not (
            operation.is_accepted or operation.evidence
        )
        if not is_named or len(operation.reason) > REASON_LENGTH_MAX:
            return refused(state, "no digest, or too long a reason")
        held = day.admissions.get(who, Admission())
        following = counted(
            held,
            context.client,
            is_accepted=operation.is_accepted,
            reason=operation.reason,
            quorum=self.roles.quorum,
        )
        if following is None:
            return refused(state, "said before")
        day = replace(day, admissions={**day.admissions, who: following})
        if following.verdict is held.verdict:
            same = [b for b in following.ballots.values() if b is operation.is_accepted]
            return with_day(state, operation.day, day), Counted(len(same), self.roles.quorum)
        if following.verdict is False:
            state, day = self._shut_out(state, day, who)
        result = Settled("admission", who, following.verdict is True)
        return with_day(state, operation.day, day), result

    def _shut_out(self, state: State, day: Day, who: str) -> tuple[State, Day]:
        """Act on refused evidence: a site is excluded, a worker not drawn, a validator mute."""
        if who in self.roles.validators:
            state = replace(state, convicted={**state.convicted, who: "evidence refused"})
        elif who in day.present:
            bids = {site: digest for site, digest in day.bids.items() if site != who}
            day = excluded(replace(day, bids=bids), who, "evidence refused")
        return state, day

    # -- the beacon [ledger 9.3] -----------------------------------------------------------------

    def _seal(self, state: State, context: Context, operation: SealBeacon) -> Step:
        day = state.days.get(operation.day)
        if day is None or not self._may_vote(state, context.client):
            return refused(state, "not a validator of an open day")
        if context.client in day.seals or day.reveals or not is_digest(operation.seal):
            return refused(state, "a seal comes once, before any value is revealed")
        seals = {**day.seals, context.client: operation.seal}
        return with_day(state, operation.day, replace(day, seals=seals)), _DONE

    def _reveal(self, state: State, context: Context, operation: RevealBeacon) -> Step:
        day = state.days.get(operation.day)
        if day is None or context.client not in day.seals:
            return refused(state, "nothing was sealed")
        if len(day.seals) < self.roles.quorum or day.is_bidding:
            return refused(state, "values are revealed after bidding, when a quorum has sealed")
        if day.beacon or context.client in (*day.reveals, *day.missing):
            return refused(state, "this value was revealed or given up before")
        expected = seal_of(operation.value, context.client, operation.day)
        if len(operation.value) != REVEAL_LENGTH or expected != day.seals[context.client]:
            return refused(state, "this is not what was sealed")
        day = replace(day, reveals={**day.reveals, context.client: operation.value})
        return self._fix(state, context, operation.day, day)

    def _fix(self, state: State, context: Context, name: str, day: Day) -> Step:
        """Fix the beacon when every sealed value is revealed or given up."""
        if set(day.seals) - set(day.reveals) - set(day.missing) or not day.reveals:
            return with_day(state, name, day), _DONE
        values = tuple(sorted(day.reveals.items()))
        beacon = digest_of("beacon", encode((name, context.head, values)))
        return with_day(state, name, replace(day, beacon=beacon)), Fixed(beacon)

    # -- tasks -----------------------------------------------------------------------------------

    def _announce(self, state: State, context: Context, operation: Announce) -> Step:
        day, site = state.days.get(operation.day), context.client
        if day is None or site not in day.present or day.is_bidding:
            return refused(state, "not a present site of a day that has its bids")
        if not day.beacon or not day.redundancy:
            return refused(state, "this day has no beacon or no tasks")
        if operation.iteration != day.iteration or site in day.tasks or day.last is not None:
            return refused(state, "not the present iteration, or announced before")
        if site in day.rigid:
            return refused(state, "a site without choice has no tasks")
        if not is_digest(operation.digest):
            return refused(state, "not a digest")
        task = Task(operation.digest, ())
        task = self._drawn(state, operation.day, day, site, task, day.redundancy)
        tasks = {**day.tasks, site: task}
        state = with_day(state, operation.day, replace(day, tasks=tasks))
        return state, Assigned(site, task.workers)

    def _drawn(self, state: State, name: str, day: Day, site: str, task: Task, count: int) -> Task:
        """Draw further workers by weight; the problem's digest plays no part [ledger 9.4]."""
        taken = {*task.workers, *task.dropped, *self._barred(day)}
        left = [worker for worker in sorted(self.roles.workers) if worker not in taken]
        workers = list(task.workers)
        for number in range(min(count, len(left))):
            weights = [state.performance[worker].weight for worker in left]
            seed = (day.beacon, name, day.iteration, site, task.attempt, number)
            ticket = int.from_bytes(digest_of("draw", encode(seed)), "big") % sum(weights)
            chosen = 0
            while ticket >= weights[chosen]:
                ticket -= weights[chosen]
                chosen += 1
            workers.append(left.pop(chosen))
        return replace(task, workers=tuple(workers), attempt=task.attempt + 1)

    def _solve(self, state: State, context: Context, operation: Solve) -> Step:
        day = state.days.get(operation.day)
        task = day.tasks.get(operation.site) if day else None
        worker = context.client
        if day is None or task is None or operation.iteration != day.iteration:
            return refused(state, "no such task in the present iteration")
        if worker not in task.workers or worker in task.solutions:
            return refused(state, "not assigned to this worker, or solved by it before")
        if operation.problem != task.problem or not is_digest(operation.solution):
            return refused(state, "the solution of another problem")
        task = replace(task, solutions={**task.solutions, worker: operation.solution})
        return with_task(state, operation.day, day, operation.site, task), _DONE

    def _verdict(self, state: State, context: Context, operation: Verdict) -> Step:
        day, task, why = self._voting(state, context, operation)
        if day is None or task is None:
            return refused(state, why)
        if task.solutions.get(operation.worker) != operation.solution:
            return refused(state, "the worker has submitted no such solution")
        if operation.worker in task.accepted:
            return refused(state, "this solution was accepted before")
        if not 0 <= operation.elapsed_ms <= _ELAPSED_MAX_MS:
            return refused(state, "a time out of range")
        key = f"verdict {operation.site} {operation.worker}"
        ballot = encode((operation.is_accepted, operation.elapsed_ms))
        day, votes = cast(day, key, context.client, ballot)
        ballots = [msgspec.msgpack.decode(vote) for vote in votes.values()]
        agreeing = [elapsed for accepted, elapsed in ballots if accepted == operation.is_accepted]
        if len(agreeing) < self.roles.quorum:
            state = with_day(state, operation.day, day)
            return state, Counted(len(agreeing), self.roles.quorum)
        day = forget(day, key)
        if not operation.is_accepted:
            return self._replaced(state, operation, day, task, "wrong")
        task = replace(task, accepted=(*task.accepted, operation.worker))
        state = performed(
            state,
            operation.worker,
            lambda held: held.accepted(sorted(agreeing)[len(agreeing) // 2]),
        )
        state = with_task(state, operation.day, day, operation.site, task)
        return state, Settled("solution", operation.worker, is_accepted=True)

    def _late(self, state: State, context: Context, operation: Late) -> Step:
        day, task, why = self._voting(state, context, operation)
        if day is None or task is None:
            return refused(state, why)
        if operation.worker in task.accepted:
            return refused(state, "its solution was accepted")
        if operation.attempt != task.attempt:
            return refused(state, "about an earlier draw")
        key = f"late {operation.site} {operation.worker}"
        day, votes = cast(day, key, context.client, b"")
        if len(votes) < self.roles.quorum:
            return with_day(state, operation.day, day), Counted(len(votes), self.roles.quorum)
        verdicts = f"verdict {operation.site} {operation.worker}"
        day = forget(forget(day, key), verdicts)  # They are about what is taken off the task.
        return self._replaced(state, operation, day, task, "late")

    def _voting(
        self, state: State, context: Context, operation: Verdict | Late
    ) -> tuple[Day | None, Task | None, str]:
        day = state.days.get(operation.day)
        if not self._may_vote(state, context.client):
            return None, None, "not a validator"
        if day is None or operation.iteration != day.iteration:
            return None, None, "not the present iteration of an open day"
        task = day.tasks.get(operation.site)
        if task is None or operation.worker not in task.workers:
            return None, None, "not assigned to this worker"
        return day, task, ""

    def _replaced(
        self, state: State, operation: Verdict | Late, day: Day, task: Task, why: str
    ) -> Step:
        """Take a worker off a task and draw another one; a wrong one is done for the day."""
        worker = operation.worker
        task = replace(
            task,
            workers=tuple(other for other in task.workers if other != worker),
            dropped=self._dropped(day, task, worker, why),
            solutions={w: s for w, s in task.solutions.items() if w != worker},
        )
        if why == "wrong":
            state = performed(state, worker, Performance.wrong)
            day = replace(day, banned=tuple(sorted({*day.banned, worker})))
        else:
            state = performed(state, worker, Performance.late)
        task = self._drawn(state, operation.day, day, operation.site, task, 1)
        state = with_task(state, operation.day, day, operation.site, task)
        return state, Settled(why, worker, is_accepted=False, workers=task.workers)

    def _dropped(self, day: Day, task: Task, worker: str, why: str) -> tuple[str, ...]:
        """Return who is not drawn now; when all were late, all but the last begin again."""
        dropped = (*task.dropped, worker)
        able = {*self.roles.workers} - self._barred(day) - ({worker} if why == "wrong" else set())
        if able - {*dropped, *task.workers}:
            return dropped
        if task.attempt >= _ROUNDS_MAX * len(self.roles.workers):
            return dropped
        return (worker,) if able != {worker} else ()

    # -- absence, iterations, settlement ---------------------------------------------------------

    def _absent(self, state: State, context: Context, operation: Absent) -> Step:
        day, who = state.days.get(operation.day), operation.who
        if day is None or not self._may_vote(state, context.client):
            return refused(state, "not a validator of an open day")
        is_silent = who in day.seals and not day.beacon and who not in (*day.reveals, *day.missing)
        if not is_silent and who not in day.present:
            return refused(state, "neither a present site nor an unrevealed seal")
        if not is_silent and (day.is_bidding or day.settlement is not None):
            return refused(state, "sites are missed between bidding and settlement")
        key = f"absent {who}"
        day, votes = cast(day, key, context.client, b"")
        if len(votes) < self.roles.quorum:
            return with_day(state, operation.day, day), Counted(len(votes), self.roles.quorum)
        day = forget(day, key)
        if is_silent:
            day = replace(day, missing=tuple(sorted({*day.missing, who})))
            state, result = self._fix(state, context, operation.day, day)
            is_fixed = isinstance(result, Fixed)
            return state, result if is_fixed else Settled("seal", who, is_accepted=False)
        day = excluded(day, who, "absent")
        return with_day(state, operation.day, day), Settled("site", who, is_accepted=False)

    def _propose_iteration(
        self, state: State, context: Context, operation: ProposeIteration
    ) -> Step:
        day = state.days.get(operation.day)
        if day is None or context.client != self.roles.operator or day.is_bidding:
            return refused(state, "only the operator proposes, for a day that has its bids")
        if operation.iteration != day.iteration or day.last is not None:
            return refused(state, "not the present iteration")
        residuals = (operation.primal_residual, operation.dual_residual)
        if not is_digest(operation.digest) or not all(0 <= r <= MONEY_MAX for r in residuals):
            return refused(state, "a digest or a residual out of range")
        if day.redundancy and any(
            len(day.tasks[site].accepted) < day.redundancy if site in day.tasks else True
            for site in day.present
            if site not in day.rigid
        ):
            return refused(state, "a present site has no accepted solution yet")
        if operation == day.proposal:
            return state, _DONE  # Its operator has started again; the ballots on it stand.
        day = replace(forget(day, "proposal"), proposal=operation)
        return with_day(state, operation.day, day), _DONE

    def _propose_settlement(
        self, state: State, context: Context, operation: ProposeSettlement
    ) -> Step:
        day = state.days.get(operation.day)
        if day is None or context.client != self.roles.operator or day.last is None:
            return refused(state, "only the operator settles, after the last iteration")
        if day.settlement is not None:
            return refused(state, "this day was settled before")
        names = [name for name, _ in operation.payments]
        if len(set(names)) != len(names) or not set(names) >= set(day.present):
            return refused(state, "every present site is paid exactly once")
        if not set(names) <= {*day.sites, self.roles.operator}:
            return refused(state, "only sites and the operator are paid")
        if not all(abs(amount) <= MONEY_MAX for _, amount in operation.payments):
            return refused(state, "an amount out of range")
        if sum(amount for _, amount in operation.payments) != 0:
            return refused(state, "payments do not sum to zero")
        if operation == day.proposal:
            return state, _DONE  # Its operator has started again; the ballots on it stand.
        day = replace(forget(day, "proposal"), proposal=operation)
        return with_day(state, operation.day, day), _DONE

    def _approve(self, state: State, context: Context, operation: Approve) -> Step:
        day = state.days.get(operation.day)
        if day is None or not self._may_vote(state, context.client):
            return refused(state, "not a validator of an open day")
        proposal = day.proposal
        if proposal is None or subject_of(proposal) != operation.subject:
            return refused(state, "this is not proposed now")
        day, votes = cast(day, "proposal", context.client, bytes([operation.is_accepted]))
        count = sum(vote == bytes([operation.is_accepted]) for vote in votes.values())
        if count < self.roles.quorum:
            return with_day(state, operation.day, day), Counted(count, self.roles.quorum)
        day = replace(forget(day, "proposal"), proposal=None)
        kind = "iteration" if isinstance(proposal, ProposeIteration) else "settlement"
        if operation.is_accepted and isinstance(proposal, ProposeIteration):
            last = proposal if proposal.is_last else None
            day = replace(day, iteration=day.iteration + 1, tasks={}, votes={}, last=last)
        elif operation.is_accepted and isinstance(proposal, ProposeSettlement):
            day = replace(day, settlement=proposal)
        result = Settled(kind, operation.subject.hex(), operation.is_accepted)
        return with_day(state, operation.day, day), result

    def _close(self, state: State, context: Context, operation: CloseDay) -> Step:
        day = state.days.get(operation.day)
        if context.client != self.roles.operator or day is None or day.settlement is None:
            return refused(state, "only the operator closes a day, when it is settled")
        days = {name: other for name, other in state.days.items() if name != operation.day}
        closed = {**state.closed, operation.day: subject_of(day.settlement)}
        return replace(state, days=days, closed=closed), _DONE

    # -- evidence --------------------------------------------------------------------------------

    def _evidence(self, state: State, _context: Context, operation: Evidence) -> Step:
        """Convict a validator by its own signatures; it votes on nothing any more."""
        accusation = operation.accusation
        if accusation.culprit in state.convicted:
            return refused(state, "convicted before")
        key = self.keys.get(accusation.culprit)
        first, second = accusation.digests
        kinds = ("pre-prepare", "prepare", "commit")
        is_shown = accusation.kind in kinds and first != second
        if not is_shown or not all(
            self.notary.check(
                key, accusation.kind, signature, accusation.view, accusation.sequence, digest
            )
            for digest, signature in zip(accusation.digests, accusation.signatures, strict=True)
        ):
            return refused(state, "this proves nothing")
        convicted = {**state.convicted, accusation.culprit: accusation.kind}
        state = replace(state, convicted=convicted)
        return state, Settled("evidence", accusation.culprit, is_accepted=True)

    def _may_vote(self, state: State, who: str) -> bool:
        return who in self.roles.validators and who not in state.convicted


_STEPS: Final[dict[type, Callable[..., Step]]] = {
    OpenDay: Coordination._open,
    Bid: Coordination._bid,
    CloseBids: Coordination._close_bids,
    SealBeacon: Coordination._seal,
    RevealBeacon: Coordination._reveal,
    Announce: Coordination._announce,
    Solve: Coordination._solve,
    Verdict: Coordination._verdict,
    Late: Coordination._late,
    Absent: Coordination._absent,
    ProposeIteration: Coordination._propose_iteration,
    ProposeSettlement: Coordination._propose_settlement,
    Approve: Coordination._approve,
    Evidence: Coordination._evidence,
    Admit: Coordination._admit,
    CloseDay: Coordination._close,
}


def quantised_digest(quanta: bytes) -> bytes:
    """Return the digest of a solution given as little-endian int64 of 1e-9 per unit."""
    return digest_of("solution", quanta)
