"""A replica alone and among others: bounds, evidence, membership, recovery, real signatures."""

import copy
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_cast import NOTARY, honest, signed
from ledger_world import (
    CLIENTS,
    FAST,
    GENESIS,
    REPLICAS,
    SIGNERS,
    ExactlyOnce,
    Register,
    answered,
    cheap_verify,
    checkers,
    execution,
    ledger_builds,
    members,
    real_signer,
)

from veilgrid.ledger.client import Client, Submit
from veilgrid.ledger.journalled import RECORDS
from veilgrid.ledger.message import (
    MESSAGES,
    NOTHING_DIGEST,
    OPERATION_COUNT_MAX,
    Accusation,
    Anchored,
    Answer,
    Batch,
    Checkpoint,
    Commit,
    Configuration,
    Confirmed,
    FetchState,
    Lineage,
    Member,
    NewView,
    Prepare,
    Prepared,
    PrePrepare,
    Reply,
    Request,
    StatePart,
    Status,
    ViewChange,
    Vouch,
    batch_digest,
    lineage_end,
    signed_request,
)
from veilgrid.ledger.replica import Replica
from veilgrid.ledger.service import CHECKPOINT_OPERATION, Change, configure_operation
from veilgrid.ledger.view_change import selected
from veilgrid.machine import START, Decide, NodeId, Persist, Received, Send, TimerFired
from veilgrid.sim import CALM, World, tampered

R0, R1, R2, R3 = REPLICAS
C0 = CLIENTS[0]


def request(number: int, client: NodeId = C0, operation: bytes = b"x") -> Request:
    return signed_request(NOTARY, SIGNERS[client], client, number, (operation,))


def proposal(*requests: Request, view: int = 0, sequence: int = 1) -> PrePrepare:
    batch = Batch(requests)
    unsigned = PrePrepare(view, sequence, batch_digest(batch), b"", batch)
    return signed(GENESIS.primary(view), unsigned)


def sent(effects: list[Any], kind: type) -> list[Any]:
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, kind)]


def accusations(effects: list[Any]) -> list[Accusation]:
    return [
        e.outcome for e in effects if isinstance(e, Decide) and isinstance(e.outcome, Accusation)
    ]


def give(replica: Replica, *messages: Any, sender: NodeId = R0) -> list[Any]:
    return [e for message in messages for e in replica.handle(Received(sender, message))]


def test_a_vote_follows_its_record() -> None:
    """The order of effects is the promise; the simulator only samples it."""
    effects = give(honest(R1), proposal(request(1)))
    assert isinstance(effects[0], Persist)
    assert all(isinstance(effect, Send) for effect in effects[1:4])
    assert len(sent(effects, Prepare)) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p: msgspec.structs.replace(p, signature=bytes(64)),
        lambda p: signed(R2, p),
        lambda p: msgspec.structs.replace(p, batch=None),
        lambda p: signed(R0, msgspec.structs.replace(p, digest=bytes(32))),
        lambda p: signed(R0, msgspec.structs.replace(p, sequence=0)),
        lambda p: signed(R0, msgspec.structs.replace(p, sequence=FAST.window_length + 1)),
        lambda p: signed(R0, msgspec.structs.replace(p, view=4)),
        lambda _: proposal(msgspec.structs.replace(request(1), signature=bytes(64))),
        lambda _: proposal(msgspec.structs.replace(request(1), client="nobody")),
        lambda _: proposal(msgspec.structs.replace(request(1), operations=(b"y",))),
        lambda _: proposal(msgspec.structs.replace(request(1), operations=())),
        lambda _: proposal(
            signed_request(NOTARY, SIGNERS[R2], C0, 1, (b"x",)),
        ),
    ],
)
def test_a_proposal_that_breaks_a_rule_is_not_prepared(wrong: Any) -> None:
    """Each rule of section 3.1, broken once."""
    replica = honest(R1)
    assert sent(give(replica, wrong(proposal(request(1)))), Prepare) == []
    assert sent(give(replica, proposal(request(1))), Prepare) != []


def test_requests_beyond_the_bounds_are_ignored() -> None:
    """A client must not fill a validator's memory."""
    replica = honest(R0)
    many = (b"x",) * (OPERATION_COUNT_MAX + 1)
    payload = NOTARY.sign(SIGNERS[C0], "request", C0, 1, many)
    assert give(replica, Request(C0, 1, many, payload), sender=C0) == []
    for number in range(2, 100):
        give(replica, request(number), sender=C0)
    assert len(replica._pool) <= 16


