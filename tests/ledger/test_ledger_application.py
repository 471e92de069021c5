"""The application: a whole day, every refusal, draws that nobody can steer, purity."""

import hashlib
import random
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_world import GENESIS, REPLICAS, SIGNERS, cheap_verify

from veilgrid.ledger.application import Coordination
from veilgrid.ledger.message import Accusation, Notary, encode
from veilgrid.ledger.operation import (
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
    Operation,
    ProposeIteration,
    ProposeSettlement,
    Refused,
    RevealBeacon,
    SealBeacon,
    Settled,
    Solve,
    Verdict,
    decode_result,
    seal_of,
    subject_of,
)
from veilgrid.ledger.service import Context
from veilgrid.ledger.state import SCORE_MAX, Roles, State

DAY = "2026-06-01"
VALIDATORS = tuple(map(str, REPLICAS))
WORKERS = ("w0", "w1", "w2", "w3")
SITES = ("s0", "s1", "s2")
NOTARY = Notary(GENESIS.digest(), cheap_verify)
KEYS = {name: SIGNERS[name].verify_key for name in REPLICAS}
APPLICATION = Coordination(Roles("operator", VALIDATORS, WORKERS), NOTARY, KEYS)


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class Ledger:
    """The application with its state, as one replica would hold it."""

    def __init__(
        self,
        redundancy: int = 1,
        head: bytes = bytes(32),
        application: Coordination = APPLICATION,
    ) -> None:
        self.application = application
        self.state: State = application.genesis()
        self.position = 0
        self.head = head
        self.redundancy = redundancy

    def do(self, client: str, operation: Operation) -> Any:
        before = self.application.encode(self.state)
        context = Context(client, self.position + 1, self.position, self.head)
        following, result = self.application.apply(self.state, context, encode(operation))
        again, same = self.application.apply(
            self.application.decode(before), context, encode(operation)
        )
        assert self.application.encode(self.state) == before, "states do not change"
        assert (self.application.encode(again), same) == (
            self.application.encode(following),
            result,
        )
        decoded = decode_result(result)
        if isinstance(decoded, Refused):
            assert self.application.encode(following) == before, "a refusal changes nothing"
        self.state, self.position = following, self.position + 1
        return decoded

    def all_vote(self, operation: Operation, voters: Any = VALIDATORS[:3]) -> Any:
        for validator in voters:
            result = self.do(validator, operation)
        return result

    @property
    def day(self) -> Any:
        return self.state.days[DAY]

    def opened(self) -> "Ledger":
        assert self.do("operator", OpenDay(DAY, SITES, self.redundancy)) == Done()
        for site in SITES:
            assert self.do(site, Bid(DAY, digest(site))) == Done()
        return self

    def with_beacon(self) -> "Ledger":
        self.opened()
        values = {validator: digest("value" + validator) for validator in VALIDATORS[:3]}
        for validator, value in values.items():
            assert self.do(validator, SealBeacon(DAY, seal_of(value, validator, DAY))) == Done()
        assert self.do("operator", CloseBids(DAY)) == Done()
        for validator, value in values.items():
            result = self.do(validator, RevealBeacon(DAY, value))
        assert isinstance(result, Fixed)
        return self

    def announced(self, iteration: int = 1) -> "Ledger":
        for site in self.day.present:
            result = self.do(site, Announce(DAY, iteration, digest(f"{site} {iteration}")))
            assert isinstance(result, Assigned), result
        return self

    def solved(self, iteration: int = 1) -> "Ledger":
        for site in self.day.present:
            for worker in self.day.tasks[site].workers:
                problem, solution = digest(f"{site} {iteration}"), digest(f"x {site} {worker}")
                operation = Solve(DAY, iteration, site, problem, solution)
                assert self.do(worker, operation) == Done()
                verdict = Verdict(DAY, iteration, site, worker, solution, True, 20)
                assert isinstance(self.all_vote(verdict), Settled)
        return self

    def iterated(self, *, is_last: bool, iteration: int = 1) -> "Ledger":
        proposal = ProposeIteration(DAY, iteration, digest("average"), 10, 20, is_last)
        assert self.do("operator", proposal) == Done()
        result = self.all_vote(Approve(DAY, subject_of(proposal), True))
        assert result == Settled("iteration", subject_of(proposal).hex(), True)
        return self


