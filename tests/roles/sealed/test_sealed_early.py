"""What comes before its time is kept, and nobody can crowd out another's."""

import pytest

from veilgrid.machine import NodeId, Received
from veilgrid.mpc.message import Said, Submission
from veilgrid.roles.sealed.early import Early
from veilgrid.roles.sealed.heard import BID, PAYER, client_of
from veilgrid.roles.sealed.keys import PAYER_NODE
from veilgrid.roles.sealed.message import Agreement

PARTIES = tuple(NodeId(f"party-{k}") for k in (1, 2, 3))
HOMES = {0: NodeId("site-1"), 1: NodeId("site-2"), 2: NodeId("site-2")}
AGREEMENT = Agreement(b"day", PARTIES, 1, (), dict.fromkeys(HOMES, b""), HOMES, payer=PAYER_NODE)


def sent(home: str, client: str, session: bytes) -> Received:
    return Received(NodeId(home), Submission(session, client, "", b"", [], [], b""))


@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_site_cannot_fill_the_room_that_others_need(is_ahead: bool) -> None:
    """Else one party lacks honest messages in every task, and all wait until its time is over."""
    early = Early()
    session = AGREEMENT.session(5)
    if is_ahead:
        session = Agreement(**{**vars(AGREEMENT), "attempt": 1}).session(0)
    for number in range(2000):
        junk = client_of(number, f"wish {number}")
        early.keep(sent("site-1", junk, session), session, AGREEMENT, 4)
        early.keep(sent("site-1", f"x{number}", session), session, AGREEMENT, 4)
    honest = [
        sent("site-2", client_of(1, "wish 5"), session),
        sent("site-2", client_of(2, "wish 5"), session),
        sent(PAYER_NODE, client_of(PAYER, BID), session),
    ]
    for one in honest:
        early.keep(one, session, AGREEMENT, 4)
    words = [Received(party, Said(session, 0, b"")) for party in PARTIES for _ in range(300)]
    for word in words:
        early.keep(word, session, AGREEMENT, 4)
    kept = early.of_attempt() if is_ahead else early.of_task(5)
    assert [one for one in kept if one.sender != "site-1"][:3] == honest
    assert sum(one.sender == "site-1" for one in kept) == 1
    assert [sum(one.sender == party for one in kept) for party in PARTIES] == [256] * 3


def test_room_is_free_again_when_a_task_begins() -> None:
    early = Early()
    for task in range(3):
        session = AGREEMENT.session(task + 1)
        early.keep(sent("site-2", client_of(1, "wish"), session), session, AGREEMENT, task)
        assert len(early.of_task(task + 1)) == 1
    assert early._taken == {}
