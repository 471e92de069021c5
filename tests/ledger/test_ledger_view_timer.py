"""The timer of a view: what starts it, what restarts it, how long it runs [ledger 4.1, 4.3]."""

from typing import Any

import pytest
from ledger_cast import honest, signed
from ledger_world import CLIENTS, FAST, GENESIS, REPLICAS, SIGNERS, cheap_verify

from veilgrid.ledger.message import (
    Batch,
    Commit,
    NewView,
    Notary,
    Prepare,
    PrePrepare,
    Request,
    ViewChange,
    batch_digest,
    signed_request,
)
from veilgrid.ledger.replica import Replica
from veilgrid.machine import START, Effect, NodeId, Received, Send, SetTimer, TimerFired

R0, R1, R2, R3 = REPLICAS
C0, C1 = CLIENTS
NOTARY = Notary(GENESIS.digest(), cheap_verify)
BASE = FAST.view_timeout_ns


def request(number: int, client: NodeId = C0) -> Request:
    return signed_request(NOTARY, SIGNERS[client], client, number, (b"x",))


def give(replica: Replica, *messages: Any, sender: NodeId = R0) -> list[Effect]:
    return [e for message in messages for e in replica.handle(Received(sender, message))]


def timers(effects: list[Effect]) -> list[int]:
    return [e.delay_ns for e in effects if isinstance(e, SetTimer) and e.name == "view"]


def left(effects: list[Effect]) -> set[int]:
    """Views for which it asks."""
    found = [e.message for e in effects if isinstance(e, Send)]
    return {m.view for m in found if isinstance(m, ViewChange)}


def executed(replica: Replica, sequence: int, *requests: Request) -> list[Effect]:
    """Let the other three agree on a batch in view 0."""
    batch = Batch(requests)
    statement = (0, sequence, batch_digest(batch))
    proposal = signed(R0, PrePrepare(*statement, b"", batch))
    effects = give(replica, proposal)
    for node in (R2, R3):
        prepare = signed(node, Prepare(*statement, node, b"", proposal.signature))
        effects += give(replica, prepare, sender=node)
    for node in (R0, R2):
        effects += give(replica, signed(node, Commit(*statement, node, b"")), sender=node)
    assert replica.service.sequence == sequence
    return effects


def test_a_request_that_waits_starts_the_timer_once() -> None:
    """Else a primary that sends something now and then would never be late."""
    replica = honest(R1)
    assert timers(replica.handle(TimerFired(START))) == []
    assert timers(give(replica, request(1))) == [BASE]
    assert timers(give(replica, request(1))) == []
    assert timers(give(replica, request(1, C1))) == []
    assert left(replica.handle(TimerFired("view"))) == {1}


def test_what_cannot_be_executed_yet_starts_nothing() -> None:
    """A client that leaves a gap must not bring a primary down."""
    replica = honest(R1)
    assert timers(give(replica, request(2))) == []
    assert left(replica.handle(TimerFired("view"))) == set()
    assert timers(give(replica, request(1))) == [BASE]


def test_serving_others_does_not_restart_the_timer() -> None:
    """Otherwise a primary could starve one client for ever, as long as it serves the rest."""
    replica = honest(R1)
    assert timers(give(replica, request(1, C0))) == [BASE]
    for sequence in (1, 2, 3):
        assert timers(executed(replica, sequence, request(sequence, C1))) == []
    assert left(replica.handle(TimerFired("view"))) == {1}


def test_who_came_before_does_not_take_the_timer_over() -> None:
    """A client that sends ahead of its turn could else starve another one, with the primary."""
    replica = honest(R1)
    give(replica, request(2, C1), request(3, C1))
    assert timers(give(replica, request(1, C0))) == [BASE]
    assert timers(executed(replica, 1, request(1, C1))) == []
    assert timers(executed(replica, 2, request(2, C1))) == []
    assert left(replica.handle(TimerFired("view"))) == {1}