PAYMENTS = (("operator", -5), ("s0", 2_000_001), ("s1", -1_999_999), ("s2", 3))


@pytest.mark.parametrize("redundancy", [0, 1, 2])
def test_a_day_from_opening_to_closing(redundancy: int) -> None:
    """The way that every day takes, with tasks or without."""
    ledger = Ledger(redundancy).with_beacon()
    for iteration in (1, 2):
        if redundancy:
            ledger.announced(iteration).solved(iteration)
        ledger.iterated(is_last=iteration == 2, iteration=iteration)
    settlement = ProposeSettlement(DAY, PAYMENTS)
    assert ledger.do("operator", settlement) == Done()
    assert ledger.all_vote(Approve(DAY, subject_of(settlement), True)).what == "settlement"
    assert ledger.do("operator", CloseDay(DAY)) == Done()
    assert ledger.state.days == {}
    assert ledger.state.closed == {DAY: subject_of(settlement)}
    assert isinstance(ledger.do("operator", OpenDay(DAY, SITES)), Refused)


def refusal(ledger: Ledger, client: str, operation: Operation) -> str:
    result = ledger.do(client, operation)
    assert isinstance(result, Refused), result
    return result.reason


def test_bids_are_binding_and_end() -> None:
    """A bid that could be changed after others are known is no bid."""
    ledger = Ledger().opened()
    assert "binding" in refusal(ledger, "s0", Bid(DAY, digest("better")))
    assert "not a site" in refusal(ledger, "w0", Bid(DAY, digest("mine")))
    assert "operator" in refusal(ledger, "s0", CloseBids(DAY))
    ledger.do("operator", CloseBids(DAY))
    assert "over" in refusal(ledger, "s1", Bid(DAY, digest("late")))


def test_a_site_without_a_bid_is_excluded() -> None:
    ledger = Ledger()
    ledger.do("operator", OpenDay(DAY, SITES))
    ledger.do("s0", Bid(DAY, digest("s0")))
    ledger.do("operator", CloseBids(DAY))
    assert ledger.day.present == ("s0",)


@pytest.mark.parametrize(
    "operation",
    [
        OpenDay(DAY, ()),
        OpenDay(DAY, ("s0", "s0")),
        OpenDay(DAY, ("",)),
        OpenDay(DAY, ("s" * 101,)),
        OpenDay("", ("s0",)),
        OpenDay(DAY, ("s0",), 5),
        OpenDay(DAY, ("s0",), -1),
    ],
)
def test_a_day_that_makes_no_sense_is_not_opened(operation: OpenDay) -> None:
    assert refusal(Ledger(), "operator", operation)
    assert refusal(Ledger(), "s0", OpenDay(DAY, SITES))


# -- beacon and draws -----------------------------------------------------------------------------


def test_tasks_wait_for_the_beacon() -> None:
    """Who knows his task before the draw is fixed could look for a friendly worker."""
    ledger = Ledger().opened()
    ledger.do("operator", CloseBids(DAY))
    assert "beacon" in refusal(ledger, "s0", Announce(DAY, 1, digest("p")))


def test_values_are_revealed_only_after_a_quorum_has_sealed() -> None:
    """Otherwise the last to seal would choose the beacon."""
    ledger = Ledger().opened()
    values = {validator: digest(validator) for validator in VALIDATORS}
    for validator in VALIDATORS[:2]:
        ledger.do(validator, SealBeacon(DAY, seal_of(values[validator], validator, DAY)))
    ledger.do("operator", CloseBids(DAY))
    assert refusal(ledger, VALIDATORS[0], RevealBeacon(DAY, values[VALIDATORS[0]]))
    third = VALIDATORS[2]
    ledger.do(third, SealBeacon(DAY, seal_of(values[third], third, DAY)))
    assert "not what was sealed" in refusal(
        ledger, VALIDATORS[0], RevealBeacon(DAY, digest("other"))
    )
    assert ledger.do(VALIDATORS[0], RevealBeacon(DAY, values[VALIDATORS[0]])) == Done()
    fourth = VALIDATORS[3]
    late = SealBeacon(DAY, seal_of(values[fourth], fourth, DAY))
    assert "before any value" in refusal(ledger, fourth, late)


