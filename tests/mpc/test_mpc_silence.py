"""Whom a party blames where another gave up because a third was silent to it [mpc 7.2]."""

from collections import deque
from typing import Any

import pytest
from mpc_committee import parties_of

from veilgrid.machine import START, Effect, Event, NodeId, Received, Send, TimerFired
from veilgrid.mpc._courier import Errand
from veilgrid.mpc.message import Ask, Relay, Said
from veilgrid.mpc.party import Party

LATECOMER, GAVE_UP, WITNESS = NodeId("p1"), NodeId("p2"), NodeId("p3")


def program(mpc: Any) -> Any:
    squares = yield from mpc.multiply(mpc.constant([2, 3]), mpc.constant([2, 3]))
    return (yield from mpc.open(squares))


class Committee:
    """Three parties; what the latecomer says to all from one round on is held back."""

    def __init__(self, held_from: int) -> None:
        self.parties: dict[NodeId, Party] = parties_of(3, 1, program)
        self.held_from = held_from
        self.held: list[tuple[NodeId, Received]] = []
        self.queue: deque[tuple[NodeId, Event]] = deque(
            (p, TimerFired(START)) for p in self.parties
        )
        self.go_on()

    def go_on(self) -> None:
        while self.queue:
            to, event = self.queue.popleft()
            self.send(to, self.parties[to].handle(event))

    def send(self, sender: NodeId, effects: list[Effect]) -> None:
        for effect in effects:
            if not isinstance(effect, Send):
                continue
            word, event = effect.message, Received(sender, effect.message)
            is_late = (
                sender == LATECOMER and isinstance(word, Said) and word.round >= self.held_from
            )
            (self.held if is_late else self.queue).append((effect.to, event))

    def tick(self, name: NodeId, count: int) -> None:
        """Let a party's patience pass; what it asks is not answered by the latecomer."""
        for _ in range(count):
            party = self.parties[name]
            effects = party.handle(TimerFired(f"round {party.state.round}"))
            self.send(name, [one for one in effects if getattr(one, "to", "") != LATECOMER])
            self.go_on()

    def release(self, to: NodeId) -> list[Effect]:
        """Let the words held back reach one party."""
        event = next(event for name, event in self.held if name == to)
        return self.parties[to].handle(event)

    def blamed(self, accused: tuple[str, ...] = ("p1",)) -> list[str]:
        return self.parties[WITNESS].to_blame(GAVE_UP, accused)


@pytest.mark.parametrize(
    ("held_from", "ticks", "blamed"),
    [
        (3, 0, ["p2"]),  # It spoke in time: who says that it did not is wrong.
        (3, 1, ["p2"]),  # As late as an honest party that had to ask for words first.
        (3, 2, ["p1"]),
        (0, 1, []),  # It may have begun later.
        (0, 3, []),
        (0, 4, ["p1"]),
    ],
)
def test_a_witness_blames_who_kept_itself_waiting_or_else_who_gave_up(
    held_from: int, ticks: int, blamed: list[str]
) -> None:
    committee = Committee(held_from)
    committee.tick(WITNESS, ticks)
    assert committee.blamed() == blamed
    if ticks:
        committee.release(WITNESS)  # What comes late changes nothing.
        assert committee.blamed() == blamed


def test_who_accuses_the_witness_itself_or_nobody_is_to_blame() -> None:
    committee = Committee(3)
    committee.tick(WITNESS, 2)
    assert committee.blamed(("p3",)) == ["p2"]
    assert committee.blamed(()) == ["p2"]
    assert committee.blamed(("stranger",)) == ["p2"]
    assert committee.blamed(("p1", "p3")) == ["p1"]


def test_nobody_is_blamed_who_may_have_waited_for_words_that_were_carried() -> None:
    """Who starves an honest party of private words could have it blamed for being late."""
    committee = Committee(3)
    committee.tick(WITNESS, 2)
    state = committee.parties[WITNESS].state
    state.errands[1, 2] = Errand(state.round - 1, since=0, until=1, is_done=True)
    assert committee.blamed() == []
    state.errands[1, 2].until = 0  # It was answered at once.
    assert committee.blamed() == ["p1"]


def test_who_refuses_words_to_their_carrier_is_to_blame() -> None:
    """It spoke to all in time, and is silent to one: the carrier knows."""
    committee = Committee(99)
    state = committee.parties[WITNESS].state
    state.errands[2, 1] = Errand(state.round, since=0)
    state.tick = 1
    assert committee.blamed() == ["p2"], "a tick may pass on the way"
    state.tick = 2
    assert committee.blamed() == ["p1"]
    state.errands[2, 1].is_done = True
    assert committee.blamed() == ["p2"]


def test_while_a_check_is_judged_nobody_is_blamed_for_silence() -> None:
    committee = Committee(3)
    committee.parties[WITNESS].state.is_judging = True
    assert committee.blamed() == []


def test_a_word_that_somebody_asked_for_is_passed_on_as_soon_as_it_comes() -> None:
    """Else one party goes on with it just before another gives up for want of it."""
    committee = Committee(3)
    committee.tick(GAVE_UP, 1)
    heading = committee.parties[WITNESS].state.rounds[3]
    assert heading.wanted == {1: {2}}
    passed = [one for one in committee.release(WITNESS) if isinstance(one, Send)]
    assert [(one.to, one.message.sender) for one in passed if isinstance(one.message, Relay)] == [
        (GAVE_UP, 1)
    ]
    for one in passed:
        committee.parties[one.to].handle(Received(WITNESS, one.message))
    assert committee.parties[GAVE_UP].state.round == 4
    assert not any(isinstance(one.message, Ask) for one in passed)
