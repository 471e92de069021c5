"""Who may ask whom for evidence, and whose answers count [attestation 8.1]."""

from types import SimpleNamespace
from typing import Any

import pytest

from veilgrid.ledger.operation import Admit
from veilgrid.ledger.state import State
from veilgrid.machine import Effect, Event, NodeId, Received, Send, TimerFired
from veilgrid.roles.ledger_admission import Asking, Attested, Judgement
from veilgrid.roles.ledger_message import Challenge, Shown
from veilgrid.roles.ledger_seat import AGAIN, Agreement

NONCE = bytes(range(32))
NAMES = ("operator", *(f"validator-{k}" for k in range(1, 5)), "worker-1", "site-1", "site-2")
AGREEMENT = Agreement(
    day="d",
    operator="operator",
    validators=NAMES[1:5],
    workers=("worker-1",),
    buses=("a", "b"),
    flexible=(0,),
    groups={"a": "site-1", "b": "site-2"},
    keys={name: name.encode().ljust(32) for name in NAMES},
    is_attested=True,
)


class Inner:
    """A validator that is open for bids and keeps what it is given to submit."""

    def __init__(self) -> None:
        self.view = SimpleNamespace(is_open=True, excluded={})
        self.replica = SimpleNamespace(service=SimpleNamespace(state=State()))
        self.said: list[Admit] = []
        self.desk = self

    def handle(self, _event: Event) -> list[Effect]:
        return []

    def submit(self, _me: str, ballot: Admit) -> list[Effect]:
        self.said.append(ballot)
        return []


class Strict:
    """Accept what says "good"; ask with one nonce."""

    def __init__(self) -> None:
        self.judged: list[str] = []

    def ask(self, who: str, public_key: bytes) -> bytes | None:
        assert public_key == AGREEMENT.keys[AGREEMENT.home(who)]
        return NONCE

    def judge(self, who: str, _nonce: bytes, evidence: bytes) -> Judgement | None:
        self.judged.append(who)
        return Judgement(is_accepted=evidence == b"good", evidence=bytes(32), reason="r" * 999)

    def lapsed(self, _who: str) -> Judgement | None:
        return None


def quote(public_key: bytes, nonce: bytes) -> bytes:
    return public_key + nonce


@pytest.fixture
def site() -> Attested:
    return Attested(Inner(), NodeId("site-1"), AGREEMENT, quote)


@pytest.fixture
def asking() -> Asking:
    return Asking(Inner(), NodeId("validator-1"), AGREEMENT, quote, Strict())


def test_evidence_is_shown_to_validators_for_ones_own_sites_under_ones_own_key(
    site: Attested,
) -> None:
    """Evidence that anybody can ask for can be handed on to whoever is asked."""
    asked = Received(NodeId("validator-2"), Challenge("site:a", NONCE))
    shown = Shown("site:a", NONCE, AGREEMENT.keys["site-1"] + NONCE)
    assert site.handle(asked) == [Send(NodeId("validator-2"), shown)]


@pytest.mark.parametrize(
    ("sender", "challenge"),
    [
        ("operator", Challenge("site:a", NONCE)),
        ("site-2", Challenge("site:a", NONCE)),
        ("validator-1", Challenge("site:b", NONCE)),
        ("validator-1", Challenge("worker-1", NONCE)),
        ("validator-1", Challenge("operator", NONCE)),
        ("validator-1", Challenge("nobody", NONCE)),
        ("validator-1", Challenge("site:a", bytes(15))),
        ("validator-1", Challenge("site:a", bytes(65))),
    ],
)
def test_other_questions_are_not_answered(
    site: Attested, sender: str, challenge: Challenge
) -> None:
    """Each of these would be evidence for somebody else, or for nobody's question."""
    assert site.handle(Received(NodeId(sender), challenge)) == []


def test_everybody_but_the_operator_and_itself_is_asked(asking: Asking) -> None:
    """Again at each turn, because messages get lost."""
    for _ in range(2):
        effects = asking.handle(TimerFired(AGAIN))
        asked = {e.message.who: e.to for e in effects if isinstance(e, Send)}
        others = {name: name for name in (*NAMES[2:6],)}
        assert asked == {"site:a": "site-1", "site:b": "site-2", **others}


def test_an_answer_counts_only_from_the_process_that_was_asked(asking: Asking) -> None:
    """Else one site could have another one excluded by answering badly in its name."""
    inner: Any = asking._machine
    for sender in ("site-2", "validator-2", "operator", "worker-1"):
        assert asking.handle(Received(NodeId(sender), Shown("site:a", NONCE, b"bad"))) == []
    assert inner.said == []
    asking.handle(Received(NodeId("site-1"), Shown("site:a", NONCE, b"x" * ((2 << 20) + 1))))
    assert inner.said == []
    asking.handle(Received(NodeId("site-1"), Shown("site:a", NONCE, b"good")))
    assert [(b.who, b.is_accepted) for b in inner.said] == [("site:a", True)]


def test_a_ballot_is_cast_once_and_may_turn_to_no(asking: Asking) -> None:
    """Repeated answers must not fill the ledger; expiry and revocation must reach it."""
    inner: Any = asking._machine
    for evidence in (b"good", b"good", b"bad", b"bad", b"good"):
        asking.handle(Received(NodeId("site-2"), Shown("site:b", NONCE, evidence)))
    assert [ballot.is_accepted for ballot in inner.said] == [True, False]
    assert len(inner.said[1].reason) == 300
    asked = [e.message.who for e in asking.handle(TimerFired(AGAIN)) if isinstance(e, Send)]
    assert "site:b" not in asked
    assert "site:a" in asked