def test_a_withheld_value_is_given_up_and_its_owner_named() -> None:
    """One validator must not stop the day by silence."""
    ledger = Ledger().opened()
    values = {validator: digest(validator) for validator in VALIDATORS[:3]}
    for validator, value in values.items():
        ledger.do(validator, SealBeacon(DAY, seal_of(value, validator, DAY)))
    ledger.do("operator", CloseBids(DAY))
    for validator in VALIDATORS[:2]:
        ledger.do(validator, RevealBeacon(DAY, values[validator]))
    missing = Absent(DAY, VALIDATORS[2])
    assert isinstance(ledger.all_vote(missing, VALIDATORS[:2]), Counted)
    assert isinstance(ledger.do(VALIDATORS[3], missing), Fixed)
    assert ledger.day.missing == (VALIDATORS[2],)


def test_the_draw_ignores_the_digest_and_follows_beacon_and_place() -> None:
    """A site that could steer its draw by trying problems would pick its accomplice."""

    def drawn(problem: str, head: bytes) -> tuple[str, ...]:
        ledger = Ledger(head=head).with_beacon()
        return ledger.do("s0", Announce(DAY, 1, digest(problem))).workers

    head = bytes(32)
    assert len({drawn(f"try {number}", head) for number in range(20)}) == 1
    assert len({drawn("p", bytes([number]) * 32) for number in range(40)}) == len(WORKERS)


def test_better_workers_are_drawn_more_often_and_none_never() -> None:
    """Measured performance decides, but a newcomer can still earn it."""
    ledger = Ledger().with_beacon()
    performance = {
        **ledger.state.performance,
        "w0": type(ledger.state.performance["w0"])(SCORE_MAX, 10),
        "w1": type(ledger.state.performance["w0"])(0, 10),
    }
    state = msgspec.structs.replace(ledger.state, performance=performance)
    count = Counter[str]()
    for number in range(400):
        day = msgspec.structs.replace(ledger.day, beacon=digest(str(number)))
        trial = msgspec.structs.replace(state, days={DAY: day})
        context = Context("s0", 1, 0, bytes(32))
        _, result = APPLICATION.apply(trial, context, encode(Announce(DAY, 1, digest("p"))))
        count.update(decode_result(result).workers)  # type: ignore[union-attr]
    assert count["w0"] > 3 * count["w2"] > 0
    assert count["w1"] < 5
    assert performance["w1"].weight > 0


# -- solutions ------------------------------------------------------------------------------------


def test_a_refused_solution_never_counts_and_its_worker_is_replaced() -> None:
    """A wrong solution must never be recorded, whoever sends it in whatever form."""
    ledger = Ledger().with_beacon().announced()
    site, (worker,) = "s0", ledger.day.tasks["s0"].workers
    problem, solution = digest("s0 1"), digest("wrong")
    other = next(w for w in WORKERS if w != worker)
    assert refusal(ledger, other, Solve(DAY, 1, site, problem, solution)), "not assigned"
    assert refusal(ledger, worker, Solve(DAY, 1, site, digest("stale"), solution))
    assert refusal(ledger, worker, Solve(DAY, 0, site, problem, solution))
    assert refusal(ledger, worker, Solve(DAY, 1, site, problem, b"short"))
    assert ledger.do(worker, Solve(DAY, 1, site, problem, solution)) == Done()
    assert refusal(ledger, worker, Solve(DAY, 1, site, problem, digest("second thought")))
    verdict = Verdict(DAY, 1, site, worker, solution, False)
    assert refusal(ledger, "w3", verdict), "workers do not judge"
    assert isinstance(ledger.all_vote(verdict, VALIDATORS[:2]), Counted)
    assert isinstance(ledger.do(VALIDATORS[0], verdict), Counted), "one vote each"
    result = ledger.do(VALIDATORS[3], verdict)
    assert result.what == "wrong"
    assert worker not in result.workers
    assert len(result.workers) == 1
    assert ledger.state.performance[worker].score == 0
    assert worker in ledger.day.banned
    proposal = ProposeIteration(DAY, 1, digest("a"), 0, 0, False)
    assert "no accepted solution" in refusal(ledger, "operator", proposal)