def test_two_faces_of_a_primary_convict_it() -> None:
    """Told different things, two backups have the proof between them."""
    one, other = proposal(request(1)), proposal(request(1, CLIENTS[1]))
    r1, r2 = honest(R1), honest(R2)
    give(r1, one)
    (vote, *_) = sent(give(r2, other), Prepare)
    found = accusations(give(r1, vote, sender=R2))
    assert [accusation.culprit for accusation in found] == [R0]
    place = (found[0].view, found[0].sequence)
    for digest, signature in zip(found[0].digests, found[0].signatures, strict=True):
        key = SIGNERS[R0].verify_key
        assert NOTARY.check(key, "pre-prepare", signature, *place, digest)
    assert accusations(give(r1, vote, sender=R2)) == [], "once"


@pytest.mark.parametrize("kind", [Prepare, Commit])
def test_contradicting_votes_convict_their_signer(kind: type) -> None:
    replica = honest(R1)
    extra = (b"",) if kind is Prepare else ()
    votes = [signed(R2, kind(0, 1, bytes([n]) * 32, R2, b"", *extra)) for n in (1, 2)]
    assert accusations(give(replica, votes[0], sender=R2)) == []
    assert [a.culprit for a in accusations(give(replica, votes[1], sender=R2))] == [R2]
    forged = msgspec.structs.replace(votes[1], digest=bytes(32))
    assert accusations(give(honest(R1), votes[0], forged, sender=R2)) == [], "unsigned: no proof"


def test_a_replayed_request_is_answered_from_the_table() -> None:
    """Whoever repeats a request must get the old result, not a second execution."""
    world = World(ledger_builds(3), 1, CALM, messages=MESSAGES)
    assert world.run(5_000, lambda w: answered(w, 3))
    replica: Any = world.machine(R0)
    before = len(replica.service.records)
    again = request(1, operation=b"c0:0")
    (reply,) = sent(give(replica, again, sender=C0), Reply)
    assert reply.number == 1
    assert len(replica.service.records) == before


def _certificate() -> Any:
    world = World(ledger_builds(60), 3, CALM, messages=MESSAGES)
    world.run(20_000, lambda w: bool(_anchored(w, R0)))
    return _anchored(world, R0)[-1].lineage.stable


def _anchored(world: World, node: NodeId) -> list[Anchored]:
    return [o for o in world.decided(node) if isinstance(o, Anchored)]


CERTIFICATE = _certificate()
MESSAGE_KINDS = [
    lambda: request(1),
    lambda: proposal(request(1)),
    lambda: signed(R2, Prepare(0, 1, bytes(32), R2, b"", bytes(64))),
    lambda: signed(R2, Commit(0, 1, bytes(32), R2, b"")),
    lambda: Status(3, True, 5, 2),
    lambda: FetchState(8, 0),
    lambda: StatePart(8, 0, 1, b"abc"),
    lambda: signed(R2, ViewChange(1, None, (), R2, b"")),
    lambda: signed(R1, NewView(1, (), (), b"")),
    lambda: signed(
        R2,
        Checkpoint(honest(R1).service.summary(honest(R1).service.moment()), R2, b""),
    ),
    lambda: Lineage((), CERTIFICATE),
]


@pytest.mark.parametrize("make", MESSAGE_KINDS)
def test_no_message_raises(make: Any) -> None:
    """One crafted message must not stop a validator."""
    rng = random.Random(1)
    for is_signed in (False, True):
        for _ in range(60):
            replica = honest(R1)
            message = make()
            for _ in range(rng.randrange(1, 4)):
                message = tampered(rng, message)
            if is_signed:
                try:
                    message = signed(R2, message)
                except (OverflowError, msgspec.MsgspecError):
                    continue
            for sender in (R2, C0, NodeId("stranger")):
                replica.handle(Received(sender, message))
                replica.handle(TimerFired("status"))
                replica.handle(TimerFired("view"))


@given(st.binary(max_size=200))
def test_octets_that_decode_do_not_raise(octets: bytes) -> None:
    try:
        message = msgspec.msgpack.decode(octets, type=MESSAGES)
    except msgspec.DecodeError:
        return
    honest(R1).handle(Received(R2, message))


def prepared(view: int = 0, sequence: int = 1, backups: Any = (R1, R2)) -> Prepared:
    statement = (view, sequence, b"d" * 32)
    primary = SIGNERS[GENESIS.primary(view)]
    vouches = tuple(
        Vouch(node, NOTARY.sign(SIGNERS[node], "prepare", *statement)) for node in backups
    )
    return Prepared(*statement, NOTARY.sign(primary, "pre-prepare", *statement), vouches)


def change(*shown: Prepared, stable: Any = None, view: int = 1) -> ViewChange:
    return signed(R3, ViewChange(view, stable, shown, R3, b""))