def test_a_timer_of_what_was_executed_does_nothing() -> None:
    """A replica does not leave a view in which everybody was served."""
    replica = honest(R1)
    give(replica, request(1))
    assert timers(executed(replica, 1, request(1))) == []
    assert left(replica.handle(TimerFired("view"))) == set()


def test_the_next_one_that_waits_gets_its_whole_time() -> None:
    """It waits for its own sake, not for what is left of another's time."""
    replica = honest(R1)
    give(replica, request(1, C0), request(1, C1))
    assert timers(executed(replica, 1, request(1, C0))) == [BASE]
    assert left(replica.handle(TimerFired("view"))) == {1}


def test_nobody_runs_ahead_alone() -> None:
    """The timer of the next view waits for 2f + 1 that have left; one has not left much."""
    replica = honest(R1)
    give(replica, request(1))
    effects = replica.handle(TimerFired("view"))
    assert (left(effects), timers(effects)) == ({1}, [])
    assert left(replica.handle(TimerFired("view"))) == set()
    one = signed(R2, ViewChange(1, None, (), R2, b""))
    assert timers(give(replica, one, sender=R2)) == []


def _leaving(count: int) -> tuple[Replica, list[int]]:
    """Let views fail whose primary is silent; return the times that were given."""
    replica = honest(R3)
    given = timers(give(replica, request(1)))
    for view in range(1, count + 1):
        effects = replica.handle(TimerFired("view"))
        assert left(effects) == {view}
        for node in (R1, R2):
            change = signed(node, ViewChange(view, None, (), node, b""))
            effects += give(replica, change, sender=node)
        if replica.primary == R3:  # It opens this view itself; then it is its own turn to serve.
            break
        given += timers(effects)
    return replica, given


def test_each_view_gets_twice_the_time() -> None:
    """Whatever the network's delay is, some view is long enough for it."""
    _, given = _leaving(2)
    assert given == [BASE, 2 * BASE, 4 * BASE]


def test_time_doubles_ten_times_and_no_more() -> None:
    """A storm of a day must not be followed by a timer of a week."""
    replica = honest(R3)
    give(replica, request(1))
    replica.views.attempts = 40
    effects = replica.handle(TimerFired("view"))
    for node in (R1, R2):
        change = signed(node, ViewChange(1, None, (), node, b""))
        effects += give(replica, change, sender=node)
    assert timers(effects) == [BASE << 10]


def test_time_is_short_again_when_somebody_was_served() -> None:
    """Else one bad hour would make every later view change slow."""
    replica, given = _leaving(1)
    assert given[-1] == 2 * BASE
    changes = [signed(n, ViewChange(1, None, (), n, b"")) for n in (R0, R1, R2)]
    opened = signed(R1, NewView(1, tuple(changes), (), b""))
    assert timers(give(replica, opened, sender=R1)) == [2 * BASE], "the same one still waits"
    batch = Batch((request(1),))
    statement = (1, 1, batch_digest(batch))
    proposal = signed(R1, PrePrepare(*statement, b"", batch))
    effects = give(replica, proposal)
    for node in (R0, R2):
        prepare = signed(node, Prepare(*statement, node, b"", proposal.signature))
        effects += give(replica, prepare, sender=node)
    for node in (R0, R1):
        effects += give(replica, signed(node, Commit(*statement, node, b"")), sender=node)
    assert replica.service.sequence == 1
    assert timers(give(replica, request(2))) == [BASE]


@pytest.mark.parametrize("node", [R1, R2, R3])
def test_who_restarts_while_leaving_still_leaves(node: NodeId) -> None:
    """A crash must not send a replica back into a view that it has left."""
    records: list[Any] = []
    replica = honest(node)
    for event in (Received(C0, request(1)), TimerFired("view")):
        effects = replica.handle(event)
        records += [e.record for e in effects if hasattr(e, "record")]
    again = honest(node, records)
    assert again.views.is_changing
    assert again.views.view == 1