@pytest.mark.parametrize("liar", range(4))
def test_one_lying_validator_decides_nothing(liar: int) -> None:
    """f votes are neither enough to accept nor to refuse."""
    ledger = Ledger().with_beacon().announced()
    (worker,) = ledger.day.tasks["s0"].workers
    solution = digest("x")
    ledger.do(worker, Solve(DAY, 1, "s0", digest("s0 1"), solution))
    lie = Verdict(DAY, 1, "s0", worker, solution, False)
    assert isinstance(ledger.do(VALIDATORS[liar], lie), Counted)
    honest = [validator for n, validator in enumerate(VALIDATORS) if n != liar]
    result = ledger.all_vote(msgspec.structs.replace(lie, is_accepted=True), honest)
    assert result == Settled("solution", worker, True)


def test_a_late_worker_is_replaced_and_loses_reputation() -> None:
    ledger = Ledger().with_beacon().announced()
    (worker,) = ledger.day.tasks["s1"].workers
    score = ledger.state.performance[worker].score
    result = ledger.all_vote(Late(DAY, 1, "s1", worker))
    assert result.what == "late"
    assert worker not in result.workers
    assert ledger.state.performance[worker].score == score // 2
    assert refusal(ledger, worker, Solve(DAY, 1, "s1", digest("s1 1"), digest("x")))


def test_when_nobody_is_left_the_ledger_says_so() -> None:
    """The roles must learn that a task has no worker, not wait for one."""
    ledger = Ledger().with_beacon().announced()
    for _ in WORKERS:
        (worker,) = ledger.day.tasks["s0"].workers
        ledger.do(worker, Solve(DAY, 1, "s0", digest("s0 1"), digest("x")))
        result = ledger.all_vote(Verdict(DAY, 1, "s0", worker, digest("x"), False))
    assert result.workers == ()


def test_when_all_were_late_one_of_them_is_drawn_again() -> None:
    """Otherwise a busy hour would exclude a site for its workers' delay."""
    ledger = Ledger().with_beacon().announced()
    drawn: list[str] = []
    for _ in range(2 * len(WORKERS)):
        task = ledger.day.tasks["s0"]
        drawn += task.workers
        ledger.all_vote(Late(DAY, 1, "s0", task.workers[0], task.attempt))
    assert set(drawn[: len(WORKERS)]) == set(WORKERS)
    assert drawn[len(WORKERS)] in set(WORKERS) - {drawn[len(WORKERS) - 1]}


def test_workers_that_are_late_for_ever_leave_the_site_without_one() -> None:
    """A day on which no worker answers has to end, too."""
    ledger = Ledger().with_beacon().announced()
    for _ in range(4 * len(WORKERS)):
        task = ledger.day.tasks["s0"]
        result = ledger.all_vote(Late(DAY, 1, "s0", task.workers[0], task.attempt))
    assert result.workers == ()


def test_a_late_worker_is_drawn_again_when_the_other_was_wrong() -> None:
    """One liar beside a slow worker must not cost a site its place in the plan."""
    ledger = Ledger().with_beacon().announced()
    late: list[str] = []
    while len(late) < len(WORKERS) - 1:
        task = ledger.day.tasks["s0"]
        late += task.workers
        ledger.all_vote(Late(DAY, 1, "s0", task.workers[0], task.attempt))
    (liar,) = ledger.day.tasks["s0"].workers
    ledger.do(liar, Solve(DAY, 1, "s0", digest("s0 1"), digest("x")))
    result = ledger.all_vote(Verdict(DAY, 1, "s0", liar, digest("x"), False))
    assert len(result.workers) == 1
    assert set(result.workers) <= set(late)


def test_ballots_on_a_withdrawn_solution_do_not_count_for_the_next_one() -> None:
    """Else two honest votes for a withheld solution and a liar's would accept any other one."""
    ledger = Ledger().with_beacon().announced()
    (worker,) = ledger.day.tasks["s0"].workers
    ledger.do(worker, Solve(DAY, 1, "s0", digest("s0 1"), digest("x")))
    for validator in VALIDATORS[:2]:
        ledger.do(validator, Verdict(DAY, 1, "s0", worker, digest("x"), True))
    while worker not in ledger.day.tasks["s0"].workers or ledger.day.tasks["s0"].solutions:
        task = ledger.day.tasks["s0"]
        ledger.all_vote(Late(DAY, 1, "s0", task.workers[0], task.attempt))
    ledger.do(worker, Solve(DAY, 1, "s0", digest("s0 1"), digest("y")))
    ledger.do(VALIDATORS[3], Verdict(DAY, 1, "s0", worker, digest("y"), True))
    assert ledger.day.tasks["s0"].accepted == ()