def test_what_a_view_change_shows_must_be_genuine() -> None:
    """A forged certificate would let a new view drop what was confirmed; each rule broken once."""
    rules = honest(R1).rules
    edit = msgspec.structs.replace
    good, far = prepared(), FAST.window_length + 1
    assert rules.holds(change(good, prepared(sequence=2), stable=None))
    assert rules.holds(change(stable=CERTIFICATE))
    few = edit(CERTIFICATE, vouches=CERTIFICATE.vouches[:2])
    summary = edit(CERTIFICATE.summary, head=bytes(32))
    wrong = [
        change(edit(good, digest=bytes(32))),
        change(edit(good, vouches=good.vouches[:1])),
        change(edit(good, vouches=good.vouches[:1] * 2)),
        change(prepared(backups=(R0, R1))),
        change(edit(good, proposal=good.vouches[0].signature)),
        change(prepared(view=1)),
        change(prepared(sequence=0)),
        change(prepared(sequence=far)),
        change(prepared(sequence=2), good),
        change(good, good),
        change(prepared(sequence=1), stable=CERTIFICATE),
        change(stable=few),
        change(stable=edit(CERTIFICATE, summary=summary)),
        change(view=0),
        change(view=1 << 32),
        edit(change(good), prepared=()),
        edit(change(good), replica=R2),
    ]
    assert [rules.holds(bad) for bad in wrong] == [False] * len(wrong)


def test_the_certificate_of_the_highest_view_wins_and_gaps_are_filled() -> None:
    """An older certificate may name a batch that a later view has replaced."""
    low, high, third = prepared(), prepared(view=1), prepared(sequence=3)
    high = msgspec.structs.replace(high, digest=b"h" * 32)
    for order in ((low, high), (high, low)):
        changes = [change(order[0], view=2), change(order[1], third, view=2)]
        _, chosen = selected(changes)
        assert chosen == [(1, b"h" * 32), (2, NOTHING_DIGEST), (3, third.digest)]
    stable, chosen = selected([change(low, third), change(stable=CERTIFICATE)])
    assert stable == CERTIFICATE
    assert chosen == [], "what a certified checkpoint covers is not proposed again"


def test_nothing_is_voted_for_beyond_a_boundary() -> None:
    """Beyond it other replicas decide; a vote of the old ones would be worth two."""
    replica = honest(R1)
    replica.service.change = Change(NEXT, 4)
    assert sent(give(replica, proposal(request(1), sequence=5)), Prepare) == []
    assert sent(give(replica, proposal(request(1), sequence=4)), Prepare) != []


def test_a_replica_that_restarts_stands_where_it_stood() -> None:
    """Its journal alone must bring back state, records and votes."""
    world = World(ledger_builds(20), 5, CALM, messages=MESSAGES)
    assert world.run(50_000, lambda w: answered(w, 20))
    old: Any = world.machine(R2)
    records = world.records(R2)
    encoded = [msgspec.msgpack.encode(record) for record in records]
    decoder = msgspec.msgpack.Decoder(RECORDS)
    new = honest(R2, [decoder.decode(octets) for octets in encoded])
    assert new.service.summary(new.service.moment()) == old.service.summary(old.service.moment())
    assert new.service.records == old.service.records
    assert new.window.low == old.window.low > 0
    for sequence, slot in old.window.slots.items():
        assert new.window.slots[sequence].commits.get(R2) == slot.commits.get(R2)


# -- membership -----------------------------------------------------------------------------------

NEXT = Configuration(1, members([R0, R1, R2, NodeId("r4")]), members(CLIENTS))


def membership_world(seed: int) -> World:
    """Replicas approve r4 for r3 while clients go on; then r4 must have everything."""
    builds = ledger_builds(12)
    builds[NodeId("r4")] = lambda records: Replica(
        NodeId("r4"), GENESIS, SIGNERS["r4"], Register(), records, FAST, cheap_verify
    )
    world = World(builds, seed, CALM, messages=MESSAGES, checkers=checkers([*REPLICAS, "r4"]))
    operation = configure_operation(NEXT)
    for node in (R0, R1, R2):
        approval = signed_request(NOTARY, SIGNERS[node], node, 1, (operation,))
        for to in REPLICAS:
            world.post(to, Received(node, approval), 2_000_000)
    world.run(
        60_000,
        lambda w: (
            answered(w, 12)
            and all(w.machine(n).configuration.number == 1 for n in (R0, R1, R2, NodeId("r4")))
        ),
    )
    return world