def test_ballots_on_a_proposal_that_is_repeated_stand() -> None:
    """Nobody votes twice on one proposal: an operator that starts again would wait for ever."""
    ledger = Ledger().with_beacon().announced().solved()
    proposal = ProposeIteration(DAY, 1, digest("step"), 0, 0, False)
    approve = Approve(DAY, subject_of(proposal), True)
    ledger.do("operator", proposal)
    for validator in VALIDATORS[:2]:
        ledger.do(validator, approve)
    assert ledger.do("operator", proposal) == Done()
    assert ledger.do(VALIDATORS[2], approve) == Settled("iteration", approve.subject.hex(), True)


def test_a_ballot_on_an_earlier_draw_is_refused() -> None:
    """Else a ballot that was under way shortens the patience with whoever is drawn again."""
    ledger = Ledger().with_beacon().announced()
    task = ledger.day.tasks["s0"]
    assert refusal(ledger, VALIDATORS[0], Late(DAY, 1, "s0", task.workers[0], task.attempt + 1))
    assert refusal(ledger, VALIDATORS[0], Late(DAY, 1, "s0", task.workers[0], task.attempt - 1))


def test_an_absent_site_is_excluded_and_what_was_under_way_begins_again() -> None:
    ledger = Ledger().with_beacon().announced().solved()
    proposal = ProposeIteration(DAY, 1, digest("with s2"), 0, 0, False)
    ledger.do("operator", proposal)
    assert ledger.all_vote(Absent(DAY, "s2")) == Settled("site", "s2", False)
    assert ledger.day.present == ("s0", "s1")
    assert refusal(ledger, VALIDATORS[0], Approve(DAY, subject_of(proposal), True))
    assert refusal(ledger, "s2", Announce(DAY, 1, digest("back")))
    ledger.iterated(is_last=True)
    assert refusal(ledger, "operator", ProposeSettlement(DAY, (("s0", 1), ("s1", 0))))


@pytest.mark.parametrize(
    "payments",
    [
        (("s0", 1), ("s1", 0), ("s2", 0)),
        (("s0", 1), ("s1", -1)),
        (("s0", 1), ("s1", -1), ("s2", 0), ("s0", 0)),
        (("s0", 1), ("s1", -2), ("s2", 0), ("stranger", 1)),
        (("s0", 1 << 60), ("s1", -(1 << 60)), ("s2", 0)),
    ],
)
def test_a_settlement_that_does_not_add_up_is_refused(payments: Any) -> None:
    """Money must neither appear nor vanish, and nobody may be forgotten."""
    ledger = Ledger().with_beacon().announced().solved().iterated(is_last=True)
    assert refusal(ledger, "operator", ProposeSettlement(DAY, payments))
    assert ledger.do("operator", ProposeSettlement(DAY, PAYMENTS)) == Done()
    assert refusal(ledger, "operator", CloseDay(DAY)), "not settled yet"


# -- evidence and hostile input -------------------------------------------------------------------


def accusation(culprit: str, signer: str, *, same: bool = False) -> Accusation:
    digests = (bytes(32), bytes(32) if same else b"\x01" * 32)
    one, other = (NOTARY.sign(SIGNERS[signer], "prepare", 4, 7, digest) for digest in digests)
    return Accusation(culprit, "prepare", 4, 7, digests, (one, other))


def test_a_validator_is_convicted_by_its_own_signatures_only() -> None:
    """Whoever could convict others could silence them."""
    ledger = Ledger().with_beacon().announced()
    liar = VALIDATORS[1]
    assert refusal(ledger, "s0", Evidence(accusation(liar, VALIDATORS[0])))
    assert refusal(ledger, "s0", Evidence(accusation(liar, liar, same=True)))
    assert ledger.do("s0", Evidence(accusation(liar, liar))) == Settled("evidence", liar, True)
    (worker,) = ledger.day.tasks["s0"].workers
    assert refusal(ledger, liar, Late(DAY, 1, "s0", worker))
    assert (
        ledger.all_vote(Late(DAY, 1, "s0", worker), [v for v in VALIDATORS if v != liar]).what
        == "late"
    )


@given(st.binary(max_size=300))
def test_octets_of_any_kind_are_refused_or_applied(octets: bytes) -> None:
    ledger = Ledger().opened()
    context = Context("operator", 1, 0, bytes(32))
    _, result = APPLICATION.apply(ledger.state, context, octets)
    decode_result(result)


OPERATIONS: list[Operation] = [
    OpenDay(DAY, SITES),
    Bid(DAY, digest("b")),
    CloseBids(DAY),
    SealBeacon(DAY, digest("s")),
    RevealBeacon(DAY, digest("r")),
    Announce(DAY, 1, digest("p")),
    Solve(DAY, 1, "s0", digest("s0 1"), digest("x")),
    Verdict(DAY, 1, "s0", "w0", digest("x"), True, 5),
    Verdict(DAY, 1, "s0", "w0", digest("x"), False, -5),
    Late(DAY, 1, "s0", "w1"),
    Absent(DAY, "s1"),
    Absent(DAY, VALIDATORS[0]),
    ProposeIteration(DAY, 1, digest("a"), 1, 1, True),
    ProposeSettlement(DAY, PAYMENTS),
    Approve(DAY, subject_of(ProposeSettlement(DAY, PAYMENTS)), True),
    Evidence(accusation(VALIDATORS[0], VALIDATORS[0])),
    CloseDay(DAY),
]


@pytest.mark.parametrize("seed", range(30))
def test_any_order_of_operations_by_anybody_keeps_the_invariants(seed: int) -> None:
    """Nobody follows the script on an open ledger; states must stay pure, bounded and decodable."""
    rng = random.Random(seed)
    ledger = Ledger().with_beacon() if seed % 2 else Ledger()
    clients = ["operator", *SITES, *WORKERS, *VALIDATORS, "stranger"]
    for _ in range(150):
        ledger.do(rng.choice(clients), rng.choice(OPERATIONS))
        for day in ledger.state.days.values():
            assert set(day.bids) <= set(day.sites)
            for task in day.tasks.values():
                assert set(task.accepted) <= set(task.solutions)
                assert not set(task.workers) & set(task.dropped)
            if day.settlement is not None:
                assert sum(amount for _, amount in day.settlement.payments) == 0
        assert APPLICATION.decode(APPLICATION.encode(ledger.state)) == ledger.state


ATTESTED = Coordination(Roles("operator", VALIDATORS, WORKERS, True), NOTARY, KEYS)


def admit(who: str, *, is_accepted: bool = True, reason: str = "") -> Admit:
    return Admit(DAY, who, digest("evidence of " + who), is_accepted, reason)


class AttestedLedger(Ledger):
    """A ledger that asks for evidence, with everybody but the named ones admitted."""

    def __init__(self, without: tuple[str, ...] = ()) -> None:
        super().__init__(application=ATTESTED)
        assert self.do("operator", OpenDay(DAY, SITES, 1)) == Done()
        for who in (*SITES, *WORKERS):
            if who not in without:
                assert self.all_vote(admit(who)) == Settled("admission", who, True)

    def bidding_done(self) -> "AttestedLedger":
        for site in self.day.present:
            self.do(site, Bid(DAY, digest(site)))
        values = {validator: digest("value" + validator) for validator in VALIDATORS[:3]}
        for validator, value in values.items():
            assert self.do(validator, SealBeacon(DAY, seal_of(value, validator, DAY))) == Done()
        assert self.do("operator", CloseBids(DAY)) == Done()
        for validator, value in values.items():
            self.do(validator, RevealBeacon(DAY, value))
        return self


def test_a_site_bids_only_with_evidence_that_a_quorum_accepts() -> None:
    """f liars must not let in whom they like, nor keep out whom they dislike."""
    ledger = AttestedLedger(without=("s0",))
    refusal = Refused("no accepted evidence of attestation")
    assert ledger.do("s0", Bid(DAY, digest("s0"))) == refusal
    for count, validator in enumerate(VALIDATORS[:2], 1):
        assert ledger.do(validator, admit("s0")) == Counted(count, 3)
        assert ledger.do("s0", Bid(DAY, digest("s0"))) == refusal
    assert ledger.do(VALIDATORS[0], admit("s0")) == Refused("said before")
    assert ledger.do(VALIDATORS[2], admit("s0")) == Settled("admission", "s0", True)
    assert ledger.do("s0", Bid(DAY, digest("s0"))) == Done()