@pytest.mark.parametrize("seed", range(5))
def test_a_replica_is_replaced_at_a_boundary(seed: int) -> None:
    """A validator whose disk is lost must be replaceable without stopping the day."""
    world = membership_world(seed)
    new: Any = world.machine(NodeId("r4"))
    assert new.configuration == NEXT
    assert new.is_member
    assert answered(world, 12)
    lineage = new.lineage
    assert lineage_end(NOTARY, GENESIS, lineage) == NEXT
    world.crash(R0)  # Now r4's votes are needed.
    follower: Any = world.machine(C0)
    follower.handle(Received(R1, lineage))
    assert follower.configuration == NEXT
    world.post(C0, Received(C0, Submit((b"after",))))
    others = [R1, R2, NodeId("r4")]
    assert world.run(
        60_000,
        lambda w: answered_number(w, 13) and len({execution(w, node) for node in others}) == 1,
    )


def answered_number(world: World, number: int) -> bool:
    return any(isinstance(o, Answer) and o.number == number for o in world.decided(C0))


def test_a_lineage_with_a_forged_step_is_refused() -> None:
    """A newcomer must not be led to replicas that nobody approved."""
    lineage = membership_world(1).machine(R0).lineage  # type: ignore[union-attr]
    (certificate, configuration) = lineage.steps[0]
    other = msgspec.structs.replace(configuration, replicas=GENESIS.replicas)
    few = msgspec.structs.replace(certificate, vouches=certificate.vouches[:2])
    twice = msgspec.structs.replace(certificate, vouches=certificate.vouches[:1] * 3)
    for step in ((certificate, other), (few, configuration), (twice, configuration)):
        assert lineage_end(NOTARY, GENESIS, Lineage((step,), lineage.stable)) is None
    assert lineage_end(NOTARY, GENESIS, Lineage((), lineage.stable)) is None


def test_two_approvals_of_four_change_nothing() -> None:
    service = honest(R0).service
    operation = configure_operation(NEXT)
    for node in (R0, R1):
        service.execute(
            service.sequence + 1,
            Batch((signed_request(NOTARY, SIGNERS[node], node, 1, (operation,)),)),
        )
    stranger = signed_request(NOTARY, SIGNERS[C0], C0, 1, (operation,))
    service.execute(service.sequence + 1, Batch((stranger,)))
    assert service.change is None
    third = signed_request(NOTARY, SIGNERS[R3], R3, 1, (operation,))
    service.execute(service.sequence + 1, Batch((third,)))
    assert service.change is not None
    assert service.change.boundary % FAST.interval == 0
    assert service.change.boundary >= service.sequence + FAST.window_length


# -- real signatures ------------------------------------------------------------------------------


def test_the_same_with_real_signatures() -> None:
    """The simulations sign cheaply; ed25519 must do as well."""
    signers = {name: real_signer(name) for name in [*REPLICAS, C0]}
    genesis = Configuration(
        0,
        tuple(Member(node, signers[node].verify_key) for node in REPLICAS),
        (Member(C0, signers[C0].verify_key),),
    )
    builds: dict[NodeId, Any] = {
        node: lambda records, node=node: Replica(
            node, genesis, signers[node], Register(), records, FAST
        )
        for node in REPLICAS
    }
    first = [(b"one", b"two"), (b"three", CHECKPOINT_OPERATION)]
    builds[C0] = lambda records: Client(C0, genesis, signers[C0], records, first_operations=first)
    watching = [c for c in checkers(REPLICAS) if not isinstance(c, ExactlyOnce)]
    world = World(builds, 1, CALM, messages=MESSAGES, checkers=watching)
    assert world.run(5_000, lambda w: len(_anchored(w, R1)) > 0 and len(w.decided(C0)) == 2)
    confirmed = [o for o in world.decided(R1) if isinstance(o, Confirmed)]
    assert sum(len(o.records) for o in confirmed) == 4
    lineage = _anchored(world, R1)[0].lineage
    assert lineage_end(world.machine(R1)._notary, genesis, lineage) == genesis  # type: ignore[union-attr]


def test_one_replica_is_a_ledger_that_survives_no_fault() -> None:
    """f = 0 works too: a single operator's journal with proofs."""
    genesis = Configuration(0, members([R0]), members([C0]))
    builds: dict[NodeId, Any] = {
        R0: lambda r: Replica(R0, genesis, SIGNERS[R0], Register(), r, FAST, cheap_verify),
        C0: lambda r: Client(
            C0, genesis, SIGNERS[C0], r, first_operations=[(b"a",)] * 30, verify=cheap_verify
        ),
    }
    world = World(builds, 1, CALM, messages=MESSAGES, checkers=checkers([R0]))
    assert world.run(5_000, lambda w: len(w.decided(C0)) == 30)


def test_starting_twice_changes_nothing() -> None:
    replica = honest(R1)
    first = replica.handle(TimerFired(START))
    before = copy.deepcopy(replica.window)
    assert replica.handle(TimerFired(START)) == first
    assert replica.window == before