def test_refused_evidence_excludes_a_site_with_its_reason() -> None:
    """Who is kept out, and why, stands on the ledger."""
    ledger = AttestedLedger(without=("s1",))
    refusal = admit("s1", is_accepted=False, reason="bound to another nonce")
    assert ledger.all_vote(refusal) == Settled("admission", "s1", False)
    assert ledger.day.excluded == {"s1": "evidence refused"}
    assert ledger.day.admissions["s1"].reason == "bound to another nonce"
    ledger.bidding_done()
    assert ledger.day.present == ("s0", "s2")
    assert ledger.day.excluded["s1"] == "evidence refused"
    assert ledger.do(VALIDATORS[3], admit("s1")) == Refused("nobody whose evidence is asked for")


def test_evidence_that_is_revoked_excludes_a_site_in_the_middle_of_a_day() -> None:
    """What was computed with it is computed again without it."""
    ledger = AttestedLedger().bidding_done()
    assert isinstance(ledger.announced(), Ledger)
    revoked = admit("s2", is_accepted=False, reason="measurement is revoked")
    assert ledger.all_vote(revoked) == Settled("admission", "s2", False)
    assert ledger.day.present == ("s0", "s1")
    assert "s2" not in ledger.day.tasks
    assert ledger.do(VALIDATORS[0], admit("s2")) == Refused("nobody whose evidence is asked for")


def test_workers_without_accepted_evidence_are_not_drawn() -> None:
    """A worker sees masked problems; which program it runs is asked before."""
    ledger = AttestedLedger(without=("w0", "w1", "w2"))
    ledger.all_vote(admit("w2", is_accepted=False, reason="debug mode"))
    ledger.bidding_done().announced()
    assert [task.workers for task in ledger.day.tasks.values()] == [("w3",)] * 3


def test_a_validator_whose_evidence_a_quorum_refuses_votes_no_more() -> None:
    """f of them cannot silence an honest one."""
    ledger = AttestedLedger()
    refusal = admit(VALIDATORS[3], is_accepted=False, reason="forged")
    for count, validator in enumerate(VALIDATORS[:2], 1):
        assert ledger.do(validator, refusal) == Counted(count, 3)
    assert ledger.do(VALIDATORS[3], admit(VALIDATORS[0])) == Counted(1, 3)
    assert ledger.do(VALIDATORS[2], refusal) == Settled("admission", VALIDATORS[3], False)
    said = ledger.do(VALIDATORS[3], admit(VALIDATORS[1]))
    assert said == Refused("not a validator of an open day")
    assert ledger.state.convicted == {VALIDATORS[3]: "evidence refused"}


def test_a_validator_that_has_refused_does_not_accept_on_the_same_day() -> None:
    """Else somebody could be let in by waiting until what was wrong looks right."""
    ledger = AttestedLedger(without=("s0",))
    ledger.do(VALIDATORS[0], admit("s0", is_accepted=False, reason="debug mode"))
    assert ledger.do(VALIDATORS[0], admit("s0")) == Refused("said before")


@pytest.mark.parametrize(
    ("who", "operation"),
    [
        ("operator", admit("s0")),
        (VALIDATORS[0], admit(VALIDATORS[0])),
        (VALIDATORS[0], admit("nobody")),
        (VALIDATORS[0], Admit(DAY, "s0", b"", True)),
        (VALIDATORS[0], Admit(DAY, "s0", b"short", False)),
        (VALIDATORS[0], admit("s0", is_accepted=False, reason="x" * 301)),
        (VALIDATORS[0], Admit("another day", "s0", digest("e"), True)),
    ],
)
def test_admissions_that_break_a_rule_are_refused(who: str, operation: Admit) -> None:
    """Each rule guards against somebody who would bend the count."""
    assert isinstance(AttestedLedger(without=("s0",)).do(who, operation), Refused)


def test_a_ledger_that_asks_for_no_evidence_counts_none() -> None:
    """Ballots that mean nothing would fill the state."""
    ledger = Ledger().opened()
    assert ledger.do(VALIDATORS[0], admit("s0")) == Refused("this ledger asks for no evidence")
